"""C5: a small trained network that grows, against the same and other networks trained from the start at equal compute.

The growth of MorphNet (arXiv 1711.06798) turned round: the edits of ``hnas.growth`` open depth, width and types in
``hybrid_vision``. The compute of a growth includes that of the small network before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from statistics import fmean
from typing import Any

import torch

from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.grown_images import SPACE, FixedSetting, GrownSetting, fixed_images, grown_images
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import mean_interval, paired
from hnas.benchmarks.papers.supernets import costs, small_hybrid, space_of
from hnas.cost.flops import parameters
from hnas.space import Space

_RATES = (0.02, 0.05, 0.1, 0.2)
_PILOT = (100, 101)  # seeds that choose the rates, on the search images
_SMALL = 0.4  # of the steps of a growth, for the small network alone
_BUDGET = 0.35  # of the weights of the largest network
_ALIKE = 0.9  # of the budget: the least weights of a random network
_DRAWS = 10_000
_SHARES = (1.0, 0.2)  # of the small network's rate, for the growth; 0.2 is that of hnas-train grow
_GROWN = "grown from the trained small network"
_UNTRAINED, _ALONE, _RANDOM, _LITTLE = _OTHERS = (
    "grown from random weights",
    "the grown architecture from the start",
    "a random architecture of the budget",
    "the small network, not grown",
)


def _arguments(plan: StudyPlan) -> dict[str, Any]:
    """Return the arguments of the space; sizes that no growth opens have one option, also for random networks."""
    sizes = {"widths": [[8, 16, 24], [16, 24, 32]], "depths": [[1, 2, 3], [1, 2, 3]]}
    return small_hybrid(plan.images) | sizes | {"kernels": [3], "expansions": [2], "fused_expansions": [1]}


@lru_cache(4)
def _space(plan: StudyPlan) -> Space:
    return space_of(SPACE, _arguments(plan))


@lru_cache(4)
def _most(plan: StudyPlan) -> int:
    """Return the largest number of weights of a grown network."""
    return round(_BUDGET * costs(_space(plan), _space(plan).largest)["params"])


def _steps(plan: StudyPlan) -> int:
    """Return the steps of a growth, with those of the small network before it."""
    return max(8, plan.passes // 4)


def _growth_part(plan: StudyPlan, seed: int, before: int, steps: int, rates: tuple[float, float]) -> StudyPart:
    setting = GrownSetting(
        data=data.describe_images(plan.images, plan.quick),
        arguments=_arguments(plan),
        before=before,
        steps=steps,
        rates=rates,
        most=_most(plan),
    )
    return part(grown_images, seed, setting, work=_steps(plan))


_Rates = tuple[float, float]  # of the small network and of the growth


def _grown_part(plan: StudyPlan, seed: int, rates: _Rates) -> StudyPart:
    """Return the growth of a trained small network."""
    before = round(_SMALL * _steps(plan))
    return _growth_part(plan, seed, before, _steps(plan) - before, rates)


def _other_part(plan: StudyPlan, seed: int, arm: str, known: Result, rate: float) -> StudyPart:
    """Return the training that another arm takes, with the compute of the growth ``known`` of this seed."""
    if arm == _UNTRAINED:
        pace = (known["compute"] - known["before"]) / (_steps(plan) - round(_SMALL * _steps(plan)))
        return _growth_part(plan, seed, 0, max(2, round(known["compute"] / pace)), (rate, rate))
    arch = {_ALONE: known["arch"], _LITTLE: _space(plan).arch(_space(plan).smallest).to_json()}.get(
        arm
    ) or _random_arch(plan, seed)
    setting = FixedSetting(
        data=data.describe_images(plan.images, plan.quick),
        arguments=_arguments(plan),
        arch=arch,
        compute=known["compute"],
        rate=rate,
    )
    return part(fixed_images, seed, setting, work=_steps(plan))


@lru_cache(64)
def _random_arch(plan: StudyPlan, seed: int) -> dict[str, Any]:
    """Return a random member with 90 to 100 % of the weights of the budget.

    Raises:
        RuntimeError: there is none among 10,000 members.
    """
    space, rng, most = _space(plan), Random(f"{_RANDOM}/{seed}"), _most(plan)
    for _ in range(_DRAWS):
        arch = space.sample(rng)
        with torch.device("meta"):
            weights = parameters(space.build(arch))
        if _ALIKE * most <= weights <= most:
            return arch.to_json()
    raise RuntimeError(f"none of {_DRAWS} random members has {_ALIKE * most:.0f} to {most} weights")


def _rates(plan: StudyPlan) -> tuple[float, ...]:
    return _RATES[2:] if plan.quick else _RATES


def _pairs(plan: StudyPlan) -> list[_Rates]:
    """Return the rates of a growth that the pilot tries."""
    return [(rate, share * rate) for rate in _rates(plan) for share in _SHARES[: 1 if plan.quick else None]]


def _pilots(plan: StudyPlan) -> tuple[int, ...]:
    return _PILOT[: 1 if plan.quick else None]


def _best_pair(plan: StudyPlan, parts: StudyParts) -> _Rates:
    """Return the rates of the growth with the best mean accuracy on the search images, over the seeds of the pilot."""

    def mean(rates: _Rates) -> float:
        return fmean(parts[_grown_part(plan, seed, rates)]["search"] for seed in _pilots(plan))

    return max(_pairs(plan), key=mean)


def _best_rate(plan: StudyPlan, parts: StudyParts, arm: str) -> float:
    """Return the rate of another arm, chosen in the same way."""
    known = {seed: parts[_grown_part(plan, seed, _best_pair(plan, parts))] for seed in _pilots(plan)}

    def mean(rate: float) -> float:
        return fmean(parts[_other_part(plan, seed, arm, known[seed], rate)]["search"] for seed in _pilots(plan))

    return max(_rates(plan), key=mean)


def _c5_parts(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    """Return the parts that are known: the pilot of the growth, the growth, the pilots of the others, the others."""
    wanted: list[StudyPart] = []
    for stage in (_pilot_of_growth, _growths, _pilots_of_others, _others):
        wanted += stage(plan, parts)
        if not all(each in parts for each in wanted):
            break
    return wanted


def _pilot_of_growth(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    return [_grown_part(plan, seed, pair) for pair in _pairs(plan) for seed in _pilots(plan)]


def _growths(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    return [_grown_part(plan, seed, _best_pair(plan, parts)) for seed in range(plan.seeds)]


def _known(plan: StudyPlan, parts: StudyParts, seed: int) -> Result:
    """Return the growth of a seed, whose compute the others spend."""
    return parts[_grown_part(plan, seed, _best_pair(plan, parts))]


def _pilots_of_others(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    trials = [(seed, arm, rate) for arm in _OTHERS for rate in _rates(plan) for seed in _pilots(plan)]
    return [_other_part(plan, seed, arm, _known(plan, parts, seed), rate) for seed, arm, rate in trials]


def _others(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    return [each for arm in _OTHERS for each in _arm_parts(plan, parts, arm)]


def _arm_parts(plan: StudyPlan, parts: StudyParts, arm: str) -> list[StudyPart]:
    """Return the trainings of another arm, one for each seed, at its best rate."""
    rate = _best_rate(plan, parts, arm)
    return [_other_part(plan, seed, arm, _known(plan, parts, seed), rate) for seed in range(plan.seeds)]


def _c5_later(plan: StudyPlan, parts: StudyParts) -> dict[str, float]:
    """Return about how much work is not known yet."""
    known = len(_c5_parts(plan, parts))
    total = len(_pilots(plan)) * (len(_pairs(plan)) + 4 * len(_rates(plan))) + 5 * plan.seeds
    return {"fixed_images": float(max(0, total - known) * _steps(plan))}


# --- judging ----------------------------------------------------------------------------------------------------------


def _c5_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the accuracies on the test split, at equal compute."""
    grown = [parts[each] for each in _growths(plan, parts)]
    found = {_GROWN: grown} | {arm: [parts[each] for each in _arm_parts(plan, parts, arm)] for arm in _OTHERS}
    accuracy = {arm: [float(each["test"]) for each in results] for arm, results in found.items()}
    verdicts = [judge_difference(f"{_GROWN} > {arm}", paired(accuracy[_GROWN], accuracy[arm])) for arm in _OTHERS]
    rates = {arm: f"{_best_rate(plan, parts, arm):g}" for arm in _OTHERS}
    rates[_GROWN] = ", ".join(f"{rate:g}" for rate in _best_pair(plan, parts))
    rows = [[arm, rates[arm], *_row(results, grown)] for arm, results in found.items()]
    space = _space(plan)
    scale = f"{data.sentence(plan.images, plan.quick)}; {SPACE}, {space.size:,} architectures; {_steps(plan)} steps of"
    scale += f" 64 images for the growth, {_SMALL:.0%} of them before it; {plan.seeds} seeds"
    tables = [StudyTable("equal compute", _COLUMNS, rows)]
    return StudyReport(scale, verdicts, tables, [*_notes(plan), *_edits(grown)])


