"""``python -m hnas.benchmarks.fuzz``: random networks through every backend, each file held against eager torch.

A find is a *silent mismatch* (the file computes something else than the program at its precision) or a failure without
a clear line. Each is reduced to the smallest program that still fails, and saved with the command that shows it again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from hnas.benchmarks.cli import count, write_line

if TYPE_CHECKING:
    from hnas.benchmarks.fuzz.cases import Ask, Network
    from hnas.export.diagnosis.trial import Bench

BACKENDS = ("onnxruntime", "openvino", "tflite")
JOURNAL, FINDS = "cases.jsonl", "finds"
_ALIKE = 2  # reductions of finds that look alike before they are reduced
SECONDS = 60.0  # of one reduction


@dataclass(frozen=True)
class _Done:
    """A case and its outcome: of `hnas.export.diagnosis.trial.Verdict`, or "lost" where the whole run died in it."""

    case: int
    network: str
    setting: str
    batch: int
    outcome: str
    line: str
    sqnr_db: float | None = None
    seconds: float = 0.0
    saved: str | None = None

    @property
    def found(self) -> bool:
        """Whether it is a fault."""
        return self.outcome in ("mismatch", "broken", "lost")


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing found, 1: finds, 2: wrong use, 3: a runtime is missing."""
    given = parser().parse_args(argv)
    from hnas.cli.ending import guarded

    return guarded("hnas.benchmarks.fuzz", lambda: _main(given))


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    own = argparse.ArgumentParser("hnas.benchmarks.fuzz", description="Do the files compute what the networks say?")
    own.add_argument("--count", type=count, default=200, metavar="N", help="cases (default 200)")
    own.add_argument("--seed", type=int, default=0, metavar="S", help="of all of them (default 0)")
    own.add_argument("--case", type=int, metavar="K", help="case K of the seed alone")
    own.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B", help="default: %(default)s")
    own.add_argument("--minutes", type=float, metavar="M", help="begin no further case after M minutes")
    own.add_argument("--out", type=Path, metavar="DIR", help="keep cases and finds; what is there is not done again")
    own.add_argument("--json", action="store_true", help="the result as JSON on standard output")
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
        write_line(json.dumps(result, indent=1))
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
    """The counts and finds of these cases, as plain values; ``advance(done, found)`` follows each.

    With ``out``, finished cases are kept there, and so is the find of each that fails, reduced.
    """
    from hnas.benchmarks.fuzz.cases import EACH
    from hnas.export.diagnosis.trial import Bench

    journal = Journal(out, seed, backends)
    begun, fresh = monotonic(), 0
    left = [case for case in cases if case not in journal.done]
    with Bench(converter=False) as bench:
        held: tuple[int, Subject] | None = None
        for case in left:
            if monotonic() - begun > seconds:
                break
            if held is None or held[0] != case // EACH:
                held = case // EACH, Subject(seed, case // EACH, backends)
            journal.begin(case)
            journal.add(held[1].case(case, bench, journal))
            fresh += 1
            advance(len(journal.done), len(journal.finds))
    spent = monotonic() - begun
    return summary([journal.done[case] for case in cases if case in journal.done], seed, fresh, spent)


class Subject:
    """A network and its cases; captured once for each batch size."""

    def __init__(self, seed: int, number: int, backends: Sequence[str]) -> None:
        from hnas.benchmarks.fuzz.cases import asks, network

        self.network: Network = network(seed, number)
        self.asks: list[Ask] = asks(seed, number, backends)
        self._programs: dict[int, Any] = {}

    def case(self, case: int, bench: Bench, journal: Journal) -> _Done:
        """Ask, and where the answer is a fault reduce and save it."""
        from hnas.benchmarks.fuzz.cases import EACH
        from hnas.export.device.errors import one_line

        ask, begun = self.asks[case % EACH], monotonic()
        named: dict[str, Any] = {
            "case": case,
            "network": self.network.title,
            "setting": ask.setting.words(),
            "batch": ask.batch,
        }
        try:
            program, calls = self._captured(ask.batch)
            verdict = bench.judge(program, calls, ask.setting, self._expected(ask.batch), self._exact)
        except Exception as error:  # noqa: BLE001  # whatever capturing or judging raises is a find as well
            return _Done(**named, outcome="broken", line=one_line(error))
        saved, line = None, verdict.line
        if verdict.failed and journal.folder is not None and journal.alike(ask.setting.words(), verdict.line) < _ALIKE:
            saved, line = _save(journal.folder / f"case-{case:06d}", program, calls, ask, bench, verdict)
        return _Done(
            **named,
            outcome=verdict.outcome,
            line=line,
            sqnr_db=verdict.sqnr_db,
            saved=saved,
            seconds=monotonic() - begun,
        )

    def _captured(self, batch: int) -> Any:
        if batch not in self._programs:
            self._programs[batch] = self.network.program(batch)
        return self._programs[batch]

    @cached_property
    def _exact(self) -> float:
        from hnas.export.diagnosis.trial import exactness_db

        return exactness_db(*self._captured(1))

    def _expected(self, batch: int) -> list[Any]:
        """What eager torch says at batch 1, put together: a batch must be what its parts are."""
        import torch

        program, calls = self._captured(1)
        single = [program(*call) for call in calls]
        groups = [single[start : start + batch] for start in range(0, len(single), batch)]
        return [tuple(torch.cat(values) for values in zip(*group, strict=True)) for group in groups]


