"""NSGA-II on accuracy and latency (Deb et al. 2002) inside hard windows (PAD-NAS, arXiv 2005.07564, section 3.3).

pymoo supplies sorting, crowding and mating; the operators here know choices. A candidate outside a window is never
scored for accuracy, never survives a feasible one, and never leaves the search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.problems.static import StaticProblem

from hnas.pareto import Candidate
from hnas.space import Arch, Space
from hnas.study import Study

_Genes = NDArray[np.int64]
_UNKNOWN = 1e9  # the violation of a candidate without a cost
TRIES = 100  # draws for one member inside the windows, as often as pymoo mates for one offspring
_IDLE = 10  # generations without a new architecture that end a search


@dataclass(frozen=True)
class Window:
    """A hard bound on a metric: low <= value <= high."""

    low: float = float("-inf")
    high: float = float("inf")

    def excess(self, value: float) -> float:
        """How far ``value`` lies outside, as a share of the bound; 0 inside."""
        return max(_share(self.low - value, self.low), _share(value - self.high, self.high), 0.0)


def search(
    study: Study,
    space: Space,
    *,
    windows: Mapping[str, Window] | None = None,
    cost: str = "latency_ms",
    evaluations: int | None = 60,
    seconds: float | None = None,
    population: int = 16,
    seed: int = 0,
    reject: bool = False,
) -> Iterator[Candidate]:
    """Candidates as they are scored, the smallest first; those outside a cost window have no accuracy.

    Nor have those of infinite cost, which is one that could not be had; they are outside in any case.

    evaluations: how many architectures are priced; seconds: after so long no further one is begun (either may be None,
    not both; what the journal has is no further one). The same seed and journal give the same sequence.
    reject: whatever is outside a cost window is drawn again, as in the paper, instead of being yielded and bred from
    while nothing better is there; what is rejected is priced too, and counts nowhere. ValueError if nothing is inside.
    It also ends where ``_IDLE`` generations in a row bring nothing new: a small space has no more.
    """
    windows = windows or {}
    _check(study, windows, cost, evaluations, seconds)
    begun, done = time.monotonic(), 0
    inside = _Inside(study, windows) if reject else None
    if space.size == 1:  # nothing to cross over or to mutate
        if inside and not inside(space.smallest):
            raise inside.nothing(1)
        yield _score(study, space.smallest, windows)
        return
    problem = Problem(n_var=len(space.choices), n_obj=2, n_ieq_constr=1)
    algorithm = NSGA2(
        pop_size=population,
        n_offsprings=max(2, population // 2),
        sampling=_Start(space, inside),
        crossover=TwoPointCrossover(),
        mutation=_Reset(space),
        eliminate_duplicates=_Same(space, inside),
    )
    algorithm.setup(problem, seed=seed, termination=("n_gen", 10**9))
    scored: dict[Arch, Candidate] = {}
    idle = 0
    while len(scored) < space.size and idle < _IDLE and (asked := algorithm.ask()) is not None and len(asked):
        rows, violations, before = [], [], len(scored)
        for genes in asked.get("X"):
            arch = decode(space, genes)
            if arch not in scored:
                late = seconds is not None and time.monotonic() - begun >= seconds
                if (evaluations is not None and done >= evaluations) or (late and not study.priced(arch, cost)):
                    return
                scored[arch] = _score(study, arch, windows)
                done += 1
                yield scored[arch]
            rows.append([-scored[arch].metrics.get("accuracy", 0.0), min(scored[arch].metrics[cost], _UNKNOWN)])
            violations.append([violation(scored[arch], windows)])
        Evaluator().eval(StaticProblem(problem, F=np.array(rows), G=np.array(violations)), asked)
        algorithm.tell(infills=asked)
        idle = idle + 1 if len(scored) == before else 0


def meets(study: Study, space: Space, windows: Mapping[str, Window] | None, cost: str, seed: int = 0) -> Arch:
    """A member inside every cost window: what to ask before training for a search. ValueError where none is found."""
    _check(study, windows or {}, cost, 1, None)
    inside, rng = _Inside(study, windows or {}), Random(seed)
    for k in range(16 * TRIES):
        arch = (space.smallest, space.largest)[k] if k < 2 else space.sample(rng)
        if inside(arch):
            return arch
    raise inside.nothing(16 * TRIES)


def violation(candidate: Candidate, windows: Mapping[str, Window]) -> float:
    """Sum of the excesses over all windows; 0 exactly when the candidate is inside every one and each cost is known.

    An infinite cost is one that could not be had: such a candidate is further outside than any other.
    """
    if not np.isfinite(list(candidate.metrics.values())).all():
        return _UNKNOWN
    return sum(window.excess(candidate.metrics.get(name, 0.0)) for name, window in windows.items())


def decode(space: Space, genes: _Genes) -> Arch:
    """The member whose active choices take the options at these indices."""
    wanted = {name: choice.options[int(g)] for (name, choice), g in zip(space.choices.items(), genes, strict=True)}
    return space.arch({name: wanted[name] for name in wanted})


def _check(
    study: Study, windows: Mapping[str, Window], cost: str, evaluations: int | None, seconds: float | None
) -> None:
    """ValueError for a search that could not end, or whose bounds nothing would measure."""
    if evaluations is None and seconds is None:
        raise ValueError("the search needs a budget; give evaluations or seconds")
    for name in (cost, *windows):
        if name not in study.costs and (name != "accuracy" or name == cost):
            raise ValueError(f"no cost {name!r} in this study; known: {', '.join(study.costs) or 'none'}")


def _score(study: Study, arch: Arch, windows: Mapping[str, Window]) -> Candidate:
    prices = {name: study.price(arch, name).value for name in study.costs}
    if violation(Candidate(arch, prices), {name: w for name, w in windows.items() if name != "accuracy"}) > 0:
        return Candidate(arch, prices)
    return study.score(arch)


def _share(excess: float, bound: float) -> float:
    return excess / abs(bound) if abs(bound) not in (0.0, float("inf")) else (0.0 if abs(bound) else excess)


class _Inside:
    """Whether an architecture is inside every cost window, and what those that were asked about cost."""

    def __init__(self, study: Study, windows: Mapping[str, Window]) -> None:
        self.study = study
        self.windows = {name: window for name, window in windows.items() if name != "accuracy"}
        self.seen: dict[str, list[float]] = {name: [] for name in self.windows}

    def __call__(self, arch: Arch) -> bool:
        prices = {name: self.study.price(arch, name).value for name in self.windows}
        for name, value in prices.items():
            self.seen[name] = [min([value, *self.seen[name]]), max([value, *self.seen[name]])]
        return violation(Candidate(arch, prices), self.windows) == 0

    def nothing(self, drawn: int) -> ValueError:
        """What to say when none of so many was inside."""
        bounds = ", ".join(f"{name} in [{w.low:g}, {w.high:g}]" for name, w in self.windows.items())
        found = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in self.seen.items())
        return ValueError(f"no architecture meets {bounds}: {drawn} drawn ones have {found}; widen the window")


class _Start(Sampling):  # type: ignore[misc]  # pymoo ships no types
    """Smallest, largest, the largest with one type everywhere or one kind of choice at its smallest, random members.

    A kind is the last part of a choice's name (resolution, width, depth, kernel, ...): around the largest, which
    training has served best, lie the good members that are cheaper.
    """

    def __init__(self, space: Space, inside: _Inside | None = None) -> None:
        super().__init__()
        self.space = space
        self.inside = inside

    def _do(self, _: Any, n_samples: int, *__: Any, random_state: Any = None, **___: Any) -> _Genes:
        choices = self.space.choices
        top = {name: len(choice.options) - 1 for name, choice in choices.items()}
        rows = [dict.fromkeys(choices, 0), top]
        types = {option for name, choice in choices.items() if name.endswith(".op") for option in choice.options}
        for kind in sorted(types, key=str):
            places = {n: c.options.index(kind) for n, c in choices.items() if n.endswith(".op") and kind in c.options}
            rows.append({**top, **places})
        for kind in dict.fromkeys(name.rpartition(".")[2] for name in choices):
            if kind != "op":
                rows.append({**top, **{name: 0 for name in choices if name.rpartition(".")[2] == kind}})
        rng = Random(int(random_state.integers(2**32)))
        kept: list[list[int]] = []
        for tries in range(n_samples * (TRIES if self.inside else 1)):
            if tries >= len(rows):
                rows.append({name: rng.randrange(len(choice.options)) for name, choice in choices.items()})
            genes = [rows[tries][name] for name in choices]
            if self.inside is None or self.inside(decode(self.space, np.array(genes))):
                kept.append(genes)
            if len(kept) == n_samples:
                break
        if not kept:
            assert self.inside is not None
            raise self.inside.nothing(n_samples * TRIES)
        return np.array(kept, np.int64)


class _Reset(Mutation):  # type: ignore[misc]  # pymoo ships no types
    """Draw a few genes anew, two on average; options have no distance that a polynomial mutation could use."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.sizes = np.array([len(choice.options) for choice in space.choices.values()])

    def _do(self, _: Any, X: _Genes, *__: Any, random_state: Any = None, **___: Any) -> _Genes:
        active = max(1, int((self.sizes > 1).sum()))
        fresh = (random_state.random(X.shape) * self.sizes).astype(np.int64)
        return np.where(random_state.random(X.shape) < 4.0 / active, fresh, X)


class _Same(DuplicateElimination):  # type: ignore[misc]  # pymoo ships no types
    """Two genomes that decode to one architecture are duplicates; what is not ``inside`` is treated as one."""

    def __init__(self, space: Space, inside: _Inside | None = None) -> None:
        super().__init__()
        self.space = space
        self.inside = inside

    def _do(self, pop: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        seen = set() if other is None else {decode(self.space, one.X) for one in other}
        for k in reversed(range(len(pop))):  # of equal ones in one population the last stays
            arch = decode(self.space, pop[k].X)
            is_duplicate[k] |= arch in seen or (other is None and self.inside is not None and not self.inside(arch))
            if other is None:
                seen.add(arch)
        return is_duplicate
