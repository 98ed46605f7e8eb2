"""Make the pilot that the learning rates of a study come from: ``python -m hnas.benchmarks.papers.rates C3``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

from hnas.benchmarks.cli import count
from hnas.benchmarks.papers import growth_plan
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.growing import grown
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.sequence_cells import CELLS, GRU, JOINS, LSTM, STEPS, cell_error, setting_of
from hnas.benchmarks.papers.sequences import SEQUENCES
from hnas.report import print_lines

_RATES = (0.003, 0.01, 0.03, 0.1)
_PLAIN = (*_RATES, 0.2)  # of LSTM and GRU
_SEARCHES: Sequence[tuple[Literal["sgd", "adam"], float]] = (("sgd", 0.1), ("sgd", 0.3), ("adam", 0.01))
_SEEDS = (100, 101)  # the study has others
_AS_GROWN = "as grown"
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Pilot:
    """Runs the trainings of a pilot and prints their errors on the search split."""

    parts: StudyParts
    folder: Path | None

    def best(self, name: str, tried: Mapping[_T, Sequence[StudyPart]]) -> _T:
        """Return the choice of the least mean error, and print all, the best first."""
        errors = {choice: fmean(_error(self.parts[each]) for each in listed) for choice, listed in tried.items()}
        ranked = sorted(errors, key=errors.__getitem__)
        print_lines([f"{name}: " + ", ".join(f"{_text(choice)} {errors[choice]:.4g}" for choice in ranked)])
        return ranked[0]

    def complete(self, tried: Iterable[Mapping[_T, Sequence[StudyPart]]], title: str) -> None:
        """Run the trainings that are not finished."""
        self.parts.complete([each for choices in tried for listed in choices.values() for each in listed], title)

    def cells(self, name: str) -> None:
        """C3: choose how each cell is grown, then its rate from the start, or the network as it has grown."""
        searches = {cell: {each: self._searches(name, cell, *each) for each in _SEARCHES} for cell in JOINS}
        self.complete(searches.values(), f"{name}, searches")
        trained = dict[str, dict[object, list[StudyPart]]]()
        for cell in CELLS:
            trained[cell], archs = {}, [None] * len(_SEEDS)
            if cell in JOINS:
                grown_best = searches[cell][self.best(f"{name}, {cell}, growth", searches[cell])]
                trained[cell][_AS_GROWN], archs = grown_best, [self.parts[each]["arch"] for each in grown_best]
            for rate in _PLAIN if cell in (LSTM, GRU) else _RATES:
                trained[cell][rate] = self._trainings(name, cell, rate, archs)
        self.complete(trained.values(), f"{name}, from the start")
        for cell, listed in trained.items():
            self.best(f"{name}, {cell}", listed)

    def _searches(self, name: str, cell: str, optimiser: Literal["sgd", "adam"], rate: float) -> list[StudyPart]:
        setting = replace(setting_of(name, cell, STEPS, rate, self.folder, False, optimiser), split="search")
        return [part(cell_error, seed, setting) for seed in _SEEDS]

    def _trainings(self, name: str, cell: str, rate: float, archs: Sequence[Any]) -> list[StudyPart]:
        setting = replace(setting_of(name, cell, STEPS, rate, self.folder, False), split="search")
        each = zip(_SEEDS, archs, strict=True)
        return [part(cell_error, seed, replace(setting, arch=arch)) for seed, arch in each]

    def sizes(self, name: str) -> None:
        """C2: choose the rate of a grown network and of the largest and the smallest one."""
        plan, tried = StudyPlan(images=self.folder), {}
        for arm in (growth_plan.GROWN, growth_plan.LARGE, growth_plan.SMALL):
            settings = {rate: replace(growth_plan.setting_of(plan, name, arm), rate=rate) for rate in _RATES}
            tried[arm] = {rate: [part(grown, seed, each) for seed in _SEEDS] for rate, each in settings.items()}
        self.complete(tried.values(), name)
        for arm, rates in tried.items():
            self.best(f"{name}, {arm}", rates)


def _text(choice: object) -> str:
    """Return a rate, or an optimiser and its rate, as text."""
    return " ".join(map(str, choice)) if isinstance(choice, tuple) else str(choice)


def _error(result: Result) -> float:
    """Return the error on the search split."""
    return float(result["error"] if "error" in result else -result["search"])


_STUDIES = {"C2": (_Pilot.sizes, growth_plan.NAMES), "C3": (_Pilot.cells, SEQUENCES)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every network on every sequence with each rate; print the errors on the search split, the best first."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.papers.rates", description=main.__doc__)
    parser.add_argument("study", choices=_STUDIES, help="C2 (and C4), or C3")
    parser.add_argument("--names", nargs="+", choices=SEQUENCES, metavar="NAME", help="of sequences (default: all)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="its text.txt is the text (default: Python's manual)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/rates"), metavar="DIR", help="parts (default %(default)s)"
    )
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default %(default)s)")
    options = parser.parse_args(arguments)
    run, names = _STUDIES[options.study]
    parts = StudyParts(options.out, options.data, options.workers)
    try:
        for name in options.names or names:
            run(_Pilot(parts, options.data), name)
    finally:
        parts.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
