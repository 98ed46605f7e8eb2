"""A claim of a paper as something that can fail: what it says, the parts that test it, and the rule of its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hnas.benchmarks.papers.parts import Part, Parts, versions
from hnas.benchmarks.papers.report import Report

SEEDS, PASSES = 5, 2400
QUICK_SEEDS, QUICK_PASSES = 2, 24


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    seeds: runs of each setting. passes: path passes of a run, a forward and backward pass of one subnet on one batch.
    images: the folder of Fashion-MNIST's IDX files; None takes scikit-learn's digits. quick: everything so small that
    only the machinery is tested; its verdicts mean nothing. nasbench: a CSV with published accuracies, or None.
    only: the trainings that A3 and A4 compare; none for all. alone: whether A1 and A3 train architectures alone, too.
    """

    seeds: int = SEEDS
    passes: int = PASSES
    images: Path | None = None
    quick: bool = False
    nasbench: Path | None = None
    only: tuple[str, ...] = ()
    alone: bool = True

    @property
    def smallest(self) -> Plan:
        """The quick version of the same study."""
        return replace(self, quick=True, seeds=QUICK_SEEDS, passes=QUICK_PASSES)


@dataclass(frozen=True)
class Claim:
    """A claim, named as in the list of studies (A1 ... D5).

    says: what the paper says. rule: when it counts as holding. parts: (plan, finished parts) -> all that is known to be
    needed; where a part depends on the result of others, it is asked again when they are finished. judge: the verdicts.
    later: run -> the work of parts that are not known yet, for the estimate.
    """

    name: str
    title: str
    says: str
    rule: str
    parts: Callable[[Plan, Parts], Sequence[Part]]
    judge: Callable[[Plan, Parts], Report]
    later: Callable[[Plan, Parts], Mapping[str, float]] = lambda _, __: {}

    def run(self, plan: Plan, parts: Parts, say: Callable[[str], None]) -> Report:
        """Complete the parts that are missing, then judge."""
        while missing := [each for each in self.parts(plan, parts) if each not in parts]:
            if not plan.quick:
                minutes = self.estimate(plan, parts) / 60
                missing = [each for each in missing if each not in parts]
                pace = f"about {minutes:.0f} minutes with {parts.workers} processes"
                say(f"{self.name}: {len(missing)} parts to run, {pace}")
            parts.complete(missing, self.name)
        return self.judge(plan, parts)

    def estimate(self, plan: Plan, parts: Parts) -> float:
        """Seconds until the end, from quick parts, which are run for it where their pace is not known."""
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

    def to_json(self, plan: Plan, parts: Parts) -> dict[str, Any]:
        """The claim with its verdicts and everything that they rest on."""
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
            "versions": versions(),
            "data": sorted({f"{of['name']} {of['digest']}" for of in (each.setting["of"] for each in needed)}),
            "parts": [each.name for each in needed],
            "seconds": round(parts.seconds(needed), 1),
        }
