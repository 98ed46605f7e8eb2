"""Measure the extra time of weight sharing on this machine: ``python -m hnas.benchmarks.costs.supernet``.

1. A sandwich step of the supernet, and of the same five subnets as plain modules with torch's own SGD. Both run
   interleaved on the same batch, with new subnets in every step. The supernet's time includes its views and masks; the
   time to build the plain modules is left out.
2. The view of a subnet that was viewed before, and skeleton and view of a new one, in the space of 22 layers.
3. The angle scores of all operations of that space, from 1,000 samples each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from hnas import spaces
from hnas.export.proof.statistics import ratio_interval
from hnas.memory import channels_last, reuse_memory
from hnas.shrinking.evidence import angle
from hnas.space import Arch
from hnas.strategies import sandwich
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.optimiser import MaskedSGD

_BATCH, _RATE, _CLASSES = 128, 0.1, 10
_LAYERS = "padnas_mobile"  # the space of 22 layers


def _step_of_supernet(supernet: Supernet, optimiser: MaskedSGD, archs: Sequence[Arch], x: Tensor, y: Tensor) -> None:
    """Train the subnets on one batch; the first teaches the others."""
    _backward([partial(supernet, arch) for arch in archs], supernet.space, archs, x, y)
    optimiser.step(_RATE, [supernet.where(arch) for arch in archs])
    supernet.changed()


def _step_of_modules(
    nets: Sequence[nn.Module], optimiser: torch.optim.Optimizer, space: Any, archs: Sequence[Arch], x: Tensor, y: Tensor
) -> None:
    """Do the same with networks that have their own weights."""
    _backward(nets, space, archs, x, y)
    optimiser.step()
    optimiser.zero_grad()


def _backward(
    nets: Sequence[Callable[[Tensor], Tensor]], space: Any, archs: Sequence[Arch], x: Tensor, y: Tensor
) -> None:
    teacher = None
    for net, arch in zip(nets, archs, strict=True):
        (shape,) = space.example(arch)
        sized = F.interpolate(x, shape[-2:]) if x.shape[-2:] != shape[-2:] else x
        outputs = net(channels_last(sized))
        target = y if teacher is None else teacher
        F.cross_entropy(outputs, target).backward()  # type: ignore[no-untyped-call]
        teacher = outputs.detach().softmax(1) if teacher is None else teacher


def _time_steps(count: int, advance: Callable[[], None]) -> list[tuple[float, float]]:
    """Return the seconds of (plain modules, supernet) for each of ``count`` steps, in random order."""
    space = spaces.load("hybrid_vision")()
    supernet, rng = Supernet(space, 0), Random(0)
    for parameter in supernet.union.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    optimiser = MaskedSGD(dict(supernet.union.named_parameters()))
    (shape,) = space.example(space.largest)
    found = []
    for step in range(count + 2):
        archs = [path.arch for path in sandwich.pick(space, rng)]
        nets = [_plain(supernet, arch) for arch in archs]
        own = torch.optim.SGD(
            [p for net in nets for p in net.parameters()], _RATE, 0.9, nesterov=True, weight_decay=5e-4
        )
        x, y = torch.randn(_BATCH, *shape), torch.randint(_CLASSES, (_BATCH,))
        ways = {
            "plain": lambda: _step_of_modules(nets, own, space, archs, x, y),  # noqa: B023 - called in this iteration
            "ours": lambda: _step_of_supernet(supernet, optimiser, archs, x, y),  # noqa: B023
        }
        order = rng.sample(sorted(ways), 2)
        seconds = {name: _seconds(ways[name]) for name in order}
        if step >= 2:  # the first two steps are warm-up
            found.append((seconds["plain"], seconds["ours"]))
            advance()
    return found


def _plain(supernet: Supernet, arch: Arch) -> nn.Module:
    """Return the subnet as a plain module in training mode, with a copy of the weights in the same memory layout."""
    view = supernet.view(arch)
    net = supernet.space.build(arch).train()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(view[name])
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _time_views(count: int) -> tuple[float, float]:
    """Return the median milliseconds of a cached view, and of skeleton and view of a new subnet."""
    space = spaces.load(_LAYERS)()
    supernet = Supernet(space, 0)
    archs = [space.sample(Random(seed)) for seed in range(count)]
    fresh = [_seconds(partial(supernet.view, arch)) for arch in archs]
    again = [_seconds(partial(supernet.view, arch)) for arch in archs]
    return 1e3 * statistics.median(again), 1e3 * statistics.median(fresh)


def _time_angles() -> tuple[float, int]:
    """Return the seconds of the angle scores of all operations, and the number of operations."""
    space = spaces.load(_LAYERS)()
    study = Study(Supernet(space, 0), cast("Any", None))  # only the weights are read
    begun = perf_counter()
    found = angle.scores(study, space, samples=1000)
    return perf_counter() - begun, len(found)


def _seconds(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[], None]]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=total)
        yield lambda: bar.advance(task)


def main(arguments: list[str] | None = None) -> int:
    """Measure all three costs and print them."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.supernet", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps that are timed (default 40)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    reuse_memory()
    with _progress(Console(stderr=True), options.steps) as advance:
        pairs = np.array(_time_steps(options.steps, advance))
    ratio, low, high = ratio_interval(np.log(pairs[:, 1] / pairs[:, 0]).reshape(1, -1))
    cached, fresh = _time_views(100)
    seconds, operations = _time_angles()
    found = {
        "step": {
            "ratio": ratio,
            "low": low,
            "high": high,
            "pairs": len(pairs),
            "plain_ms": 1e3 * float(np.median(pairs[:, 0])),
        },
        "view_ms": {"cached": cached, "uncached": fresh},
        "angle": {"seconds": seconds, "operations": operations},
    }
    if options.json:
        print(json.dumps(found, indent=1))  # noqa: T201 - the output
        return 0
    say = Console().print
    say(f"sandwich step  {ratio:.3f}x [{low:.3f}, {high:.3f}] the time of plain modules, {len(pairs)} pairs of steps")
    say(f"view           {cached:.2f} ms of a known subnet, {fresh:.1f} ms of a new one (medians, {_LAYERS})")
    say(f"angle scores   {seconds:.2f} s for {operations} operations, 1,000 samples each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
