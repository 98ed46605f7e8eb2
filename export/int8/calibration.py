"""Find the range of values of each activation that an int8 grid must cover, by five methods.

Use: ``activation_ranges(program, samples, "minmax")``. Memory use is constant for any number of samples, because only
running extremes and histograms are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from hnas.export.device.errors import ExportError
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples, require_samples
from hnas.export.int8.ranges import BINS, COUNTED, METHODS, Ends, Range, require_method


def activation_ranges(program: Program, samples: Samples, method: str = "minmax") -> dict[str, Range]:
    """Return the range to quantise each floating-point value of the graph to, by node name, inputs included.

    samples: inputs of the program; each sample is a tuple of arrays with the shapes and types of the inputs.
    method: one of these:

    1. minmax: the lowest and the highest value over all samples.
    2. percentile: 99.99 % of the values; equal shares are cut off at both ends (arXiv 2004.09602, 3.2).
    3. entropy: clipped at the threshold with the least Kullback-Leibler divergence of the quantised magnitudes
       (Migacz, 8-bit inference with TensorRT, GTC 2017).
    4. mse: the range whose 256 levels have the least squared error on the histogram (arXiv 1810.05723).
    5. unseen: as mse, on a mixture: three quarters are the values of the samples, a quarter is these values times 1.3,
       as samples of other things may have them. An end that two samples reach exactly is a bound, as of a ReLU6, and
       does not move.

    Methods 2 to 5 run up to 32 evenly chosen samples a second time for the histograms. Infinities (masks) are left out;
    a value that is infinite everywhere has the range (0, 0). Constants have no entry. A range is the observed one: a
    quantiser that must represent 0 widens it.

    Raises:
        ValueError: the method is unknown, or there are no samples.
        ExportError: a value is NaN.

    Example: ``activation_ranges(program, samples, "entropy")["conv2d"]`` returns ``(-1.9, 2.3)``.
    """
    require_method(method)
    samples = require_samples(samples)
    ends: dict[str, Ends] = {}
    observe(program, samples, lambda name, value: ends.setdefault(name, Ends()).widen(*_extremes(name, value)))
    seen = {name: found.seen(method) for name, found in ends.items()}
    reduce = METHODS[method]
    if reduce is None:  # case 1
        return seen
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name, (low, high) in seen.items() if low < high}

    def count(name: str, value: Tensor) -> None:
        if name in counts:
            counts[name] += torch.histc(value.float(), BINS, *seen[name])

    observe(program, samples[:: -(-len(samples) // COUNTED)], count)
    return {name: reduce(counts[name].numpy(), found) if name in counts else found for name, found in seen.items()}


def observe(program: Program, samples: Samples, see: Callable[[str, Tensor], None]) -> None:
    """Run the program on every sample. Call ``see(name, value)`` for each floating-point value except constants."""

    class Observed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value: object = super().run_node(n)
            if n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
                see(n.name, value)
            return value

    interpreter = Observed(program.module)
    with torch.no_grad():
        for sample in samples:
            interpreter.run(*(torch.from_numpy(array) for array in sample))


def _extremes(name: str, value: Tensor) -> Range:
    """Return the finite extremes of a value, or (inf, -inf) if no element is finite. Raise ExportError for NaN."""
    if not value.numel():
        return math.inf, -math.inf
    low, high = (float(extreme) for extreme in torch.aminmax(value))
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    if bool(torch.isnan(value).any()):
        raise ExportError(f"value {name} is NaN on a calibration sample; check the weights and that sample")
    finite = value[torch.isfinite(value)]
    return _extremes(name, finite)
