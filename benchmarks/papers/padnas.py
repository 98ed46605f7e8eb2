"""B1, B2: progressive design of the search space (PAD-NAS, Xia et al., WACV 2022, arXiv 2005.07564)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hnas.benchmarks.papers import data, tabular, truth
from hnas.benchmarks.papers.claims import Claim, Plan
from hnas.benchmarks.papers.hosts import some
from hnas.benchmarks.papers.parts import Part, Parts, Result, part
from hnas.benchmarks.papers.pwsnas import digits, scale
from hnas.benchmarks.papers.report import Report, Table, verdict
from hnas.benchmarks.papers.statistics import ceiling, kendall, mean_interval, paired
from hnas.benchmarks.papers.supernets import RATE, space_of, train
from hnas.cost import Price
from hnas.pareto import Candidate
from hnas.shrinking import loop as shrinking
from hnas.shrinking.evidence import pareto_frequency
from hnas.space import Arch, Option, Space
from hnas.strategies import padnas
from hnas.strategies.evolution import Window, search
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule

# The shares of the path passes before and after each pruning, as 120, 80 and 40 epochs; in sum the same for all.
STAGES = {"I (no pruning)": (1.0,), "P (one)": (2 / 3, 1 / 3), "PAD (two)": (1 / 2, 1 / 3, 1 / 6)}
RANKS = 4  # non-domination ranks that are counted; the paper's 9 are of thousands of architectures
EVALUATIONS, POPULATION = 120, 32
MEMBERS = 100  # of a final space, at most
_SEARCHES = 5


def counted(arch: Arch) -> Price:
    """The multiply-accumulates of an architecture of the table as its price."""
    table = truth.tabular()
    value = float(table.macs[table.place[arch]])
    return Price(value, "MACs", value, value, "predicted")


def middle(space: Space) -> Window:
    """The budget that both studies search in: between the quartiles of random members' multiply-accumulates."""
    values = sorted(counted(arch).value for arch in some(space, 64, 0))
    return Window(values[len(values) // 4], values[3 * len(values) // 4])


def within(space: Space, window: Window, limit: int) -> list[Arch]:
    """The members inside a window, or so many random ones of them."""
    members = [arch for arch in tabular.enumerated(space) if window.excess(counted(arch).value) == 0]
    return members if len(members) <= limit else Random("within").sample(members, limit)


def progressive(images: Path | None, seed: int, *, of: Mapping[str, str], passes: int, quick: bool = False) -> Result:
    """I, P and PAD inside one window, with the same path passes: what is left, how it is ranked, and its front."""
    task = data.named(of, images, seed, quick)
    whole = space_of(tabular.SPACE, {})
    window = middle(whole)
    evaluations, limit = (12, 16) if quick else (EVALUATIONS, MEMBERS)
    studies: dict[str, tuple[Study, Space, list[Candidate]]] = {}
    for name, shares in STAGES.items():
        study = Study(Supernet(whole, seed), task, {"macs": counted}, seed=seed)
        stages = [
            Schedule(((max(1, round(passes * share)), RATE * (0.2 if k else 1.0)),)) for k, share in enumerate(shares)
        ]
        log: list[shrinking.Edit] = []
        how: dict[str, Any] = {"evaluations": evaluations, "population": POPULATION, "ranks": RANKS, "force": True}
        how |= {"windows": {"macs": window}, "cost": "macs", "stages": stages, "log": log, "seed": seed}
        ended = [each for each in padnas.search(study, whole, **how) if "accuracy" in each.metrics]
        studies[name] = study, shrinking.replay(log, whole), ended
    common = within(studies["PAD (two)"][1], window, limit)
    found: Result = {"common": [arch.to_json() for arch in common], "window": [window.low, window.high]}
    for name, (study, space, ended) in studies.items():
        own = within(space, window, limit)
        good = pareto_frequency.select(ended, "macs", RANKS)
        found[name] = {
            "options": {choice: list(each.options) for choice, each in space.choices.items()},
            "common": [study.accuracy(arch) for arch in common],
            "own": [arch.to_json() for arch in own],
            "scores": [study.accuracy(arch) for arch in own],
            "front": [each.arch.to_json() for each in good],
            "front scores": [each.metrics["accuracy"] for each in good],
        }
    return found


def frequencies(images: Path | None, seed: int, *, of: Mapping[str, str], passes: int, quick: bool = False) -> Result:
    """How often the good architectures take each operation, by two searches, each with several seeds."""
    task = data.named(of, images, seed, quick)
    whole = space_of(tabular.SPACE, {})
    study = Study(Supernet(whole, seed), task, {"macs": counted}, seed=seed)
    train(study, "spos", {}, {"passes": passes})
    window = middle(whole)
    evaluations = 16 if quick else EVALUATIONS
    searches: dict[str, Callable[[int], Sequence[Candidate]]] = {
        "pareto": lambda s: ranked(study, whole, window, evaluations, s),
        "single": lambda s: genetic(study, whole, window, evaluations, s),
    }
    seeds = range(2 if quick else _SEARCHES)
    return {name: [list(shares(whole, run(s)).values()) for s in seeds] for name, run in searches.items()}


def ranked(study: Study, space: Space, window: Window, evaluations: int, seed: int) -> list[Candidate]:
    """What NSGA-II leaves in the first ranks, inside the window."""
    options: dict[str, Any] = {"evaluations": evaluations, "population": POPULATION, "seed": seed, "reject": True}
    found = list(search(study, space, windows={"macs": window}, cost="macs", **options))
    return pareto_frequency.select(found, "macs", RANKS)


def genetic(study: Study, space: Space, window: Window, evaluations: int, seed: int) -> list[Candidate]:
    """Single path one-shot's evolution (arXiv 1904.00420, algorithm 1): accuracy alone, offspring outside are redrawn.

    Half of a generation are crossovers, half mutations of the ten best so far, which are what is counted at the end.
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
        for k in range(min(POPULATION // 2, evaluations - len(scored))):
            if (arch := inside(makers[k % len(makers)])) is not None:
                scored[arch] = study.score(arch)
        if len(scored) == before:
            break
        top = sorted(scored.values(), key=lambda c: -c.metrics["accuracy"])[:10]
    return top


def shares(space: Space, chosen: Sequence[Candidate]) -> dict[tuple[str, Option], float]:
    """p_ij: the share of ``chosen`` that takes operation i in slot j."""
    return {
        (name, option): sum(each.arch[name] == option for each in chosen) / len(chosen)
        for name, choice in space.choices.items()
        for option in choice.options
    }


# --- B1 ---------------------------------------------------------------------------------------------------------------


def _b1_parts(plan: Plan, _: Parts) -> list[Part]:
    """The three supernets of every seed."""
    work = 3 * plan.passes + 12 * (EVALUATIONS + 2 * MEMBERS)
    return [part(progressive, seed, work=work, **digits(plan), passes=plan.passes) for seed in range(plan.seeds)]


def _b1_judge(plan: Plan, parts: Parts) -> Report:
    """Tau on a common set and on each one's own front; the architectures of the final space; the gap to alone."""
    table, space = truth.tabular(), space_of(tabular.SPACE, {})

    def places(archs: Sequence[Mapping[str, Any]]) -> list[int]:
        return [table.place[space.arch(arch)] for arch in archs]

    runs = [parts[each] for each in _b1_parts(plan, parts)]
    found: dict[str, dict[str, list[float]]] = {}
    rows = []
    for name in STAGES:
        each = [run[name] for run in runs]
        left = [members(table, r["options"], run["window"]) for r, run in zip(each, runs, strict=True)]
        found[name] = {
            "tau, common": [
                kendall(r["common"], table.real[places(run["common"])]) for r, run in zip(each, runs, strict=True)
            ],
            "tau, own front": [kendall(r["front scores"], table.real[places(r["front"])]) for r in each],
            "mean of the final space": [float(table.real[inside].mean()) for inside in left],
            "at equal MACs": [_matched(table, inside) for inside in left],
            "one-shot minus alone": [float(np.mean(r["scores"]) - table.search[places(r["own"])].mean()) for r in each],
        }
        size = float(np.mean([inside.sum() for inside in left]))
        rows.append([name, size, *(mean_interval(values).line(digits=3) for values in found[name].values())])
    last, first = found["PAD (two)"], found["I (no pruning)"]
    chance = [_chance(table, space, run["PAD (two)"]["options"], run["window"]) for run in runs]
    rows.append(["as many operations dropped at random", "", "", "", mean_interval(chance).line(digits=3), "", ""])
    random = "random in the final space"
    own = last["mean of the final space"]
    verdicts = [
        verdict(f"{random} > random in the full space", paired(own, first["mean of the final space"])),
        verdict(f"{random} > in one with as many operations dropped at random", paired(own, chance)),
        verdict("the same at equal multiply-accumulates", paired(last["at equal MACs"], [0.0] * plan.seeds)),
        verdict("tau on its own front: PAD > I", paired(last["tau, own front"], first["tau, own front"]), "tau"),
        verdict("tau on the common set: PAD > I", paired(last["tau, common"], first["tau, common"]), "tau"),
        verdict("one-shot minus alone: PAD > I", paired(last["one-shot minus alone"], first["one-shot minus alone"])),
    ]
    columns = ("supernet", "architectures", *found["PAD (two)"])
    title = "mean over seeds [95 % interval]; accuracies as shares"
    notes = [
        "cost is multiply-accumulates; everything is inside one window, the middle half of random architectures",
        "the common set is what PAD's final space holds; one-shot minus alone is on the search split",
        "P and PAD end at a fifth of the rate, I does not: its norms and weights see no such second stage",
    ]
    how = f"{plan.passes:,} passes in one, two or three stages; {EVALUATIONS} evaluations a search"
    return Report(scale(plan, how), verdicts, [Table(title, columns, rows), _controls(table, runs)], notes)


def members(table: truth.Truth, options: Mapping[str, Sequence[Option]], window: Sequence[float]) -> Any:
    """[architectures of the table]: whether each is in the space of ``options`` and in the window."""
    low, high = window
    legal = [all(arch[name] in left for name, left in options.items()) for arch in table.archs]
    return np.array(legal) & (table.macs >= low) & (table.macs <= high)


def _matched(table: truth.Truth, inside: Any) -> float:
    """The mean truth of ``inside`` minus that of all architectures within 10 % of each one's multiply-accumulates."""
    near = np.abs(table.macs[None] / table.macs[inside][:, None] - 1) <= 0.1
    return float((table.real[inside] - (near * table.real).sum(1) / near.sum(1)).mean())


def _chance(
    table: truth.Truth, space: Space, options: Mapping[str, Sequence[Option]], window: Sequence[float]
) -> float:
    """The mean truth in the window of a space that as many operations were dropped from at random; over 100 draws."""
    every = [(name, option) for name, choice in space.choices.items() for option in choice.options]
    dropped = len(every) - sum(map(len, options.values()))
    found = []
    for draw in range(100):
        rng = Random(f"chance/{draw}")
        left, _ = shrinking.shrink(space, {key: rng.random() for key in every}, dropped, force=True)
        inside = members(table, {name: choice.options for name, choice in left.choices.items()}, window)
        if inside.any():
            found.append(float(table.real[inside].mean()))
    return float(np.mean(found))


def _controls(table: truth.Truth, runs: Sequence[Result]) -> Table:
    """What a rank correlation in the window has to beat, and what it cannot exceed."""
    inside = members(table, runs[0]["I (no pruning)"]["options"], runs[0]["window"])
    real = table.real[inside]
    rows: list[list[str | float]] = [
        ["noise ceiling: halves of the seeds", ceiling(table.accuracy[inside])],
        ["params", kendall(table.params[inside], real)],
        ["multiply-accumulates", kendall(table.macs[inside], real)],
        ["random", kendall(np.random.default_rng(0).random(len(real)), real)],
    ]
    return Table("controls: tau in the window of the full space", ("control", "tau"), rows)


# --- B2 ---------------------------------------------------------------------------------------------------------------


def _b2_parts(plan: Plan, _: Parts) -> list[Part]:
    """A supernet for every seed, searched by both."""
    work = plan.passes + 3 * 625
    return [part(frequencies, seed, work=work, **digits(plan), passes=plan.passes) for seed in range(plan.seeds)]


def _b2_judge(plan: Plan, parts: Parts) -> Report:
    """Spread of the operator frequencies over search seeds, and their entropy."""
    space = space_of(tabular.SPACE, {})
    options = [len(choice.options) for choice in space.choices.values()]
    runs = [parts[each] for each in _b2_parts(plan, parts)]
    spread = {name: [float(np.std(run[name], axis=0, ddof=1).mean()) for run in runs] for name in runs[0]}
    entropy = {name: [_entropy(np.array(run[name]), options) for run in runs] for name in runs[0]}
    rows = [
        [
            name,
            mean_interval(spread[name]).line(digits=3, sign=""),
            mean_interval(entropy[name]).line(digits=3, sign=""),
        ]
        for name in spread
    ]
    verdicts = [
        verdict(
            "the spread over search seeds is smaller by Pareto ranks", paired(spread["single"], spread["pareto"]), "p"
        ),
        verdict("the distribution is sparser by Pareto ranks", paired(entropy["single"], entropy["pareto"]), "entropy"),
    ]
    columns = ("search", "sd of p over search seeds", "entropy of a slot (1: even)")
    title = f"operator frequencies over {_SEARCHES} search seeds of one supernet"
    how = f"{plan.passes:,} single-path steps; {EVALUATIONS} evaluations a search, {_SEARCHES} searches a supernet"
    return Report(scale(plan, how), verdicts, [Table(title, columns, rows)])


def _entropy(found: Any, options: Sequence[int]) -> float:
    """The mean entropy of a slot's frequencies, as a share of the largest it could be."""
    total = []
    for run in found:
        at = 0
        for n in options:
            p = run[at : at + n]
            total.append(-float(sum(x * math.log(x) for x in p if x > 0)) / math.log(n))
            at += n
    return float(np.mean(total))


CLAIMS = (
    Claim(
        "B1",
        "pruning the space by Pareto frequency",
        "random architectures of the pruned space are better than those of the full one; ranking improves by stage",
        "random-in-final > random-in-full in the paired interval (the robust claim); tau on the own front rises",
        _b1_parts,
        _b1_judge,
    ),
    Claim(
        "B2",
        "frequencies by NSGA-II against single-objective evolution",
        "the operator distribution that NSGA-II gives varies far less with the seed, and is sparser",
        "the sd of p over search seeds is smaller in the paired interval over supernets",
        _b2_parts,
        _b2_judge,
    ),
)
