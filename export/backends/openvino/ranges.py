"""Give NNCF the calibration methods of `hnas.export.int8.ranges`: ``with estimator("unseen", ...) as found``.

NNCF keeps a histogram of 2,048 bins of each activation. Its own search for a range on that histogram is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np

from hnas.export.int8.ranges import BINS, METHODS, Ends, require_method


@contextmanager
def estimator(method: str, *, symmetric: bool) -> Iterator[Any]:
    """Yield NNCF's range estimator of a method. It is valid in the block.

    symmetric: whether activations are quantised symmetrically. NNCF then reads the upper end of a histogram alone: it
        gets the larger magnitude, unless no value is negative.

    Raises:
        ValueError: the method is unknown.
    """
    require_method(method)
    from nncf.quantization.algorithms.min_max import algorithm
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    if METHODS[method] is None:
        yield RangeEstimatorParametersSet.MINMAX
        return
    theirs = algorithm.HistogramAggregator
    algorithm.HistogramAggregator = partial(_aggregator(), method, symmetric)
    try:
        yield RangeEstimatorParametersSet.HISTOGRAM
    finally:
        algorithm.HistogramAggregator = theirs


@cache
def _aggregator() -> Any:
    """Return the class that collects the histogram of an activation, and reduces it to a range by a method."""
    from nncf.common.tensor_statistics.collectors import HistogramAggregator
    from nncf.common.tensor_statistics.statistics import MinMaxTensorStatistic
    from nncf.tensor import Tensor

    class Ranges(HistogramAggregator):  # type: ignore[misc]
        def __init__(self, method: str, symmetric: bool, num_samples: int | None = None) -> None:
            super().__init__(bins=BINS, num_samples=num_samples)
            self._method, self._symmetric, self._ends = method, symmetric, Ends()

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
            if self._symmetric and low < 0:
                low, high = min(low, -high), max(-low, high)
            found = {MinMaxTensorStatistic.MIN_STAT: low, MinMaxTensorStatistic.MAX_STAT: high}
            return {name: Tensor(np.array(end, np.float32)) for name, end in found.items()}

    return Ranges
