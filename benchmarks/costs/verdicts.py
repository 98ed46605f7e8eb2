"""Show how often verdicts are wrong on this machine: ``python -m hnas.benchmarks.costs.verdicts ARTIFACT``.

Each comparison measures an artifact against itself, in the fresh processes of all looks of ``hnas-bench run``. Then its
times are multiplied, to find the verdict on an artifact that is slower by some per cent. So each comparison counts for
every slowdown. A false alarm is "faster" or "slower" of equals beyond 1 %. As a control, one process is timed after the
other, and their medians are compared.

Comparisons are kept in ``--out``, and a second run continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.benchmarks.cli import count, seconds, shape
from hnas.benchmarks.gate import session
from hnas.benchmarks.gate.contrast import agree_on_inputs, open_side
from hnas.benchmarks.gate.runtimes import require_runtime
from hnas.benchmarks.gate.trials import LOOK_CONFIDENCE, LOOKS
from hnas.benchmarks.gate.verdict import relate
from hnas.benchmarks.printing import show_progress
from hnas.export.proof.load import Watch
from hnas.export.proof.statistics import binomial_interval
from hnas.export.remote.worker import Worker
from hnas.journal import Journal

if TYPE_CHECKING:
    from hnas.benchmarks.gate.records import Ratio
    from hnas.export.device.artifact import Artifact

_SLOWDOWNS = (0, 2, 5, 10, 20)  # per cent
_BAND = 1.0  # per cent; within it equals are not told apart
_CALLS = 200  # of each process of the control
_Logs = Sequence[Sequence[float]]  # logarithms of the ratios, [processes, FEWEST_BLOCKS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the comparisons that are missing, and print the shares of verdicts."""
    options = parser().parse_args(arguments)
    artifact = open_side(options.artifact)[1]
    require_runtime(artifact.backend)
    read, _ = agree_on_inputs(artifact, artifact, options.input_shape)
    inputs = session.seeded_inputs(read, 0)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    shapes = ",".join("x".join(map(str, each.shape)) for each in read)
    condition = f"{artifact.digest[:16]} {shapes} {options.processes} {options.time:g}"
    with closing(Journal(options.out)) as journal, show_progress() as show:
        compare = partial(_compare, artifact, inputs, options.processes, options.time, show)
        numbers = range(options.count)
        measured = [journal.call(f"{condition} {number}", partial(compare, number)) for number in numbers]
    sys.stdout.write("".join(f"{row}\n" for row in table(measured, options.processes)))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser("python -m hnas.benchmarks.costs.verdicts", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("artifact", type=Path, metavar="ARTIFACT", help="bundle, artifact folder, or model file")
    top.add_argument("--input-shape", type=shape, action="append", default=[], metavar="1x3x224x224")
    top.add_argument("--count", type=count, default=200, metavar="N", help="comparisons (default: %(default)s)")
    top.add_argument("--processes", type=count, default=5, metavar="N", help="of each look (default: %(default)s)")
    top.add_argument("--time", type=seconds, default=60.0, metavar="60s", help="of all looks (default %(metavar)s)")
    top.add_argument(
        "--out", type=Path, default=Path("runs/verdicts.jsonl"), metavar="FILE", help="a line a comparison"
    )
    return top


def table(measured: Sequence[Mapping[str, Any]], processes: int) -> Iterator[str]:
    """Yield a Markdown table of the shares of comparisons that are called different.

    measured: the records of comparisons, see ``_compare``.
    processes: fresh processes of each look.
    """
    yield "| slower by | called slower (95 %) | looks (median) | sequential medians |"
    yield "|---|---|---|---|"
    looked = [looks_of(each, processes) for each in measured]
    for percent in _SLOWDOWNS:
        words = [verdict_of(each, percent) for each in looked]
        rivals = [_sequential(each, percent) for each in measured]
        wrong = ("faster", "slower") if percent == 0 else ("slower",)
        found, theirs = (_share([word in wrong for word in side]) for side in ([w for w, _ in words], rivals))
        looks = float(np.median([looks for _, looks in words]))
        yield f"| {f'{percent} %' if percent else 'equal, called different'} | {found} | {looks:g} | {theirs} |"
    spent, others = (np.median([each[name] for each in measured]) for name in ("seconds", "others"))
    yield ""
    yield f"{len(measured)} comparisons of {spent:.0f} s (median); other programs used {others:.1f} cores (median)"


def looks_of(record: Mapping[str, Any], processes: int) -> list[tuple[Ratio, Ratio]]:
    """Return the speed and the noise after each look for which a record has processes, one look at least."""
    looks = max(1, min(LOOKS, -(-len(record["speed"]) // processes)))
    untils = [processes * (look + 1) for look in range(looks)]
    return [(_pool(record["speed"][:until], processes), _pool(record["noise"][:until], processes)) for until in untils]


def verdict_of(looks: Sequence[tuple[Ratio, Ratio]], percent: float) -> tuple[str, int]:
    """Return the word of ``hnas-bench run`` and the number of looks, for an artifact slower by ``percent``.

    A look that does not decide is followed by the next one.
    """
    word, taken, times = "inconclusive", 0, 1 + percent / 100
    for speed, noise in looks:
        taken += 1
        slower = replace(speed, value=speed.value / times, low=speed.low / times, high=speed.high / times)
        word = relate(slower, noise, _BAND)
        if word != "inconclusive":
            break
    return word, taken


def _pool(logs: _Logs, planned: int) -> Ratio:
    rounds = [[(float(np.exp(log)), 1.0) for log in each] for each in logs]
    return session.pool_rounds(rounds, planned, 0, LOOK_CONFIDENCE)


def _sequential(record: Mapping[str, Any], percent: float) -> str:
    """Return the word of who compares two medians that were taken one after the other."""
    first, second = record["sequential"]
    ratio = first / (second * (1 + percent / 100))
    band = 1 + _BAND / 100
    return "faster" if ratio > band else "slower" if ratio < 1 / band else "same"


def _share(flags: Sequence[bool]) -> str:
    low, high = binomial_interval(sum(flags), len(flags))
    return f"{sum(flags)} of {len(flags)} [{low:.1%}, {high:.1%}]"


def _compare(
    artifact: Artifact, inputs: session.Inputs, processes: int, span: float, progress: session.Progress, number: int
) -> dict[str, object]:
    """Return one comparison of an artifact with itself.

    noise, speed: logarithms of ratios, ``FEWEST_BLOCKS`` for each process: two contenders in the same blocks.
    sequential: medians of two fresh processes, one after the other, in seconds.
    seconds: of the comparison, without the control. others: cores that other programs used.
    """
    clock, watch = session.Clock(span), Watch()
    noise, speed = session.compare_in_rounds(
        artifact,
        (artifact, artifact),
        inputs,
        processes=LOOKS * processes,
        clock=clock,
        seed=1000 * number,
        compare=session.compare_fresh,
        progress=lambda doing, fraction: progress(f"comparison {number + 1}: {doing}", fraction),
    )
    spent, load = clock.spent, watch.load()
    medians = [_median(artifact, inputs) for _ in range(2)]
    return {
        "noise": _logs(noise.rounds),
        "speed": _logs(speed.rounds),
        "sequential": medians,
        "seconds": spent,
        "others": load.others if load else 0.0,
    }


def _logs(rounds: Sequence[Sequence[tuple[float, float]]]) -> list[list[float]]:
    """Return the figures to which ``pool_rounds`` reduces each process."""
    logs = [np.log([a / b for a, b in each]).reshape(session.FEWEST_BLOCKS, -1) for each in rounds]
    return [np.median(each, axis=1).round(6).tolist() for each in logs]


def _median(artifact: Artifact, inputs: session.Inputs) -> float:
    with Worker(artifact, backend=artifact.backend) as worker:
        worker.time(inputs, _CALLS // 4)
        return float(np.median(worker.time(inputs, _CALLS)))


if __name__ == "__main__":
    sys.exit(main())
