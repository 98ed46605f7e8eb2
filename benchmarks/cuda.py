"""Time a network on the NVIDIA GPU of this machine in fp16: eager PyTorch, torch.compile, a CUDA graph, and hnas.

``python -m hnas.benchmarks.cuda [--net resnet18] [--runs 200]`` builds the artifact of the target ``cuda`` and prints
one line for each way. All are timed by one clock, from the call until the GPU has finished; inputs and outputs stay in
the memory of the GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from hnas import export, hw_profiles, report
from hnas.benchmarks.cli import count
from hnas.benchmarks.peers import nets
from hnas.benchmarks.peers.nets.parts import PeerNet
from hnas.cli.ending import guarded
from hnas.export.device.errors import ExportError, Unavailable

_LEAD = 30  # untimed calls
_ROUNDS = 5  # the ways are interleaved, so that a change of the clock meets all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or 3 without a GPU that PyTorch can use."""
    parser = argparse.ArgumentParser(prog="python -m hnas.benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="resnet18", choices=nets.names(), help="default: resnet18")
    parser.add_argument("--runs", type=count, default=200, metavar="N", help="timed calls of each; default: 200")
    options = parser.parse_args(arguments)
    return guarded(parser.prog, lambda: _run(options.net, options.runs))


def _run(name: str, runs: int) -> int:
    try:
        device = hw_profiles.load("cuda")
    except ValueError as error:
        raise Unavailable(str(error)) from None
    if not torch.cuda.is_available():
        raise Unavailable(f"torch {torch.__version__} has no CUDA: not run on a device here; install a build for CUDA")
    net, said = nets.load(name), f"{device.title}, {name}, fp16, batch 1"
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = _artifact(net, Path(folder, name))
        except (ExportError, Unavailable) as error:
            found = {}
            report.print_lines([f"{said}, hnas: not timed: {error}"])
        inputs = [value.cuda().half() if value.is_floating_point() else value.cuda() for value in net.examples]
        ways = {**_baselines(net.module.cuda().half().eval(), inputs), **found}
        for way, times in time_interleaved(ways, runs).items():
            report.print_lines([f"{said}, {way}: {1e3 * median(times):.3f} ms (median, n={len(times)})"])
    return 0


def _artifact(net: PeerNet, path: Path) -> dict[str, Callable[[], object]]:
    """Build the artifact and open it in this process. Return a call on inputs in the GPU's memory, by name.

    Raises:
        ExportError: it cannot be built, or does not verify, or each call would start trtexec.
        Unavailable: there is no runtime for it.
    """
    options = export.CompileOptions(evidence=net.evidence)
    runner: Any = export.load(
        export.compile(net.module, net.examples, device="cuda", precision="fp16", path=path, options=options)
    )
    by = runner.report["by"]
    if hasattr(runner, "times"):
        raise ExportError(f"{by} has a clock of its own; install TensorRT's Python bindings to compare")
    return {f"hnas in {by}": runner.bind(*(value.numpy() for value in net.examples))}


def _baselines(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Callable[[], object]]:
    """Return the ways of PyTorch to run the module, by name. Inputs stay in the GPU's memory."""
    compiled = torch.compile(module)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        module(*inputs)  # libraries set themselves up outside of the graph
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            module(*inputs)
    return {
        "eager": torch.inference_mode()(lambda: module(*inputs)),
        "torch.compile": torch.inference_mode()(lambda: compiled(*inputs)),
        "CUDA graph": graph.replay,
    }


def time_interleaved(ways: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return the seconds of ``runs`` calls of each way, until the GPU has finished, after 30 untimed ones."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        for _ in range(_LEAD):
            call()
    for turn in range(_ROUNDS):
        for way, call in ways.items():
            torch.cuda.synchronize()
            for _ in range(turn, runs, _ROUNDS):
                start = perf_counter()
                call()
                torch.cuda.synchronize()
                times[way].append(perf_counter() - start)
    return times


if __name__ == "__main__":
    sys.exit(main())