def _row(results: Sequence[Result], grown: Sequence[Result]) -> list[Any]:
    """Return the figures of an arm; ``grown``: the growth of each seed."""
    accuracy = [float(each["test"]) for each in results]
    shares = [float(each["compute"]) / float(own["compute"]) for each, own in zip(results, grown, strict=True)]
    return [
        mean_interval(accuracy).line(100, sign=""),
        " ".join(f"{100 * each:.2f}" for each in accuracy),
        " ".join(str(each["weights"]) for each in results),
        f"{min(shares):.2f} to {max(shares):.2f}",
        fmean(float(each["steps"]) for each in results),
        fmean(float(each["seconds"]) for each in results),
    ]


def _notes(plan: StudyPlan) -> list[str]:
    space = _space(plan)
    least, most = (costs(space, arch)["params"] for arch in (space.smallest, space.largest))
    seeds = ", ".join(map(str, _pilots(plan)))
    return [
        f"the smallest network has {least} weights, the largest {most}, and the budget is {_most(plan)}",
        "compute: multiply-accumulates of all training, those of the small network too, as a share of the growth's",
        f"rates are the best of {len(_rates(plan))} on the search images of seeds {seeds}",
        "the pilot of the growth tries each rate with two shares of it for the network that grows",
    ]


_COLUMNS = (
    *("training", "rate", "test accuracy % [95 %]", "of each seed", "weights"),
    *("compute", "steps", "CPU seconds"),
)


def _edits(grown: Sequence[Result]) -> list[str]:
    """Return the edits of each seed as text."""
    said = [[" ".join(map(str, edit.values())) for edit in each["edits"]] for each in grown]
    return [f"seed {seed}: {', '.join(edits) or 'nothing was grown'}" for seed, edits in enumerate(said)]


CLAIMS = (
    Claim(
        "C5",
        "a small trained image classifier grows",
        "growth by exact edits inside hybrid_vision ends better than training the grown network from the start",
        "test accuracy at equal compute: grown > the same architecture from the start, in the paired interval",
        _c5_parts,
        _c5_judge,
        _c5_later,
    ),
)
