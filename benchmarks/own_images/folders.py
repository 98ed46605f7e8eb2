"""Make two folders of ten classes from photographs that packages ship: ``write_folders(Path("out"), stamps)``.

easy: a class is one photograph of scikit-image; its images are crops of it.
hard: a class is a category of Debian's tuxpaint-stamps-default; its images are crops of many photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

EASY = ["astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "motorcycle_left", "rocket"]
HARD = {
    "birds": "animals/birds",
    "fish": "animals/fish",
    "insects": "animals/insects",
    "mammals": "animals/mammals",
    "fruit": "food/fruit",
    "vegetables": "food/vegetables",
    "flowers": "plants/flowers",
    "trees": "plants/trees",
    "town": "town",
    "vehicles": "vehicles",
}
IMAGES, _SIDE = 180, 96  # images of a class; pixels


def write_folders(out: Path, stamps: Path | None) -> dict[str, Path]:
    """Write the folders that can be made, and return them by name. A complete folder is not written again.

    stamps: the folder of the stamps, /usr/share/tuxpaint/stamps on Debian; None: only the easy folder.

    Raises:
        ValueError: scikit-image is not installed, or ``stamps`` has not the photographs.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError("scikit-image is not installed; pip install scikit-image")
    shipped = Path(spec.origin).parent / "data"
    sources = {"easy": {name: sorted(shipped.glob(f"{name}.*")) for name in EASY}}
    if stamps is not None:
        sources["hard"] = {name: _stamps(stamps / folder) for name, folder in HARD.items()}
    for kind, classes in sources.items():
        if lacking := [name for name, files in classes.items() if not files]:
            raise ValueError(f"no photographs of {', '.join(lacking)} for the folder {kind}")
        for index, (name, files) in enumerate(classes.items()):
            shares = (0.2, 0.5) if kind == "easy" else (0.5, 0.9)
            _write_class(out / kind / name, files, shares, seed=index)
    return {kind: out / kind for kind in sources}


def _stamps(folder: Path) -> list[Path]:
    """Return the photographs below a folder, without their mirrored copies."""
    return [file for file in sorted(folder.rglob("*.png")) if not file.stem.endswith(("_mirror", "_flip"))]


def _write_class(folder: Path, files: Sequence[Path], shares: tuple[float, float], seed: int) -> None:
    """Write square crops of the files in turn; a side has a share of the shorter side in the range ``shares``."""
    from PIL import Image

    if len(list(folder.glob("*.png"))) == IMAGES:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(IMAGES):
        with Image.open(files[number % len(files)]) as opened:
            colours = opened.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
        side = max(1, int(min(photo.size) * rng.uniform(*shares)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
        part = photo.crop((left, top, left + side, top + side))
        part.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR).save(folder / f"{number:03}.png")
