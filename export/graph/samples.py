"""Inputs as callers give them, tensors or arrays in batches of any size, as numpy of the examples' batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.device.signature import fit

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Tensor

    Sample = Sequence[torch.Tensor | NDArray[Any]] | torch.Tensor | NDArray[Any]

Arrays = tuple["NDArray[Any]", ...]

PROBES = 4  # random samples that stand in where the caller has no real ones


def as_arrays(values: Iterable[Sample]) -> list[Arrays]:
    """Tuples as numpy; a bare tensor or array is a tuple of one. ValueError where there are none, or no numbers."""
    samples = []
    for value in values:
        parts = tuple(value) if isinstance(value, tuple | list) else (value,)
        samples.append(tuple(_array(part) for part in parts))
    if not samples or not samples[0]:
        raise ValueError("inputs must be at least one tuple of at least one tensor, got none")
    return samples


def _array(value: Any) -> NDArray[Any]:
    plain = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    if not isinstance(plain, np.ndarray) or plain.dtype.kind not in "biuf":
        raise ValueError(f"inputs must be tensors or arrays of numbers, got {type(value).__name__}")
    return np.ascontiguousarray(plain)


def split(samples: list[Arrays], examples: Arrays, what: str) -> list[Arrays]:
    """The samples at the batch size of the examples: a loader's batch of 32 becomes 32 samples of 1.

    ValueError for other shapes or types than the examples', and for NaN or infinity.
    """
    found = []
    for sample in samples:
        if [part.shape for part in sample] == [part.shape for part in examples]:
            pieces = [sample]
        else:
            pieces = _pieces(sample, examples)
        if not pieces or [part.dtype for part in sample] != [part.dtype for part in examples]:
            raise ValueError(f"{what} inputs are {words(sample)}, the example inputs {words(examples)}")
        found.extend(pieces)
    if not all(np.isfinite(part).all() for sample in found for part in sample if part.dtype.kind == "f"):
        raise ValueError(f"{what} inputs hold NaN or infinity")
    return found


def _pieces(sample: Arrays, examples: Arrays) -> list[Arrays]:
    """The sample in pieces of the examples' batch, or none where it does not come out even."""
    pairs = list(zip(sample, examples, strict=False))
    if len(sample) != len(examples) or not all(a.ndim and b.ndim and a.shape[1:] == b.shape[1:] for a, b in pairs):
        return []
    counts = {(len(a) // len(b), len(a) % len(b)) if len(b) else (0, 1) for a, b in pairs}
    (count, rest), *others = counts
    if others or rest:
        return []
    return [tuple(a[index * len(b) : (index + 1) * len(b)] for a, b in pairs) for index in range(count)]


def words(sample: Sequence[NDArray[Any]]) -> str:
    """Types and shapes for an error: float32[1, 3, 8, 8], int64[1]."""
    return ", ".join(f"{part.dtype}{list(part.shape)}" for part in sample)


def drawn(tensors: Sequence[Tensor]) -> Arrays:
    """Seeded inputs of one call: normal noise; integers are 0, which is an index of anything."""
    rng = np.random.default_rng(0)
    return tuple(
        rng.standard_normal(tensor.shape).astype(tensor.dtype)
        if tensor.dtype.startswith("float")
        else np.zeros(tensor.shape, tensor.dtype)
        for tensor in tensors
    )


def noise(examples: Arrays, seed: int) -> Arrays:
    """Random inputs of the same mean and spread (1 where there is none); what is not floating point stays."""
    rng = np.random.default_rng(seed)
    return tuple(_like(value, rng) if value.dtype.kind == "f" else value for value in examples)


def _like(value: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    plain = value.astype(np.float64)
    spread = float(plain.std()) if plain.size > 1 else 0.0
    drawn: NDArray[Any] = (rng.standard_normal(value.shape) * (spread or 1.0) + plain.mean()).astype(value.dtype)
    return drawn


def samples(calibration: Sequence[Arrays] | None, inputs: Sequence[Tensor]) -> list[Arrays]:
    """The calibration inputs, each one a call of the artifact; ValueError when there are none or they do not fit."""
    if not calibration:
        raise ValueError("int8 needs calibration inputs; pass calibration=[(array, ...), ...], about 100 real ones")
    return [fit(sample, inputs) for sample in calibration]
