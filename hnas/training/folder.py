"""The folder of a trained supernet, which ``hnas-train`` writes and ``hnas-deploy`` reads.

``save_supernet(supernet, folder, record)`` writes it, ``load_supernet(folder)`` reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnas import spaces
from hnas.files import read_json, read_tensors, write_json, write_tensors
from hnas.space import Space
from hnas.supernet import Supernet

_LARGEST_HEADER = 2**24  # bytes of a weights file that are not weights
_LARGEST = 2**30  # weights of a supernet


def make_supernet(space: Space, seed: Any, origin: str) -> Supernet:
    """Return the untrained supernet of ``space``.

    seed: seed of the initial weights, an integer of 0 or more.
    origin: the name of the recipe or file in error messages.

    Raises:
        ValueError: the seed is wrong, or no network can be built from the arguments of the space.
    """
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{origin}: the seed is {seed!r}; it is a whole number from 0 on")
    shapes = [shape for arch in (space.smallest, space.largest) for shape in space.example(arch)]
    try:
        if any(side < 1 for shape in shapes for side in shape):
            raise ValueError(f"inputs have the shapes {shapes}")
        with torch.device("meta"):  # sizes without memory
            count = sum(each.numel() for each in space.union().parameters())
        if count > _LARGEST:
            raise ValueError(f"it has {count} weights, at most {_LARGEST} are trained")
        return Supernet(space, seed)
    except (TypeError, RuntimeError, ValueError, ArithmeticError) as error:  # constructors raise any of these
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{origin}: no network of the space {space.name!r} can be built: {reason}") from error


def save_supernet(supernet: Supernet, folder: Path, record: dict[str, Any]) -> None:
    """Write supernet.safetensors, then supernet.json, which makes the folder valid."""
    folder.mkdir(parents=True, exist_ok=True)
    space = supernet.space
    write_tensors(folder / "supernet.safetensors", _weights(supernet), {"space": space.name})
    splits = [[split.branch, split.context, list(split.options)] for split in supernet.splits.values()]
    own = {"schema": 1, "space": space.to_json(), "seed": supernet.seed, **({"splits": splits} if splits else {})}
    write_json(folder / "supernet.json", {**own, **record})


def load_supernet(folder: Path) -> tuple[Supernet, dict[str, Any]]:
    """Return the supernet in ``folder`` and its record.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is malformed, truncated, of another space, or holds weights that are not finite.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --supernet takes what hnas-train --out wrote")
    record = read_json(folder / "supernet.json")
    supernet = _restore(record, folder / "supernet.json")
    weights = sum(each.numel() * each.element_size() for each in _weights(supernet).values())
    tensors, _ = read_tensors(folder / "supernet.safetensors", largest=weights + _LARGEST_HEADER)
    _copy_weights(supernet, tensors, folder)
    return supernet, record


def _restore(record: dict[str, Any], file: Path) -> Supernet:
    """Return the untrained supernet that ``record`` describes, with its split branches."""
    if record.get("schema") != 1 or not isinstance(record.get("space"), dict):
        raise ValueError(f"{file} is not a supernet record of schema 1")
    space = spaces.restore(record["space"])
    supernet = make_supernet(space, record.get("seed", 0), str(file))
    try:
        if splits := record.get("splits", []):  # they name options of the whole space; some may have been dropped
            supernet.space = spaces.load(space.name)(**space.arguments)
        for branch, context, options in splits:
            supernet.split(branch, context, options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    supernet.space = space
    return supernet


@torch.no_grad()
def _copy_weights(supernet: Supernet, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the saved weights into ``supernet``; ValueError names the first that does not fit."""
    own = _weights(supernet)
    for name, parameter in own.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            wanted = f"{name} should be {list(parameter.shape)}, found {found}"
            raise ValueError(f"{folder}: {wanted}; it is another space's supernet")
        if tensors[name].dtype != parameter.dtype:
            raise ValueError(f"{folder}: {name} is {tensors[name].dtype}, expected {parameter.dtype}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{folder}: {name} holds NaN or infinite weights; train again from a good checkpoint")
        parameter.copy_(tensors[name])
    if unknown := sorted(tensors.keys() - own.keys()):
        raise ValueError(f"{folder}: {unknown[0]} is not a parameter of the space {supernet.space.name!r}")
    supernet.changed()


def _weights(supernet: Supernet) -> dict[str, nn.Parameter]:
    """Return every weight by name; tied weights keep both names."""
    return dict(supernet.union.named_parameters(remove_duplicate=False))
