"""Measure what waiting threads cost: ``python -m hnas.benchmarks.costs.waiting --busy 2``.

A thread of GNU OpenMP that waits for work turns in a loop before it sleeps: 300,000 times by default, 1,000 times in a
process that has imported hnas. The same steps of training are run with both, interleaved, in fresh processes.
``--busy`` starts as many other programs beside them, which do nothing but compute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median

from hnas.benchmarks.cli import count
from hnas.report import print_lines

_KEY = "GOMP_SPINCOUNT"
_TURNS = {"default of OpenMP": {_KEY: "300000"}, "hnas": {}}  # name -> variables of the process; hnas sets its own
_THREADS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the seconds of the steps with each number of turns: the median, the least and the most."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.waiting", description=main.__doc__)
    parser.add_argument("--busy", type=count, default=0, metavar="N", help="programs beside it (default %(default)s)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="of training (default %(default)s)")
    parser.add_argument("--repeats", type=count, default=5, metavar="N", help="processes of each (default %(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print_lines([f"{_train(options.steps):.3f}"])
        return 0
    found: dict[str, list[float]] = {name: [] for name in _TURNS}
    with _neighbours(options.busy):
        for _ in range(options.repeats):
            for name, turns in _TURNS.items():
                found[name].append(_seconds(turns, options.steps))
    beside = f"for {options.steps} steps, {options.busy} busy"
    for name, times in found.items():
        print_lines([f"{name}: {median(times):.2f} s [{min(times):.2f}, {max(times):.2f}] {beside}"])
    return 0


def _seconds(turns: Mapping[str, str], steps: int) -> float:
    """Return the seconds of the steps in a new process that has the variables ``turns``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", _KEY))}
    command = [sys.executable, "-m", "hnas.benchmarks.costs.waiting", "--child", "--steps", str(steps)]
    done = subprocess.run(command, env={**environment, **turns}, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


@contextmanager
def _neighbours(number: int) -> Iterator[None]:
    """Run programs that compute without end."""
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command, start_new_session=True) for _ in range(number)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def _train(steps: int) -> float:
    """Return the seconds of the steps of a small hybrid supernet on handwritten digits."""
    import torch

    from hnas.benchmarks.papers.data import describe_images
    from hnas.benchmarks.papers.supernets import small_hybrid, space_of
    from hnas.strategies import sandwich
    from hnas.supernet import Supernet
    from hnas.training.loop import Schedule, train

    torch.set_num_threads(_THREADS)
    supernet = Supernet(space_of("hybrid_vision", small_hybrid(None)), 0)
    task = describe_images(None).task(None, 0)
    train(supernet, task, sandwich.pick, Schedule(((2, 0.01),)))
    begun = time.perf_counter()
    train(supernet, task, sandwich.pick, Schedule(((steps, 0.01),)))
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
