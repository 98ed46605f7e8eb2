"""Time a network on the NVIDIA GPU of this machine in PyTorch: eager, torch.compile, and a CUDA graph, in fp16.

``python -m hnas.benchmarks.cuda [--net resnet18] [--runs 200]`` prints one line for each: the baselines of the target
``cuda``, whose artifacts hnas-deploy measures itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hnas import hw_profiles, report
from hnas.benchmarks.peers import nets
from hnas.cli.ending import guarded
from hnas.export.device.errors import Unavailable

_LEAD = 30  # untimed calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or 3 without a GPU that PyTorch can use."""
    parser = argparse.ArgumentParser(prog="python -m hnas.benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="resnet18", choices=nets.names(), help="default: resnet18")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="timed calls of each; default: 200")
    options = parser.parse_args(arguments)
    return guarded(parser.prog, lambda: _run(options.net, options.runs))


def _run(name: str, runs: int) -> int:
    try:
        device = hw_profiles.load("cuda")
    except ValueError as error:
        raise Unavailable(str(error)) from None
    if not torch.cuda.is_available():
        raise Unavailable(f"torch {torch.__version__} has no CUDA: not run on a device here; install a build for CUDA")
    net = nets.load(name)
    inputs = [value.cuda().half() if value.is_floating_point() else value.cuda() for value in net.examples]
    for way, call in _baselines(net.module.cuda().half().eval(), inputs):
        times = time_on_gpu(call, runs)
        figures = f"{median(times):.3f} ms (median, n={len(times)})"
        report.print_lines([f"{device.title}, {name}, fp16, batch 1, {way}: {figures}"])
    return 0


def _baselines(module: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, Callable[[], object]]]:
    """Return the ways to run the module, by name. Inputs stay in the GPU's memory."""
    compiled = torch.compile(module)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        module(*inputs)  # libraries set themselves up outside of the graph
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            module(*inputs)
    return [
        ("eager", torch.inference_mode()(lambda: module(*inputs))),
        ("torch.compile", torch.inference_mode()(lambda: compiled(*inputs))),
        ("CUDA graph", graph.replay),
    ]


def time_on_gpu(call: Callable[[], object], runs: int) -> list[float]:
    """Return the milliseconds of each of ``runs`` calls, by events of the GPU, after 30 untimed ones."""
    event: Any = torch.cuda.Event  # it has no types
    for _ in range(_LEAD):
        call()
    times = []
    for _ in range(runs):
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


if __name__ == "__main__":
    sys.exit(main())
