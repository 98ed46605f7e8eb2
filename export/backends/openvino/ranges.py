"""Give NNCF the calibration methods of `hnas.export.int8.calibration`: ``with estimator("unseen") as parameters``.

NNCF keeps a histogram of 2,048 bins of each activation. Its own search for a range on that histogram is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from nncf.common.tensor_statistics.collectors import HistogramAggregator
from nncf.common.tensor_statistics.statistics import MinMaxTensorStatistic
from nncf.quantization import range_estimator
from nncf.quantization.algorithms.min_max import algorithm
from nncf.tensor import Tensor

from hnas.export.int8.ranges import BINS, METHODS, Ends


@contextmanager
def estimator(method: str) -> Iterator[Any]:
    """Yield NNCF's range estimator of a method. It is valid in the block.

    Raises:
        ValueError: the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"no calibration method {method!r}; known: {', '.join(METHODS)}")
    if METHODS[method] is None:
        yield range_estimator.RangeEstimatorParametersSet.MINMAX
        return
    theirs = algorithm.HistogramAggregator

    def ours(num_samples: int | None = None) -> _Ranges:
        return _Ranges(method, num_samples)

    algorithm.HistogramAggregator = ours
    try:
        yield range_estimator.RangeEstimatorParametersSet.HISTOGRAM
    finally:
        algorithm.HistogramAggregator = theirs


class _Ranges(HistogramAggregator):  # type: ignore[misc]
    """Collect the histogram of an activation, and reduce it to a range by a method."""

    def __init__(self, method: str, num_samples: int | None) -> None:
        super().__init__(bins=BINS, num_samples=num_samples)
        self._method, self._ends = method, Ends()

    def _register_reduced_input_impl(self, x: Any) -> None:
        finite = x.data[np.isfinite(x.data)]
        if finite.size:
            self._ends.widen(float(finite.min()), float(finite.max()))
            super()._register_reduced_input_impl(Tensor(finite))

    def _aggregate_impl(self) -> dict[str, Any]:
        reduce, (low, high) = METHODS[self._method], self._ends.seen(self._method)
        if reduce is not None and low < high:
            edges = np.linspace(self.min_val, self.max_val, self.bins + 1)
            centres = (edges[1:] + edges[:-1]) / 2
            counts, _ = np.histogram(centres, BINS, (low, high), weights=self.histogram.data)
            low, high = reduce(counts, (low, high))
        found = {MinMaxTensorStatistic.MIN_STAT: low, MinMaxTensorStatistic.MAX_STAT: high}
        return {name: Tensor(np.array(end, np.float32)) for name, end in found.items()}
