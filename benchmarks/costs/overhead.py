"""``python -m hnas.benchmarks.costs.overhead``: what it costs that conversion happens in a process of its own.

N conversions of one network through a warm compiler and N of the same in this process, in turns; the overhead of a job
is the difference of a pair. ``--whole`` tells what the network takes through every CPU backend in fp32 and int8, in a
new process: seconds and peak memory. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from hnas.benchmarks.peers.limits import limits

BACKENDS = ("onnxruntime", "openvino", "tflite")
MOST_MS = 150.0  # what a job may cost more than a conversion in this process


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each backend; 1 where the interval of one lies above the limit."""
    from hnas.benchmarks.peers import nets as export_nets

    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.overhead", description=__doc__)
    parser.add_argument("--net", choices=(*export_nets.names(), *export_nets.TINY), default="mobilenetv3")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument(
        "--jobs", type=int, default=20, metavar="N", help="pairs of conversions (default 20, at least 6)"
    )
    parser.add_argument("--whole", action="store_true", help="the network through all of it, too")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    if options.jobs < 6:
        parser.error(f"--jobs is {options.jobs}; an interval of 95 % needs 6 or more")
    found = [overhead(options.net, backend, options.precision, options.jobs) for backend in options.backends]
    record: dict[str, Any] = {"net": options.net, "precision": options.precision, "overhead": found}
    if options.whole:
        record["whole"] = limits(options.net, tuple(options.backends))
    print(json.dumps(record, indent=1) if options.json else "\n".join(_lines(record)))  # noqa: T201 - the output
    return int(any(each["low_ms"] > MOST_MS for each in found))


def overhead(name: str, backend: str, precision: str, jobs: int) -> dict[str, Any]:
    """Milliseconds that a conversion takes longer in a warm compiler: the median of ``jobs`` pairs, its interval."""
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
    asked: dict[str, Any] = {"precision": precision, "device": hw_profiles.load(f"{backend}-cpu"), "threads": 1}
    asked["calibration"] = net.calibration if precision == "int8" else None
    pairs = []
    with TemporaryDirectory() as root, Compiler() as compiler:
        for number in range(jobs + 2):  # the first two import and warm up
            seconds = [
                _seconds(way, backend, program, Path(root) / f"{number}-{index}", asked)
                for index, way in enumerate((convert, compiler.convert))
            ]
            pairs.append(seconds)
    pairs = pairs[2:]
    low, high = interval([1e3 * (there - here) for here, there in pairs])
    here_ms, extra_ms = (1e3 * median(values) for values in (next(zip(*pairs, strict=True)), [b - a for a, b in pairs]))
    return {"backend": backend, "here_ms": here_ms, "extra_ms": extra_ms, "low_ms": low, "high_ms": high, "jobs": jobs}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics between which the median lies with 95 %, whatever the distribution."""
    from math import comb

    ordered, count = sorted(values), len(values)
    outside, left = 0.0, 0
    while outside + comb(count, left) / 2**count <= 0.025:
        outside += comb(count, left) / 2**count
        left += 1
    return ordered[left - 1], ordered[count - left]


def _seconds(way: Callable[..., object], backend: str, program: Any, folder: Path, asked: dict[str, Any]) -> float:
    folder.mkdir()
    begun = time.perf_counter()
    way(backend, program, folder, **asked)
    return time.perf_counter() - begun


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
