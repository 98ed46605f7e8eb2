"""Show how well latencies are predicted from few measured ones: ``python -m hnas.benchmarks.costs.predicted``.

Subnets of the shipped supernet are measured as a search measures them: its first ones, then random ones of those with
known accuracies. From the first ones and a few of the others, two models predict the rest: the one that counts kernels
(``hnas.cost.fitted``) and a Gaussian process alone. Measured subnets are kept in ``--out`` and are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas import hw_profiles
from hnas.benchmarks.cli import count
from hnas.cost import Cost
from hnas.cost.fitted import FittedLatency
from hnas.cost.work import LAUNCHES, Work
from hnas.deployment.pricing import MeasuredLatency
from hnas.deployment.source import SupernetSource, open_source
from hnas.export.compiling.compiler import limited_compiler
from hnas.journal import Journal
from hnas.predictor import Predictor
from hnas.space import Arch, Space
from hnas.strategies.evolution import planned_archs
from hnas.strategies.surrogate import PLANNED
from hnas.study import Study

_SIZES = (16, 24, 32)  # measured subnets that a model learns from
_DRAWS = 8  # of those that are not among the first ones

_Floats = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print the errors of both models."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.predicted", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", default="tflite-cpu", metavar="T", help="a CPU target (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", metavar="P", help="of the subnets (default: %(default)s)")
    parser.add_argument("--subnets", type=count, default=80, metavar="N", help="to measure (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/predicted.jsonl"), metavar="FILE", help="a line a subnet"
    )
    options = parser.parse_args(arguments)
    source = open_source(None, None)
    measured = _measured(source, options.target, options.precision, options.subnets, options.out)
    sys.stdout.write("".join(f"{row}\n" for row in table(source, measured)))
    return 0


def read(space: Space, entries: Mapping[str, Any], condition: str) -> dict[Arch, float]:
    """Return the latencies, in ms, that a journal holds for a condition: target and precision.

    A key is the condition and the options of all choices, null if not active.
    """
    found = {}
    for key, value in entries.items():
        if key.startswith(f"{condition} "):
            pairs = zip(space.choices, json.loads(key.removeprefix(condition)), strict=True)
            found[space.arch({name: option for name, option in pairs if option is not None})] = float(value)
    return found


def table(source: SupernetSource, measured: dict[Arch, float]) -> Iterator[str]:
    """Yield a Markdown table of root mean squared errors of the logarithm, and the time of a unit of work by class."""
    space, skeleton = source.supernet.space, source.supernet.skeleton
    archs, logs = list(measured), np.log(list(measured.values()))
    work = Work(space, skeleton)
    yield "| measured | predicted | by kernels | a Gaussian process alone |"
    yield "|---|---|---|---|"
    for size in (size for size in _SIZES if size < len(archs)):
        errors = [_errors(work, archs, logs, size, k) for k in range(_DRAWS)]
        ours, theirs = np.mean(errors, 0)
        yield f"| {size} | {len(archs) - size} | {ours:.3f} | {theirs:.3f} |"
    times = FittedLatency(work).fit(archs, logs.tolist()).times
    base = times.get("pointwise", 0.0) or 1.0
    yield ""
    yield "time of an operation, pointwise = 1: " + ", ".join(
        f"{name} {value / base:.2g}" for name, value in sorted(times.items()) if name != LAUNCHES
    )


def _errors(work: Work, archs: Sequence[Arch], logs: _Floats, size: int, seed: int) -> tuple[float, float]:
    """Return the errors of both models, fitted to the first subnets and to others that are drawn."""
    space = work.space
    first = len({space.arch(genome) for genome in planned_archs(space)[:PLANNED]})
    known = [*range(first), *Random(seed).sample(range(first, len(archs)), size - first)]
    rest = [k for k in range(len(archs)) if k not in known]
    given, asked = [archs[k] for k in known], [archs[k] for k in rest]
    models = (FittedLatency(work).fit(given, logs[known].tolist()), Predictor(space).fit(given, logs[known].tolist()))
    ours, theirs = (float(np.sqrt(np.mean((each.predict(asked)[0] - logs[rest]) ** 2))) for each in models)
    return ours, theirs


def _measured(source: SupernetSource, target: str, precision: str, subnets: int, out: Path) -> dict[Arch, float]:
    space = source.supernet.space
    ranked = sorted(source.scores, key=lambda arch: source.scores[arch])
    rng, fourth = Random(5), len(ranked) // 4
    drawn = rng.sample(ranked[-fourth:], min(fourth, 45)) + rng.sample(ranked, min(len(ranked), subnets))
    wanted = list(dict.fromkeys([*(space.arch(genome) for genome in planned_archs(space)[:PLANNED]), *drawn]))[:subnets]
    study, device, precisions = Study(source.supernet, source.task, seed=0), hw_profiles.load(target), (precision,)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        journal = stack.enter_context(closing(Journal(out)))
        compiler = stack.enter_context(limited_compiler())
        latency = stack.enter_context(closing(MeasuredLatency(study, device, 1, precisions, None, compiler=compiler)))
        for arch in wanted:
            key = f"{target} {precision} {json.dumps([arch.get(name) for name in space.choices])}"
            journal.call(key, partial(_milliseconds, latency, arch))
        found = read(space, journal.entries, f"{target} {precision}")
    return {arch: found[arch] for arch in wanted}


def _milliseconds(latency: Cost, arch: Arch) -> float:
    return latency(arch).value


if __name__ == "__main__":
    sys.exit(main())
