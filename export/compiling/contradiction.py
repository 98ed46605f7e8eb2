"""Find calibration samples that contradict the example inputs: ``contradiction(calibration, examples)``. Needs numpy.

int8 fits its ranges to the calibration samples. Samples of another scale give an artifact that verifies on these
samples alone, and computes noise on the inputs that the network gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.graph.samples import Sample, Samples

SUSPICIOUS = 3.0  # a scale this many times another is refused where int8 fails on the examples as well
_ANOTHER = 16.0  # a scale this many times another is refused; photographs in 0..255 and in 0..1 differ by 255
_FEW = 4  # values of an input; fewer have no statistics
_ENOUGH = 64  # calibration values of an input; fewer may all be equal by chance
_WIDE = 8.0  # distance between channel means, in spreads of the calibration samples
_DISTINCT = 5.0  # spread of the channel means of an example, in standard errors; noise has 1
_WHITE = 0.2  # autocorrelation of neighbours; photographs have 0.8 and more
_MANY = 256  # values of an input from which its autocorrelation is measured


@dataclass(frozen=True)
class Contradiction:
    """Hold how the scale of one calibration input differs from that of its example.

    ratio: how many times one scale is the other; infinite for a constant or another layout.
    words: the difference, with both ranges.
    """

    ratio: float
    words: str

    @property
    def certain(self) -> bool:
        """Return whether the difference alone is a reason to refuse the calibration."""
        return self.ratio > _ANOTHER


def contradiction(calibration: Samples, examples: Sample) -> Contradiction | None:
    """Return the largest difference of scale between calibration samples and examples; None if there is none.

    1. An example that is constant, has only zeros and ones, or fewer than four values: not judged.
    2. Calibration that is constant where the example varies.
    3. Both the root mean square and the largest magnitude of the example lie outside those of all calibration samples,
       in the same direction. The ratio is the smaller of the two.
    4. Channel means that fit another axis: the layout differs.

    Example: ``contradiction([(images * 255,)], (image,)).words``.
    """
    found = [_compare(index, [s[index] for s in calibration], value) for index, value in enumerate(examples)]
    return max(filter(None, found), key=lambda each: each.ratio, default=None)


def carries_nothing(examples: Sample) -> bool:
    """Return whether every floating-point example is constant, so that calibration cannot be compared with it."""
    floats = [value for value in examples if value.dtype.kind == "f"]
    return bool(floats) and all(_is_constant(value) for value in floats)


def is_placeholder(examples: Sample) -> bool:
    """Return whether the examples may be noise: no floating-point input has neighbours that are alike."""
    return not any(_autocorrelation(value) > _WHITE for value in examples if value.dtype.kind == "f")


def _compare(index: int, samples: Sequence[NDArray[Any]], example: NDArray[Any]) -> Contradiction | None:
    if example.size < _FEW or example.dtype.kind == "b" or np.isin(example, (0, 1)).all() or _is_constant(example):
        return None  # case 1
    ends = min(float(sample.min()) for sample in samples), max(float(sample.max()) for sample in samples)
    words = f"input {index} is {_range(*ends)} in calibration and {_range(example.min(), example.max())} in the example"
    if ends[0] == ends[1]:  # case 2
        return Contradiction(np.inf, words) if len(samples) * example.size >= _ENOUGH else None
    if example.dtype.kind != "f":
        return None
    if _is_transposed(samples, example):  # case 4
        return Contradiction(np.inf, f"input {index} has its channels on another axis in calibration; {words}")
    pairs = [_outside([scale(s) for s in samples], scale(example)) for scale in (_rms, _largest)]  # case 3
    if pairs[0] * pairs[1] <= 0:
        return None
    return Contradiction(float(np.exp(min(map(abs, pairs)))), words)


def _outside(scales: Sequence[float], scale: float) -> float:
    """Return how far the logarithm of ``scale`` lies outside of the others, less three times their spread.

    Fewer than four samples show no spread: a factor of three is assumed.
    """
    logs, own = np.log(np.maximum(scales, 1e-30)), np.log(max(scale, 1e-30))
    spread = max(3.0 * float(logs.std()), np.log(3.0) if len(scales) < _FEW else 0.0)
    above, below = own - logs.max() - spread, logs.min() - own - spread
    return float(max(above, 0.0) - max(below, 0.0))


def _rms(value: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(value, dtype=np.float64).mean()))


def _largest(value: NDArray[Any]) -> float:
    return float(np.abs(value).max())


def _is_constant(value: NDArray[Any]) -> bool:
    return bool(value.size == 0 or (value == value.flat[0]).all())


def _is_transposed(samples: Sequence[NDArray[Any]], example: NDArray[Any]) -> bool:
    """Return whether the means over axis 1 of the example fit another axis of the samples, and not their axis 1."""
    others = [axis for axis in range(2, example.ndim) if example.shape[axis] == example.shape[1]]
    if not others or example.shape[1] < _FEW or len(samples) < _FEW:
        return False
    wanted = _profile(example, 1)
    if float(wanted.std()) < _DISTINCT * float(example.std()) / np.sqrt(example.size / example.shape[1]):
        return False  # noise: its channels are alike

    def distance(axis: int) -> float:
        profiles = np.stack([_profile(sample, axis) for sample in samples])
        spread = profiles.std(0) + 1e-3 * max(float(np.abs(profiles).max()), 1e-30)
        return float(np.sqrt(np.square((wanted - profiles.mean(0)) / spread).mean()))

    return distance(1) > _WIDE and any(distance(axis) < _WIDE / 2 for axis in others)


def _profile(value: NDArray[Any], axis: int) -> NDArray[Any]:
    found: NDArray[Any] = value.astype(np.float64).mean(tuple(each for each in range(value.ndim) if each != axis))
    return found


def _autocorrelation(value: NDArray[Any]) -> float:
    """Return the correlation of neighbours along the last axis; 0 for a constant or for few values."""
    if value.ndim < 2 or value.size < _MANY or value.shape[-1] < _FEW:
        return 0.0
    left, right = value[..., :-1].astype(np.float64).ravel(), value[..., 1:].astype(np.float64).ravel()
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt(np.square(left).sum() * np.square(right).sum()))
    return float((left * right).sum()) / scale if scale else 0.0


def _range(low: float, high: float) -> str:
    low, high = low + 0.0, high + 0.0  # no -0
    return f"constant {low:g}" if low == high else f"{low:.3g} to {high:.3g}"
