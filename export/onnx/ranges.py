"""Find the range of each value of an ONNX file by the methods of int8: ``file_ranges(path, samples, "mse")``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.int8.ranges import BINS, COUNTED, METHODS, Ends, Range, require_method
from hnas.export.int8.unlike import Array
from hnas.export.onnx.apart import FileNetwork

if TYPE_CHECKING:
    from hnas.export.graph.samples import Samples


def file_ranges(path: Path, samples: Samples, method: str) -> dict[str, Range]:
    """Return the range to quantise each floating-point value of the file to, by its name, inputs included.

    The methods are those of `hnas.export.int8.calibration.activation_ranges`. A file with branches has no ranges.

    Raises:
        ValueError: the method is unknown.

    Example: ``file_ranges(Path("net.onnx"), samples, "mse")["conv1_out"]`` is ``(-1.9, 2.3)``.
    """
    require_method(method)
    network = FileNetwork(path)
    names = list(network.calls)
    ends = {name: Ends() for name in names}

    def widen(name: str, value: Array) -> None:
        finite = value[np.isfinite(value)]
        if finite.size:
            ends[name].widen(float(finite.min()), float(finite.max()))

    network.observe(samples, names, widen)
    seen = {name: found.seen(method) for name, found in ends.items()}
    reduce = METHODS[method]
    if reduce is None:
        return seen
    counts = {name: np.zeros(BINS) for name, (low, high) in seen.items() if low < high}

    def count(name: str, value: Array) -> None:
        if name in counts:
            counts[name] += np.histogram(value[np.isfinite(value)], BINS, seen[name])[0]

    network.observe(samples[:: -(-len(samples) // COUNTED)], names, count)
    return {name: reduce(counts[name], found) if name in counts else found for name, found in seen.items()}
