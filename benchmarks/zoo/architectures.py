"""Load third-party networks: ``load("timm.resnet18")``. Weights are random, inputs and depths are small.

Batch norms hold the moments of the calibration samples, so that activations have the range of a trained network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hnas.benchmarks.zoo import lists

Sample = tuple[Tensor, ...] | dict[str, Tensor]

_SAMPLES = 16  # for calibration
_LENGTH = 16  # tokens of a text
_WORDS = 100  # size of the vocabulary


@dataclass(frozen=True, eq=False)
class _ZooNet:
    """Hold a module in eval mode, the inputs of one call, and samples for int8."""

    module: nn.Module
    examples: Sample
    calibration: Sequence[Sample]


@dataclass(frozen=True)
class Architecture:
    """Describe an architecture: its name with its library, its family, and a function that makes the network."""

    name: str
    family: str
    make: Callable[[], _ZooNet]

    @property
    def library(self) -> str:
        """Return the first part of the name."""
        return self.name.partition(".")[0]


def names(library: str | None = None) -> tuple[str, ...]:
    """Return the names of all architectures, or of those of a library. "torch" has tiny ones, for tests."""
    known = [name for name in _KNOWN if (name.startswith("torch.") if library == "torch" else library is None)]
    return tuple(name for name in known if library is not None or not name.startswith("torch."))


def find(name: str) -> Architecture:
    """Return the architecture of a name. Raise ValueError for an unknown one."""
    if name not in _KNOWN:
        raise ValueError(f"no architecture {name!r}; known: {', '.join(names())}")
    return _KNOWN[name]


def load(name: str) -> _ZooNet:
    """Return the network of a name, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return find(name).make()


def _seeing(make: Callable[[], nn.Module], size: int) -> _ZooNet:
    """Return a network on pictures [1, 3, size, size]."""
    module = make().eval()
    for part in module.modules():  # some networks begin with a last layer of zeros, whose output proves nothing
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.05)
    pictures = _pictures(_SAMPLES, size)
    _recalibrate_norms(module, pictures)
    samples = [(picture[None],) for picture in pictures]
    return _ZooNet(module, samples[0], samples)


def _pictures(count: int, size: int) -> Tensor:
    """Return smooth random pictures: most of their energy is in low frequencies, as in photographs."""
    layers = [torch.randn(count, 3, side, side) for side in (2, 4, 8, 16)]
    wide = [nn.functional.interpolate(each, size=(size, size), mode="bilinear") for each in layers]
    total = sum(layer / 2**level for level, layer in enumerate(wide)) + 0.05 * torch.randn(count, 3, size, size)
    assert isinstance(total, Tensor)
    return total


@torch.no_grad()
def _recalibrate_norms(module: nn.Module, batch: Tensor) -> None:
    """Set random factors and offsets of batch norms, then their moments to those of ``batch``.

    Without offsets, a deep network of random weights amplifies any error: 46 dB of the input become 9 dB.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.7, 0.2)
    if norms:
        module(batch)
    module.eval()


def _reading(make: Callable[[], nn.Module], *, masked: bool) -> _ZooNet:
    """Return a network on texts: token numbers [1, 16], and a mask that leaves out the last tokens."""
    module = make().eval()
    samples: list[Sample] = []
    for index in range(_SAMPLES):
        sample = {"input_ids": torch.randint(5, _WORDS, (1, _LENGTH))}
        if masked:
            sample["attention_mask"] = (torch.arange(_LENGTH) < _LENGTH - index % 4)[None].long()
        samples.append(sample)
    return _ZooNet(module, samples[0], samples)


def _hearing(make: Callable[[], nn.Module], name: str, shape: tuple[int, ...]) -> _ZooNet:
    """Return a network on one input of random numbers, called ``name``."""
    module = make().eval()
    samples: list[Sample] = [{name: torch.randn(1, *shape)} for _ in range(_SAMPLES)]
    return _ZooNet(module, samples[0], samples)


def _timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    import timm

    made = timm.create_model(name, pretrained=False, **{"num_classes": 10, **options})
    assert isinstance(made, nn.Module)
    return made


def _torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    made = models.get_model(name, **{"weights": None, "num_classes": 10, **options})
    assert isinstance(made, nn.Module)
    return made


def _transformers(kind: str, config: str, options: Mapping[str, Any]) -> nn.Module:
    import transformers

    made = getattr(transformers, kind)(getattr(transformers, config)(**options))
    assert isinstance(made, nn.Module)
    return made


def _known() -> dict[str, Architecture]:
    found = [
        Architecture(f"{library}.{name}", family, partial(_seeing, partial(make, name, options), size))
        for library, make, table in (("timm", _timm, lists.TIMM), ("torchvision", _torchvision, lists.TORCHVISION))
        for family, name, size, options in table
    ]
    for family, kind, config, options in lists.TEXT:
        make_text = partial(_transformers, kind, config, options)
        masked = kind not in lists.UNMASKED
        found.append(Architecture(f"transformers.{kind}", family, partial(_reading, make_text, masked=masked)))
    for family, kind, config, name, shape, options in lists.SIGNALS:
        make_signal = partial(_transformers, kind, config, options)
        found.append(Architecture(f"transformers.{kind}", family, partial(_hearing, make_signal, name, shape)))
    tiny = {"convolutions": _tiny_convolutions, "attention": _tiny_attention}
    found += [Architecture(f"torch.{name}", "tiny", partial(_seeing, make, 16)) for name, make in tiny.items()]
    return {each.name: each for each in found}


def _tiny_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def _tiny_attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), nn.LayerNorm(16), layer, nn.Flatten(), nn.Linear(256, 4)
    )


_KNOWN = _known()
