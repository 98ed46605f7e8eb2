"""Run random networks through every backend, and compare each file with eager torch.

The command is ``python -m hnas.benchmarks.fuzz``. A find is a fault of hnas: the outputs of a file differ from those of
the program by more than its precision allows, or there is an error without a clear message. Each find is reduced to the
smallest program that still fails, and saved. The command that repeats the failure is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from hnas.benchmarks.cli import count
from hnas.benchmarks.fuzz.log import FinishedCase, FuzzLog, summarise
from hnas.report import print_lines

if TYPE_CHECKING:
    from hnas.benchmarks.fuzz.cases import Ask, FuzzNetwork
    from hnas.export.diagnosis.trial import TrialBench, TrialVerdict

BACKENDS = ("onnxruntime", "openvino", "tflite")
_ALIKE = 2  # of similar finds, this number is reduced and saved; the others are only counted
SECONDS = 60.0  # time limit of one reduction


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0 without finds, 1 with finds, 2 for wrong use, 3 if a runtime is missing."""
    given = parser().parse_args(argv)
    from hnas.cli.ending import guarded

    return guarded("hnas.benchmarks.fuzz", lambda: _main(given))


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    own = argparse.ArgumentParser(
        "python -m hnas.benchmarks.fuzz",
        description="Run random networks through every backend, and compare each file with eager torch.",
    )
    own.add_argument("--count", type=count, default=200, metavar="N", help="cases (default 200)")
    own.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all cases (default 0)")
    own.add_argument("--case", type=int, metavar="K", help="run only case K of the seed")
    own.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B", help="default: %(default)s")
    own.add_argument("--minutes", type=float, metavar="M", help="start no case after M minutes")
    own.add_argument("--out", type=Path, metavar="DIR", help="keep cases and finds; finished cases are not run again")
    own.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    return own


def _main(given: argparse.Namespace) -> int:
    from hnas.export import backends
    from hnas.export.device.errors import Unavailable
    from hnas.memory import reuse_memory

    chosen = tuple(given.backends.split(","))
    for name in chosen:
        if missing := backends.load(name).missing():
            raise Unavailable(missing)
    import torch

    torch.set_num_threads(1)
    reuse_memory()
    cases = range(given.count) if given.case is None else range(given.case, given.case + 1)
    limit = float("inf") if given.minutes is None else 60 * given.minutes
    with _progress(len(cases)) as advance:
        result = fuzz(cases, given.seed, chosen, out=given.out, seconds=limit, advance=advance)
    if given.json:
        print_lines([json.dumps(result, indent=1)])
    else:
        _print(result)
    return 1 if result["finds"] else 0


def fuzz(
    cases: Sequence[int],
    seed: int,
    backends: Sequence[str],
    *,
    out: Path | None = None,
    seconds: float = float("inf"),
    advance: Callable[[int, int], None] = lambda _done, _found: None,
) -> dict[str, Any]:
    """Run cases of a seed; return the counts and finds as plain values.

    out: folder that keeps finished cases and the reduced find of each failing one; None keeps nothing.
    seconds: no case starts after this time.
    advance: called with (finished cases, finds) after each case.
    """
    from hnas.benchmarks.fuzz.cases import EACH
    from hnas.export.diagnosis.trial import TrialBench

    log = FuzzLog(out, seed, backends)
    begun, fresh = monotonic(), 0
    left = [case for case in cases if case not in log.done]
    with TrialBench(converter=False) as bench:
        held: tuple[int, _FuzzedNetwork] | None = None
        for case in left:
            if monotonic() - begun > seconds:
                break
            if held is None or held[0] != case // EACH:
                held = case // EACH, _FuzzedNetwork(seed, case // EACH, backends)
            log.begin(case)
            log.add(held[1].run_case(case, bench, log))
            fresh += 1
            advance(len(log.done), len(log.finds))
    spent = monotonic() - begun
    return summarise([log.done[case] for case in cases if case in log.done], seed, fresh, spent)


