"""Measure the extra time of a conversion in a separate process: ``python -m hnas.benchmarks.costs.overhead``.

N conversions of one network by a compiler process that already runs are interleaved with N conversions in this process.
The overhead is the difference within a pair. ``--whole`` also compiles the network for every CPU backend in fp32 and
int8 in a new process, and measures time and peak memory. The command needs a machine without other load.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hnas.benchmarks.peers.limits import measure_limits

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

_BACKENDS = ("onnxruntime", "openvino", "tflite")
MOST_MS = 150.0  # largest allowed overhead of a conversion


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a line for each backend. Return 1 if an interval lies above the limit, else 0."""
    from hnas.benchmarks.peers import nets as export_nets

    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.overhead", description=__doc__)
    parser.add_argument("--net", choices=(*export_nets.names(), *export_nets.TINY), default="mobilenetv3")
    parser.add_argument("--backends", nargs="+", choices=_BACKENDS, default=_BACKENDS)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument(
        "--jobs", type=int, default=20, metavar="N", help="pairs of conversions (default 20, at least 6)"
    )
    parser.add_argument("--whole", action="store_true", help="also measure the network through all backends")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    if options.jobs < 6:
        parser.error(f"--jobs is {options.jobs}; an interval of 95 % needs 6 or more")
    found = [measure_overhead(options.net, backend, options.precision, options.jobs) for backend in options.backends]
    record: dict[str, Any] = {"net": options.net, "precision": options.precision, "overhead": found}
    if options.whole:
        record["whole"] = measure_limits(options.net, tuple(options.backends))
    print(json.dumps(record, indent=1) if options.json else "\n".join(_lines(record)))  # noqa: T201 - the output
    return int(any(each["low_ms"] > MOST_MS for each in found))


@dataclass(frozen=True)
class _Conversion:
    """A conversion that is run again and again: program, backend, precision, device and calibration."""

    backend: str
    program: Program
    precision: str
    device: Device
    calibration: Samples | None

    def time(self, way: Callable[..., object], folder: Path) -> float:
        """Return the seconds of the conversion with ``way``, into a new folder."""
        folder.mkdir()
        begun = time.perf_counter()
        way(
            self.backend,
            self.program,
            folder,
            precision=self.precision,
            device=self.device,
            threads=1,
            calibration=self.calibration,
        )
        return time.perf_counter() - begun


def measure_overhead(name: str, backend: str, precision: str, jobs: int) -> dict[str, Any]:
    """Return how many milliseconds longer a conversion takes in a compiler process that already runs.

    The result has the median of ``jobs`` pairs and its 95 % interval.
    """
    import torch

    from hnas import hw_profiles
    from hnas.benchmarks.peers import nets as export_nets
    from hnas.export.compiling.compiler import Compiler
    from hnas.export.compiling.conversion import convert
    from hnas.export.graph.fusion import fuse, passes_for
    from hnas.export.graph.program import capture

    torch.set_num_threads(1)
    net = export_nets.load(name)
    program = fuse(capture(net.module, net.examples), passes_for(backend))
    asked = _Conversion(
        backend=backend,
        program=program,
        precision=precision,
        device=hw_profiles.load(f"{backend}-cpu"),
        calibration=net.calibration if precision == "int8" else None,
    )
    pairs = []
    with TemporaryDirectory() as root, Compiler() as compiler:
        for number in range(jobs + 2):  # the first two pairs import and warm up
            seconds = [
                asked.time(way, Path(root) / f"{number}-{index}")
                for index, way in enumerate((convert, compiler.convert))
            ]
            pairs.append(seconds)
    pairs = pairs[2:]
    low, high = order_interval([1e3 * (there - here) for here, there in pairs])
    here_ms, extra_ms = (1e3 * median(values) for values in (next(zip(*pairs, strict=True)), [b - a for a, b in pairs]))
    return {"backend": backend, "here_ms": here_ms, "extra_ms": extra_ms, "low_ms": low, "high_ms": high, "jobs": jobs}


def order_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median: two order statistics, valid for any distribution."""
    from math import comb

    ordered, count = sorted(values), len(values)
    outside, left = 0.0, 0
    while outside + comb(count, left) / 2**count <= 0.025:
        outside += comb(count, left) / 2**count
        left += 1
    return ordered[left - 1], ordered[count - left]


def _lines(record: dict[str, Any]) -> list[str]:
    said = [
        f"{each['backend']:<12} {record['precision']}: a job takes {each['extra_ms']:.0f} ms more"
        f" [{each['low_ms']:.0f}, {each['high_ms']:.0f}] than the {each['here_ms']:.0f} ms here, n={each['jobs']}"
        for each in record["overhead"]
    ]
    whole = record.get("whole")
    if whole and "error" not in whole:
        net = f"{record['net']} ({whole['parameters'] / 1e6:.1f} M)"
        said.append(f"{net} through all, fp32 and int8: {whole['seconds']} s, {whole['peak_mb'] / 1e3:.2f} GB at most")
    elif whole:
        said.append(f"{record['net']} through all: {whole['error']}")
    return said


if __name__ == "__main__":
    sys.exit(main())
