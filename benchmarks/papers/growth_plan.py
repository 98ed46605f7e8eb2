"""Plan the trainings of C2 and C4: ``training_parts(plan, "lorenz", GROWN)`` returns one for every seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hnas.benchmarks.papers.claims import PASSES, StudyPlan
from hnas.benchmarks.papers.growing import GrowthPaceSetting, GrowthSetting, grown, growth_paces
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.sequences import TEXT, sequence_data

GROWN, ALTERNATE, RANDOM, LARGE, SMALL = "prune_last", "alternate", "random growth", "fixed-large", "fixed-small"
SHARE = 0.7  # of the seconds of the largest network
_STAGES = 4  # as in the recipes
_SHORTEST = 10  # steps of a training; four stages and the last one need five
_PACE_STEPS = 120  # of a training that is timed


@dataclass(frozen=True)
class _Sequence:
    """The sizes and the length of the trainings of a sequence, as in the recipe of its kind.

    steps: with the default of --passes.
    rates: arm -> peak learning rate. Random growth and "alternate" have that of "prune_last".
    """

    widths: tuple[int, ...]
    nodes: tuple[int, ...]
    steps: int
    rates: dict[str, float]


# The pilot that would choose others is python -m hnas.benchmarks.papers.rates C2.
_OF_RECIPES = dict.fromkeys((GROWN, LARGE, SMALL), 0.01)
_SEQUENCES = {
    "lorenz": _Sequence((12, 16), (1, 2, 3), 1200, _OF_RECIPES),
    "sunspots": _Sequence((16, 24), (1, 2, 3), 400, _OF_RECIPES),
    "elnino": _Sequence((16, 24), (1, 2, 3), 400, _OF_RECIPES),
    TEXT: _Sequence((64, 96), (1, 2), 600, _OF_RECIPES),
}
NAMES = tuple(_SEQUENCES)
_GROWTH: dict[str, Literal["prune_last", "alternate", "random"]] = {ALTERNATE: "alternate", RANDOM: "random"}


def sequences_of(plan: StudyPlan) -> tuple[str, ...]:
    """Return the sequences of a study; a quick run has those that need no package, with a short text."""
    return ("lorenz", TEXT) if plan.quick else NAMES


def setting_of(plan: StudyPlan, name: str, arm: str, times: float = 1.0) -> GrowthSetting:
    """Return the setting of a training.

    times: its steps, as a multiple of those of the plan.
    """
    return _of_length(plan, name, arm, round(times * _SEQUENCES[name].steps * plan.passes / PASSES))


def _of_length(plan: StudyPlan, name: str, arm: str, steps: int) -> GrowthSetting:
    own = _SEQUENCES[name]
    fixed = {LARGE: slice(-1, None), SMALL: slice(0, 1)}.get(arm)
    widths, nodes = (own.widths, own.nodes) if fixed is None else (own.widths[fixed], own.nodes[fixed])
    if plan.quick and name == TEXT:
        widths = tuple(width // 8 for width in widths)
    return GrowthSetting(
        data=sequence_data(name, plan.quick, plan.images),
        growth=_GROWTH.get(arm, "prune_last"),
        widths=widths,
        nodes=nodes,
        steps=max(_SHORTEST, steps),
        rate=own.rates.get(arm, own.rates[GROWN]),
        stages=_STAGES if fixed is None else 1,
    )


def training_parts(plan: StudyPlan, name: str, arm: str, times: float = 1.0) -> list[StudyPart]:
    """Return a training for every seed; ``times`` as in ``setting_of``."""
    setting = setting_of(plan, name, arm, times)
    work = setting.steps * setting.widths[-1]  # a rough unit: the sequences have different costs
    return [part(grown, seed, setting, work=float(work)) for seed in range(plan.seeds)]


def pace_part(plan: StudyPlan, name: str) -> StudyPart:
    """Return the part that measures the CPU seconds of a step of every arm."""
    steps = _SHORTEST if plan.quick else _PACE_STEPS
    arms = (GROWN, ALTERNATE, RANDOM, LARGE, SMALL)
    trainings = {arm: _of_length(plan, name, arm, steps) for arm in arms}
    rounds = 1 if plan.quick else 3
    setting = GrowthPaceSetting(data=sequence_data(name, plan.quick, plan.images), trainings=trainings, rounds=rounds)
    return part(growth_paces, 0, setting, work=float(rounds * steps), timed=True)


def pace_of(plan: StudyPlan, parts: StudyParts, name: str, arm: str) -> float:
    """Return the measured CPU seconds of a step."""
    return float(parts[pace_part(plan, name)][arm])


def growth_scale(plan: StudyPlan) -> str:
    """Return the scale of a verdict as text: sequences, steps and seeds."""
    lengths = [f"{name} ({training_parts(plan, name, LARGE)[0].setting.steps} steps)" for name in sequences_of(plan)]
    return f"{', '.join(lengths)}; recurrent_cell, batches of 32 windows; {plan.seeds} seeds"


def rates_note(plan: StudyPlan) -> str:
    """Return the learning rates as text."""
    found = {name: _SEQUENCES[name].rates for name in sequences_of(plan)}
    texts = [f"{name}: {', '.join(f'{arm} {rate:g}' for arm, rate in rates.items())}" for name, rates in found.items()]
    return f"peak learning rates, those of the recipes: {'; '.join(texts)}"