class _FuzzedNetwork:
    """A network and its cases; it is captured once for each batch size."""

    def __init__(self, seed: int, number: int, backends: Sequence[str]) -> None:
        from hnas.benchmarks.fuzz.cases import asks, network

        self.network: FuzzNetwork = network(seed, number)
        self.asks: list[Ask] = asks(seed, number, backends)
        self._programs: dict[int, Any] = {}

    def run_case(self, case: int, bench: TrialBench, log: FuzzLog) -> FinishedCase:
        """Judge one case; reduce and save it where it fails."""
        from hnas.benchmarks.fuzz.cases import EACH
        from hnas.export.device.errors import one_line

        ask, begun = self.asks[case % EACH], monotonic()
        finished = partial(FinishedCase, case, self.network.title, ask.setting.line(), ask.batch)
        try:
            program, calls = self._captured(ask.batch)
            verdict = bench.judge(program, calls, ask.setting, self._expected(ask.batch), self._exact)
        except Exception as error:  # noqa: BLE001  # an error of capturing or judging is a find as well
            return finished(outcome="broken", line=one_line(error))
        saved, line = None, verdict.line
        if verdict.failed and log.folder is not None and log.alike(ask.setting.line(), verdict.line) < _ALIKE:
            saved, line = _save(log.folder / f"case-{case:06d}", program, calls, ask, bench, verdict)
        spent = monotonic() - begun
        return finished(outcome=verdict.outcome, line=line, sqnr_db=verdict.sqnr_db, saved=saved, seconds=spent)

    def _captured(self, batch: int) -> Any:
        if batch not in self._programs:
            self._programs[batch] = self.network.program(batch)
        return self._programs[batch]

    @cached_property
    def _exact(self) -> float:
        from hnas.export.diagnosis.trial import exactness_db

        return exactness_db(*self._captured(1))

    def _expected(self, batch: int) -> list[Any]:
        """Return the outputs of eager torch at batch 1, joined to batches of size ``batch``."""
        import torch

        program, calls = self._captured(1)
        single = [program(*call) for call in calls]
        groups = [single[start : start + batch] for start in range(0, len(single), batch)]
        return [tuple(torch.cat(values) for values in zip(*group, strict=True)) for group in groups]


def _save(
    folder: Path, program: Any, calls: Any, ask: Ask, bench: TrialBench, verdict: TrialVerdict
) -> tuple[str, str]:
    """Reduce and save a find. Return its folder, and a line with the number of operators that are left."""
    from hnas.export.diagnosis import reproduction

    try:
        left, last = reproduction.reduce_and_save(folder, program, calls, ask.setting, bench, verdict, SECONDS)
        return str(folder), f"{last.line} (reduced to {left} operators; {verdict.line})"
    except ValueError as error:  # the reduced trial does not fail, for instance because the fault needs a larger batch
        reproduction.write_reproduction(folder, program, calls, ask.setting, verdict)
        return str(folder), f"{verdict.line} (not reduced: {error})"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    from hnas import report

    with report.show_stages() as on:
        yield lambda done, _found: on("cases", done, total)


def _print(result: dict[str, Any]) -> None:
    from hnas import report

    rows = [
        (setting, str(number), f"{result['lowest_sqnr_db'].get(setting, float('nan')):.1f}")
        for setting, number in sorted(result["settings"].items())
    ]
    report.print_table(
        ("setting", "cases", "lowest SQNR dB"), rows, f"seed {result['seed']}", ("cases", "lowest SQNR dB")
    )
    said = ", ".join(f"{number} {outcome}" for outcome, number in result["outcomes"].items())
    report.print_lines([f"{result['cases']} cases: {said}; {result['cases_per_second']} cases/s"])
    report.print_lines([f"refused {number}x: {line}" for line, number in list(result["refused"].items())[:12]])
    for find in result["finds"]:
        shown = f"; hnas-deploy verify {find['saved']}" if find["saved"] else ""
        report.print_lines([f"case {find['case']} ({find['network']}, batch {find['batch']}): {find['line']}{shown}"])
