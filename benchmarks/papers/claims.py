"""Define a claim of a paper so that it can be tested: its text, the parts that test it, and the rule of the verdict.

Call ``claim.run(plan, parts, print)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hnas.benchmarks.papers.parts import StudyPart, StudyParts, result_versions
from hnas.benchmarks.papers.report import StudyReport

SEEDS, PASSES = 5, 2400
_QUICK_SEEDS, _QUICK_PASSES = 2, 24


@dataclass(frozen=True)
class StudyPlan:
    """The size of a study.

    seeds: runs of each setting.
    passes: path passes of a run: forward and backward passes of one subnet on one batch.
    images: the folder of Fashion-MNIST's IDX files; None takes scikit-learn's digits.
    quick: make everything very small, to test only the program. The verdicts then mean nothing.
    nasbench: a CSV with published accuracies of NAS-Bench-201, or None.
    only: the trainings that A3 and A4 compare; empty for all.
    alone: whether A1 and A3 also train architectures alone.
    """

    seeds: int = SEEDS
    passes: int = PASSES
    images: Path | None = None
    quick: bool = False
    nasbench: Path | None = None
    only: tuple[str, ...] = ()
    alone: bool = True

    @property
    def smallest(self) -> StudyPlan:
        """Return the quick version of the same study."""
        return replace(self, quick=True, seeds=_QUICK_SEEDS, passes=_QUICK_PASSES)


@dataclass(frozen=True)
class Claim:
    """A claim, named as in the list of studies (A1 ... E6).

    says: the claim of the paper.
    rule: when the claim counts as holding.
    parts: (plan, finished parts) -> every part that is known to be needed. If a part depends on the results of other
        parts, ``parts`` is called again when these are finished.
    judge: (plan, finished parts) -> the report with the verdicts.
    later: (plan, finished parts) -> {name of a run function: work of its parts that are not known yet}, for the
        estimate of the time.
    """

    name: str
    title: str
    says: str
    rule: str
    parts: Callable[[StudyPlan, StudyParts], Sequence[StudyPart]]
    judge: Callable[[StudyPlan, StudyParts], StudyReport]
    later: Callable[[StudyPlan, StudyParts], Mapping[str, float]] = lambda _, __: {}

    def run(self, plan: StudyPlan, parts: StudyParts, say: Callable[[str], None]) -> StudyReport:
        """Run the parts that are not finished, then judge."""
        while missing := [each for each in self.parts(plan, parts) if each not in parts]:
            if not plan.quick:
                minutes = self.estimate(plan, parts) / 60
                missing = [each for each in missing if each not in parts]
                pace = f"about {minutes:.0f} minutes with {parts.workers} processes"
                say(f"{self.name}: {len(missing)} parts to run, {pace}")
            parts.complete(missing, self.name)
        return self.judge(plan, parts)

    def estimate(self, plan: StudyPlan, parts: StudyParts) -> float:
        """Return the estimated seconds until the end. Quick parts are run if no part has been timed yet."""
        needed, later = self.parts(plan, parts), self.later(plan, parts)
        runs = {each.run.__name__ for each in needed if each not in parts} | set(later)
        quick = self.parts(plan.smallest, parts)
        while not runs <= {each.run.__name__ for each in quick}:
            parts.complete(quick, f"{self.name}, quick")
            grown = self.parts(plan.smallest, parts)
            if len(grown) == len(quick):
                break
            quick = grown
        return parts.estimate(needed, quick, later)

    def to_json(self, plan: StudyPlan, parts: StudyParts) -> dict[str, Any]:
        """Return the claim with its verdicts and everything that they rest on."""
        needed = list(dict.fromkeys(self.parts(plan, parts)))
        return {
            "claim": self.name,
            "title": self.title,
            "says": self.says,
            "rule": self.rule,
            "quick": plan.quick,
            "seeds": plan.seeds,
            "passes": plan.passes,
            **self.judge(plan, parts).to_json(),
            "versions": result_versions(),
            "data": sorted({f"{each.setting.data.name} {each.setting.data.digest}" for each in needed}),
            "parts": [each.name for each in needed],
            "seconds": round(parts.seconds(needed), 1),
        }
