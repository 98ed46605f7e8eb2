"""Check the samples that callers give, and make random samples. A sample is the inputs of one call.

Callers give tensors or arrays, in batches of any size. ``to_samples(given, examples, "calibration")`` checks and splits
them once. The rest of the package takes `Samples`: numpy arrays with the shapes and types of the example inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.device.signature import leaves

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from hnas.export.device.artifact import TensorSpec

    SampleLike = torch.Tensor | NDArray[Any] | Sequence[Any] | Mapping[str, Any]

Sample = tuple["NDArray[Any]", ...]
Samples = Sequence[Sample]

PROBES = 4  # random samples where the caller gives no real ones
_MEASURED = 16  # values of a channel from which its mean and spread are measured


def to_sample(value: SampleLike) -> Sample:
    """Return the inputs of one call as contiguous numpy arrays, in order. They may be nested.

    Raises:
        ValueError: no input, or an input that is not a tensor or array of numbers.
    """
    parts = [part for _, part in leaves(value)]
    if not parts:
        raise ValueError("inputs must be at least one tuple of at least one tensor, got none")
    return tuple(map(_to_array, parts))


def to_samples(values: Iterable[SampleLike], examples: Sample, purpose: str, names: Sequence[str] = ()) -> list[Sample]:
    """Return ``values`` as samples with the batch size of ``examples``: a batch of 32 becomes 32 samples of 1.

    ``examples``: the example inputs, one array for each input.
    ``purpose``: the name of the samples in errors: "calibration" or "evidence".
    ``names``: the dotted names of the inputs.

    1. A dict of batches: inputs are taken by name, and the rest is dropped.
    2. ``(image, label)`` for one input: the label is dropped.
    3. Numbers, text and None in a nested sample are constants of the network, and are dropped.
    4. Floats of other types become those of ``examples``; integers too, where no value can change.

    What cases 1 and 2 drop is said once.

    Raises:
        ValueError: no sample, other shapes or types than those of ``examples``, NaN or infinity.
    """
    found: list[Sample] = []
    told = False
    for value in values:
        chosen, dropped = _choose(value, examples, names, purpose)
        if dropped and not told:
            tell(f"{purpose}: {dropped} of each sample is dropped, since the network has no such input")
            told = True
        sample = in_types(tuple(map(_to_array, chosen)), [part.dtype for part in examples])
        pieces = _pieces(sample, examples)
        if not pieces or [part.dtype for part in sample] != [part.dtype for part in examples]:
            raise ValueError(f"{purpose} inputs are {in_words(sample)}, the example inputs {in_words(examples)}")
        found.extend(pieces)
    _require_finite(found, purpose)
    return found


def _require_finite(samples: Samples, purpose: str) -> None:
    if not samples:
        raise ValueError("inputs must be at least one tuple of at least one tensor, got none")
    if not all(np.isfinite(part).all() for sample in samples for part in sample if part.dtype.kind == "f"):
        raise ValueError(f"{purpose} inputs hold NaN or infinity")


def require_samples(samples: Samples | None) -> Samples:
    """Return ``samples``. Raise ValueError if there are none."""
    if not samples:
        raise ValueError("int8 needs calibration inputs; pass calibration=[(array, ...), ...], about 100 real ones")
    return samples


def random_sample(tensors: Sequence[TensorSpec]) -> Sample:
    """Return a seeded sample of the given shapes and types: normal noise; integers are 0, which is a valid index."""
    rng = np.random.default_rng(0)
    return tuple(
        rng.standard_normal(tensor.shape).astype(tensor.dtype)
        if tensor.dtype.startswith("float")
        else np.zeros(tensor.shape, tensor.dtype)
        for tensor in tensors
    )


def noise(examples: Sample, seed: int) -> Sample:
    """Return seeded normal noise with the mean and spread of each channel, within the range of the whole input.

    1. A floating-point input: noise; axis 1 holds the channels. One value has a spread of 1, and so has a constant.
    2. Any other input: unchanged.
    """
    rng = np.random.default_rng(seed)
    return tuple(_noise_like(value, rng) if value.dtype.kind == "f" else value for value in examples)


def tell(line: str) -> None:
    """Write a line for the user to the log ``hnas.export``, which goes to standard error by default."""
    logging.getLogger("hnas.export").warning("%s", line)


def in_words(sample: Sample) -> str:
    """Return types and shapes for an error: float32[1, 3, 8, 8], int64[1]."""
    return ", ".join(f"{part.dtype}{list(part.shape)}" for part in sample)


def _choose(value: Any, examples: Sample, names: Sequence[str], purpose: str) -> tuple[list[Any], str]:
    """Return the inputs in a value, and words on what else it holds (cases 1 to 3 of ``to_samples``)."""
    given = list(leaves(value))
    if isinstance(value, Mapping):
        return _choose_by_name(dict(given), names, purpose)
    pair = isinstance(value, tuple | list) and len(value) == 2 and len(examples) == 1
    if pair and given[0][1] is value[0]:
        return [value[0]], "the second value"
    if len(given) > len(examples):
        given = [pair for pair in given if not isinstance(pair[1], str | int | float | None)]
    return [part for _, part in given], ""


def _choose_by_name(given: Mapping[str, Any], names: Sequence[str], purpose: str) -> tuple[list[Any], str]:
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"{purpose} has no {', '.join(missing)}; it holds {', '.join(given) or 'nothing'}")
    return [given[name] for name in names], ", ".join(name for name in given if name not in names)


def in_types(sample: Sample, dtypes: Sequence[np.dtype[Any]]) -> Sample:
    """Return the sample in other types: floats in another float type, integers in a type that has all values.

    Any other value is unchanged, and so is a sample of another number of values.
    """
    if len(sample) != len(dtypes):
        return sample

    def cast(value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        kinds = value.dtype.kind + dtype.kind
        alike = kinds == "ff" or (kinds in ("ii", "ui") and np.can_cast(value.dtype, dtype, "safe"))
        return value.astype(dtype) if alike else value

    return tuple(map(cast, sample, dtypes))


def _to_array(value: Any) -> NDArray[Any]:
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # numpy has no such type
        value = value.float()
    plain = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    if not isinstance(plain, np.ndarray) or plain.dtype.kind not in "biuf":
        raise ValueError(f"inputs must be tensors or arrays of numbers, got {type(value).__name__}")
    return np.ascontiguousarray(plain).reshape(plain.shape)


def _pieces(sample: Sample, examples: Sample) -> list[Sample]:
    """Return the sample split into pieces with the batch size of ``examples``; none if the shapes do not allow it."""
    if [part.shape for part in sample] == [part.shape for part in examples]:
        return [sample]
    if all(part.ndim for part in sample) and [part.shape[1:] for part in sample] == [part.shape for part in examples]:
        return list(zip(*sample, strict=True)) if len(set(map(len, sample))) == 1 else []  # it takes no batches
    return [
        tuple(a[index * len(b) : (index + 1) * len(b)] for a, b in zip(sample, examples, strict=True))
        for index in range(_batches(sample, examples))
    ]


def _batches(sample: Sample, examples: Sample) -> int:
    """Return how many batches of ``examples`` the sample holds; 0 where the shapes do not allow a split."""
    pairs = list(zip(sample, examples, strict=False))
    if len(sample) != len(examples) or not all(a.ndim and b.ndim and a.shape[1:] == b.shape[1:] for a, b in pairs):
        return 0
    counts = {divmod(len(a), len(b)) if len(b) else (0, 1) for a, b in pairs}
    (count, rest), *others = counts
    return 0 if others or rest else count


def _noise_like(value: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    plain = value.astype(np.float64)
    drawn: NDArray[Any] = np.asarray(rng.standard_normal(value.shape))
    if plain.size < 2 or plain.std() == 0.0:
        return np.asarray(drawn + (plain.mean() if plain.size else 0.0), value.dtype)
    whole = plain.ndim < 2 or plain.size < _MEASURED * plain.shape[1]  # too few values for statistics per channel
    axes = None if whole else tuple(axis for axis in range(plain.ndim) if axis != 1)
    drawn = drawn * plain.std(axes, keepdims=True) + plain.mean(axes, keepdims=True)
    drawn = drawn.clip(plain.min(), plain.max())
    return drawn.astype(value.dtype)