def _save(folder: Path, program: Any, calls: Any, ask: Ask, bench: Bench, verdict: Any) -> tuple[str, str]:
    """Where a find was saved, and the line that says how small it became."""
    from hnas.export.diagnosis import reproduction

    try:
        left, last = reproduction.reduce_and_save(folder, program, calls, ask.setting, bench, verdict, SECONDS)
        return str(folder), f"{last.line} (reduced to {left} operators; {verdict.line})"
    except ValueError as error:  # it needs more than the program, such as the batch beside it
        reproduction.write(folder, program, calls, ask.setting, verdict)
        return str(folder), f"{verdict.line} (not reduced: {error})"


class Journal:
    """The finished cases of a seed, in a file that a kill leaves readable; in memory alone without a folder."""

    def __init__(self, out: Path | None, seed: int, backends: Sequence[str]) -> None:
        self.done: dict[int, _Done] = {}
        self.folder = None if out is None else out / FINDS
        self._file = None if out is None else out / JOURNAL
        self._head = {"seed": seed, "backends": list(backends)}
        if self._file is not None:
            self._read(self._file)

    @property
    def finds(self) -> list[_Done]:
        """The faults among them."""
        return [done for done in self.done.values() if done.found]

    def alike(self, setting: str, line: str) -> int:
        """How many finds have the same setting and the same words."""
        kind = _words(line)
        return sum(done.setting == setting and kind in _words(done.line) for done in self.finds)

    def begin(self, case: int) -> None:
        """Say which case is at work: should this process die in it a second time, a later run calls it lost."""
        self._append({"begun": case})

    def add(self, done: _Done) -> None:
        """A finished case."""
        self.done[done.case] = done
        self._append(asdict(done))

    def _append(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def _read(self, file: Path) -> None:
        from hnas.files import write_text

        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            self._append(self._head)
            return
        text = file.read_text("utf-8")
        if not text.endswith("\n"):  # a kill cut the last line off
            text = text[: text.rfind("\n") + 1]
            write_text(file, text)
        records = [json.loads(line) for line in text.splitlines()]
        if not records or records[0] != self._head:
            raise ValueError(f"{file} is of another seed or other backends; choose another --out")
        begun = Counter(record["begun"] for record in records[1:] if "begun" in record)
        self.done = {record["case"]: _Done(**record) for record in records[1:] if "case" in record}
        for case, times in begun.items():
            if times > 1 and case not in self.done:  # once may have been a kill from outside
                self.add(_Done(case, "", "", 1, "lost", "the process that compiled it died twice"))


def _words(line: str) -> str:
    return "".join(letter for letter in line.partition(" (")[0] if letter.isalpha())


def summary(done: Sequence[_Done], seed: int, fresh: int, spent: float) -> dict[str, Any]:
    """Counts by outcome, refusals by their words, and the finds."""
    refused = Counter(each.line for each in done if each.outcome == "refused")
    by = Counter(" ".join(each.setting.split(",")[0].split()) for each in done)
    lowest = {
        setting: min(levels)
        for setting in by
        if (levels := [d.sqnr_db for d in done if d.sqnr_db is not None and d.setting.startswith(setting)])
    }
    return {
        "seed": seed,
        "cases": len(done),
        "outcomes": dict(Counter(each.outcome for each in done)),
        "settings": dict(by),
        "lowest_sqnr_db": lowest,
        "refused": dict(refused.most_common()),
        "finds": [asdict(each) for each in done if each.found],
        "seconds": round(spent, 1),
        "cases_per_second": round(fresh / spent, 2) if spent else None,
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    from hnas import report

    with report.stages() as on:
        yield lambda done, _found: on("cases", done, total)


def _print(result: dict[str, Any]) -> None:
    from hnas import report

    rows = [
        (setting, str(number), f"{result['lowest_sqnr_db'].get(setting, float('nan')):.1f}")
        for setting, number in sorted(result["settings"].items())
    ]
    report.table(("setting", "cases", "lowest SQNR dB"), rows, f"seed {result['seed']}", ("cases", "lowest SQNR dB"))
    said = ", ".join(f"{number} {outcome}" for outcome, number in result["outcomes"].items())
    report.lines([f"{result['cases']} cases: {said}; {result['cases_per_second']} cases/s"])
    report.lines([f"refused {number}x: {line}" for line, number in list(result["refused"].items())[:12]])
    for find in result["finds"]:
        shown = f"; hnas-deploy verify {find['saved']}" if find["saved"] else ""
        report.lines([f"case {find['case']} ({find['network']}, batch {find['batch']}): {find['line']}{shown}"])
