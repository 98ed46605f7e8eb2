"""Run the parts of B1 and B2: supernets with progressive pruning, and two searches that count operations.

PAD-NAS: Xia et al., WACV 2022, arXiv 2005.07564.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hnas.benchmarks.papers import tabular, truth
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.hosts import sample_members
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import RATE, space_of, train_on_budget
from hnas.cost import Price
from hnas.pareto import Candidate
from hnas.shrinking.edits import Edit, replay
from hnas.shrinking.evidence import pareto_frequency
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Option, Space
from hnas.strategies import padnas, spos
from hnas.strategies.evolution import EvolutionOptions, Window, search
from hnas.strategies.padnas import PadNasOptions
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification
from hnas.training.loop import Schedule

# The shares of the path passes before and after each pruning, as 120, 80 and 40 epochs; every row has the same sum.
STAGES = {"I (no pruning)": (1.0,), "P (one)": (2 / 3, 1 / 3), "PAD (two)": (1 / 2, 1 / 3, 1 / 6)}
RANKS = 4  # non-domination ranks that are counted; the paper's 9 are of thousands of architectures
EVALUATIONS, _POPULATION = 120, 32
MEMBERS = 100  # of a final space, at most
SEARCHES = 5  # seeds of each search of B2


@dataclass(frozen=True, kw_only=True)
class PruningSetting:
    """The setting of a part of B1 or B2: the images, and the path passes of each supernet."""

    data: StudyData
    passes: int


@dataclass(frozen=True)
class _Pruned:
    """A supernet after its stages: the study, the space that is left, and the candidates of its search."""

    study: Study
    space: Space
    candidates: Sequence[Candidate]


def progressive(images: Path | None, seed: int, setting: PruningSetting) -> Result:
    """Train I, P and PAD inside one window, with the same path passes; return spaces, rankings and fronts."""
    task = setting.data.task(images, seed)
    window = _middle_window(space_of(tabular.SPACE, {}))
    evaluations, limit = (12, 16) if setting.data.quick else (EVALUATIONS, MEMBERS)
    pruned = {
        name: _prune(task, seed, [setting.passes * share for share in stages], window, evaluations)
        for name, stages in STAGES.items()
    }
    common = _members_within(pruned["PAD (two)"].space, window, limit)
    found: Result = {"common": [arch.to_json() for arch in common], "window": [window.low, window.high]}
    return found | {name: _scored(each, common, window, limit) for name, each in pruned.items()}


def _prune(task: Classification, seed: int, passes: Sequence[float], window: Window, evaluations: int) -> _Pruned:
    """Train one supernet in stages of ``passes`` steps, with a pruning between two stages, then search it."""
    whole = space_of(tabular.SPACE, {})
    study = Study(Supernet(whole, seed), task, {"macs": _macs_price}, seed=seed)
    log: list[Edit] = []
    stages = [Schedule(((max(1, round(n)), RATE * (0.2 if k else 1.0)),)) for k, n in enumerate(passes)]
    options = PadNasOptions({"macs": window}, evaluations, _POPULATION, seed, ranks=RANKS, force=True, cost="macs")
    ended = padnas.search(study, whole, options, training=StageTraining(stages, spos.pick), log=log)
    candidates = [each for each in ended if "accuracy" in each.metrics]
    return _Pruned(study, replay(log, whole), candidates)


def _scored(pruned: _Pruned, common: Sequence[Arch], window: Window, limit: int) -> dict[str, Any]:
    """Return the options that are left, and the scores of the common set, of own members and of the own front."""
    study = pruned.study
    own = _members_within(pruned.space, window, limit)
    front = pareto_frequency.select(pruned.candidates, "macs", RANKS)
    return {
        "options": {choice: list(each.options) for choice, each in pruned.space.choices.items()},
        "common": [study.accuracy(arch) for arch in common],
        "own": [arch.to_json() for arch in own],
        "scores": [study.accuracy(arch) for arch in own],
        "front": [each.arch.to_json() for each in front],
        "front scores": [each.metrics["accuracy"] for each in front],
    }


def frequencies(images: Path | None, seed: int, setting: PruningSetting) -> Result:
    """Return how often good architectures take each operation, by two searches, each with several seeds."""
    quick = setting.data.quick
    whole = space_of(tabular.SPACE, {})
    study = Study(Supernet(whole, seed), setting.data.task(images, seed), {"macs": _macs_price}, seed=seed)
    train_on_budget(study, "spos", {"passes": setting.passes})
    window = _middle_window(whole)
    evaluations = 16 if quick else EVALUATIONS
    searches: dict[str, Callable[[int], Sequence[Candidate]]] = {
        "pareto": lambda s: _search_by_ranks(study, whole, window, evaluations, s),
        "single": lambda s: _search_by_accuracy(study, whole, window, evaluations, s),
    }
    seeds = range(2 if quick else SEARCHES)
    return {name: [list(_shares(whole, run(s)).values()) for s in seeds] for name, run in searches.items()}


def _macs_price(arch: Arch) -> Price:
    """Return the multiply-accumulates of an architecture of the table as its price."""
    table = truth.tabular()
    value = float(table.macs[table.place[arch]])
    return Price(value, "MACs", value, value, "predicted")


def _middle_window(space: Space) -> Window:
    """Return the window of both studies: between the quartiles of random members' multiply-accumulates."""
    values = sorted(_macs_price(arch).value for arch in sample_members(space, 64, 0))
    return Window(values[len(values) // 4], values[3 * len(values) // 4])


def _members_within(space: Space, window: Window, limit: int) -> list[Arch]:
    """Return the members inside a window, or ``limit`` random ones of them."""
    members = [arch for arch in tabular.all_members(space) if window.excess(_macs_price(arch).value) == 0]
    return members if len(members) <= limit else Random("within").sample(members, limit)


def _search_by_ranks(study: Study, space: Space, window: Window, evaluations: int, seed: int) -> list[Candidate]:
    """Return the candidates of NSGA-II in the first ranks, inside the window."""
    options = EvolutionOptions({"macs": window}, "macs", evaluations, population=_POPULATION, seed=seed, reject=True)
    found = search(study, space, options)
    return pareto_frequency.select(list(found), "macs", RANKS)


def _search_by_accuracy(study: Study, space: Space, window: Window, evaluations: int, seed: int) -> list[Candidate]:
    """Return the best ten of the evolution of single path one-shot (arXiv 1904.00420, algorithm 1).

    The only objective is accuracy; offspring outside the window is drawn again. Half of a generation are crossovers,
    half are mutations, of the ten best so far.
    """
    rng = Random(f"genetic/{seed}")
    scored: dict[Arch, Candidate] = {}

    def inside(make: Callable[[], Arch]) -> Arch | None:
        for _ in range(100):
            arch = make()
            if arch not in scored and window.excess(study.price(arch, "macs").value) == 0:
                return arch
        return None

    def crossover() -> Arch:
        a, b = rng.choice(top).arch, rng.choice(top).arch
        return space.arch({name: rng.choice((a, b))[name] for name in space.choices})

    def mutation() -> Arch:
        a = rng.choice(top).arch
        return space.arch({n: rng.choice(c.options) if rng.random() < 0.25 else a[n] for n, c in space.choices.items()})

    top: list[Candidate] = []
    while len(scored) < evaluations:
        makers = (crossover, mutation) if top else (lambda: space.sample(rng),)
        before = len(scored)
        for k in range(min(_POPULATION // 2, evaluations - len(scored))):
            if (arch := inside(makers[k % len(makers)])) is not None:
                scored[arch] = study.score(arch)
        if len(scored) == before:
            break
        top = sorted(scored.values(), key=lambda c: -c.metrics["accuracy"])[:10]
    return top


def _shares(space: Space, chosen: Sequence[Candidate]) -> dict[tuple[str, Option], float]:
    """Return p_ij: the share of ``chosen`` that takes operation i in slot j."""
    return {
        (name, option): sum(each.arch[name] == option for each in chosen) / len(chosen)
        for name, choice in space.choices.items()
        for option in choice.options
    }
