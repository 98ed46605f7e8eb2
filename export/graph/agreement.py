"""Compare the outputs of two forms of one network: ``same_values(expected, got, HALF_DB)``. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF_DB = 10.0  # of a network in float32 against itself in half precision: less is an error of the conversion
SINGLE_DB = 60.0  # of two forms of a network that both compute in float32: sums in another order have more
_DOUBLE_DB = 90.0  # of a network in float32 against itself in float64, as for an artifact in fp32
_SLACK_DB, _FLOOR_DB = 15.0, 30.0  # as for an artifact whose network amplifies rounding


def same_values(expected: Sequence[Any], got: Sequence[Any], least_db: float) -> bool:
    """Return whether two lists of arrays have the same shapes, and every pair has an SQNR of ``least_db`` or more.

    1. A value that is not finite in one of a pair is left out, because half precision overflows.
    2. A pair of equal arrays, also of zeros: the same. So is a pair whose mean squared difference is below 1e-6 for 10
       dB and a tenth of it for each further 10 dB: a sum of zero has an error and no signal.

    Example: ``same_values([np.ones(3)], [np.full(3, 1.001)], HALF_DB)`` is True.
    """
    return all(_same(want, have, least_db) for want, have in zip(expected, got, strict=True))


def least_of_double(expected: Sequence[Any], moved: Sequence[Any]) -> float:
    """Return the SQNR in dB that a network in float32 must have against itself in float64.

    expected: its outputs in float64.
    moved: its outputs in float64 where each input is changed by one unit in the last place of float32.

    A network that keeps less than 105 dB of that change may have 15 dB less than it keeps, but at least 30 dB.
    """
    kept = [_level(_plain(want), _plain(have)) for want, have in zip(expected, moved, strict=True)]
    return min(_DOUBLE_DB, max(min(kept, default=math.inf) - _SLACK_DB, _FLOOR_DB))


def _same(want: Any, have: Any, least_db: float) -> bool:
    if np.shape(want) != np.shape(have):
        return False
    exact, other = _plain(want), _plain(have)
    finite = np.isfinite(exact) & np.isfinite(other)  # case 1
    noise = float(np.square(other[finite] - exact[finite]).sum())
    if noise < max(1, exact.size) * 10 ** (-5 - least_db / 10):  # case 2
        return True
    return _level(exact[finite], other[finite]) >= least_db


def _level(exact: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the SQNR in dB: infinite for equal values, minus infinite for an error of zeros."""
    signal, noise = float(np.square(exact).sum()), float(np.square(other - exact).sum())
    if noise == 0.0 or not math.isfinite(noise):
        return math.inf if noise == 0.0 else -math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _plain(value: Any) -> NDArray[np.float64]:
    return np.asarray(value).astype(np.float64)
