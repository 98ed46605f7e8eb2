"""NSGA-II on accuracy and cost (Deb et al. 2002) inside hard windows (PAD-NAS, arXiv 2005.07564, section 3.3).

pymoo does sorting, crowding and mating; this file has the operators for choices. A candidate outside a cost window is
not scored for accuracy, and a feasible candidate always survives before it. ``search(study, space, options)`` yields
candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
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
from hnas.space import Arch, Option, Space
from hnas.study import Study

_Genes = NDArray[np.int64]
_UNKNOWN = 1e9  # the violation of a candidate without a cost
TRIES = 100  # draws for each member that must be inside the windows; pymoo's own limit for an offspring is the same
_IDLE = 10  # the search ends after this number of generations without a new architecture


class Window(NamedTuple):
    """A hard constraint on a metric: low <= value <= high. A recipe writes ``[low, high]``."""

    low: float = float("-inf")
    high: float = float("inf")

    def excess(self, value: float) -> float:
        """Return the distance of ``value`` from the window as a share of the bound; 0 inside."""
        return max(_share(self.low - value, self.low), _share(value - self.high, self.high), 0.0)


Windows = Annotated[Mapping[str, Window], Meta(description="a table of costs, each [low, high]")]


@dataclass(frozen=True)
class EvolutionOptions:
    """Options of ``search``.

    windows: metric -> Window, for costs of the study and for "accuracy"; empty (default): no constraint.
    cost: the cost of the study that is minimised ("latency_ms").
    evaluations: number of architectures to price (60); None: no limit.
    seconds: seconds after which no further architecture is priced, unless the journal has its price; None (default):
        no limit. Either ``evaluations`` or ``seconds`` must be given.
    population: number of architectures in a generation (16).
    seed: seed of all random numbers (0). The same seed and journal give the same sequence of candidates.
    reject: what happens to an architecture outside a cost window.
        True: it is priced and drawn again, as in PAD-NAS. It is not yielded, and not counted in ``evaluations``.
        False (default): it is yielded without an accuracy, and may be a parent until feasible candidates replace it.
    """

    windows: Windows = field(default_factory=dict)
    cost: str = "latency_ms"
    evaluations: int | None = 60
    seconds: float | None = None
    population: int = 16
    seed: int = 0
    reject: bool = False


def search(study: Study, space: Space, options: EvolutionOptions | None = None) -> Iterator[Candidate]:
    """Yield candidates as they are scored, the smallest architecture first.

    Candidates outside a cost window, or with an infinite (unknown) cost, have no accuracy. The search ends when the
    budget is spent, when every member was scored, or after ten generations without a new architecture.

        for candidate in search(study, space, EvolutionOptions(evaluations=200)):
            print(candidate.arch, candidate.metrics)

    Raises:
        ValueError: no budget is given, a cost is unknown, or (with ``reject``) no drawn member is inside the windows.
    """
    options = options or EvolutionOptions()
    if options.evaluations is None and options.seconds is None:
        raise ValueError("the search needs a budget; give evaluations or seconds")
    refuse_unknown_costs(study, options.windows, options.cost)
    inside = _Inside(study, options.windows) if options.reject else None
    if space.size > 1:
        yield from _evolve(study, space, options, inside)
        return
    if inside and not inside(space.smallest):
        raise inside.nothing(1)
    yield _score(study, space.smallest, options.windows)


def _evolve(study: Study, space: Space, options: EvolutionOptions, inside: _Inside | None) -> Iterator[Candidate]:
    """Yield the candidates of NSGA-II; each architecture is scored once."""
    budget = Budget(study, options.cost, options.evaluations, options.seconds)
    algorithm = _algorithm(space, options, inside)
    scored: dict[Arch, Candidate] = {}
    idle = 0
    while len(scored) < space.size and idle < _IDLE:
        asked = algorithm.ask()
        if asked is None or not len(asked):
            return
        archs, before = [_decode_genes(space, genes) for genes in asked.get("X")], len(scored)
        for arch in archs:
            if arch not in scored:
                if budget.is_spent(len(scored), arch):
                    return
                scored[arch] = _score(study, arch, options.windows)
                yield scored[arch]
        _tell(algorithm, asked, [scored[arch] for arch in archs], options)
        idle = idle + 1 if len(scored) == before else 0


def find_member_inside(
    study: Study, space: Space, windows: Mapping[str, Window], cost: str = "latency_ms", seed: int = 0
) -> Arch:
    """Return a member inside every cost window. Call it before a long training, to find impossible windows early.

    Raises:
        ValueError: none of ``16 * TRIES`` drawn members is inside, or a window bounds an unknown cost.
    """
    refuse_unknown_costs(study, windows, cost)
    inside, rng = _Inside(study, windows), Random(seed)
    for k in range(16 * TRIES):
        arch = (space.smallest, space.largest)[k] if k < 2 else space.sample(rng)
        if inside(arch):
            return arch
    raise inside.nothing(16 * TRIES)


def violation(candidate: Candidate, windows: Mapping[str, Window]) -> float:
    """Return the sum of the excesses over all windows. It is 0 if the candidate is inside and each cost is known.

    An infinite cost means an unknown cost. Its violation is larger than any other.
    """
    if not np.isfinite(list(candidate.metrics.values())).all():
        return _UNKNOWN
    return sum(window.excess(candidate.metrics.get(name, 0.0)) for name, window in windows.items())


def _decode_genes(space: Space, genes: _Genes) -> Arch:
    """Return the member whose active choices take the options at the indices ``genes`` [choices]."""
    wanted = {name: choice.options[int(g)] for (name, choice), g in zip(space.choices.items(), genes, strict=True)}
    return space.arch(wanted)


def refuse_unknown_costs(study: Study, windows: Mapping[str, Window], cost: str) -> None:
    """Raise ValueError if ``cost`` or the metric of a window is not a cost of the study."""
    for name in (cost, *windows):
        if name not in study.costs and (name != "accuracy" or name == cost):
            raise ValueError(f"no cost {name!r} in this study; known: {', '.join(study.costs) or 'none'}")


def _score(study: Study, arch: Arch, windows: Mapping[str, Window]) -> Candidate:
    """Price ``arch``; score its accuracy where every cost is inside its window."""
    prices = {name: study.price(arch, name).value for name in study.costs}
    if violation(Candidate(arch, prices), {name: w for name, w in windows.items() if name != "accuracy"}) > 0:
        return Candidate(arch, prices)
    return study.score(arch)


def _share(excess: float, bound: float) -> float:
    return excess / abs(bound) if abs(bound) not in (0.0, float("inf")) else (0.0 if abs(bound) else excess)


def _algorithm(space: Space, options: EvolutionOptions, inside: _Inside | None) -> Any:
    """Return pymoo's NSGA-II over the choices of ``space``, ready to be asked."""
    algorithm = NSGA2(
        pop_size=options.population,
        n_offsprings=max(2, options.population // 2),
        sampling=_Start(space, inside),
        crossover=TwoPointCrossover(),
        mutation=_Reset(space),
        eliminate_duplicates=_Same(space, inside),
    )
    problem = Problem(n_var=len(space.choices), n_obj=2, n_ieq_constr=1)
    algorithm.setup(problem, seed=options.seed, termination=("n_gen", 10**9))
    return algorithm


def _tell(algorithm: Any, asked: Any, candidates: list[Candidate], options: EvolutionOptions) -> None:
    """Pass the objectives (negative accuracy, cost) and the violations of ``candidates`` to the algorithm."""
    rows = [[-c.metrics.get("accuracy", 0.0), min(c.metrics[options.cost], _UNKNOWN)] for c in candidates]
    violations = [[violation(c, options.windows)] for c in candidates]
    Evaluator().eval(StaticProblem(algorithm.problem, F=np.array(rows), G=np.array(violations)), asked)
    algorithm.tell(infills=asked)


class Budget:
    """The architectures and the seconds that a search may take; None: no limit."""

    def __init__(self, study: Study, cost: str, evaluations: int | None, seconds: float | None) -> None:
        self.study, self.cost = study, cost
        self.evaluations, self.seconds = evaluations, seconds
        self.begun = time.monotonic()

    def is_spent(self, priced: int, arch: Arch) -> bool:
        """Return whether ``arch`` may not be tried after ``priced`` others. What the journal holds costs no time."""
        late = self.seconds is not None and time.monotonic() - self.begun >= self.seconds
        spent = self.evaluations is not None and priced >= self.evaluations
        return spent or (late and not (self.study.priced(arch, self.cost) or self.study.scored(arch)))


class _Inside:
    """Test whether an architecture is inside every cost window; keep the range of all tested costs for the error."""

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
        """Return the error for ``drawn`` members, if none of them was inside."""
        bounds = ", ".join(f"{name} in [{w.low:g}, {w.high:g}]" for name, w in self.windows.items())
        found = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in self.seen.items())
        return ValueError(f"no architecture meets {bounds}: {drawn} drawn ones have {found}; widen the window")


class _Start(Sampling):  # type: ignore[misc]  # pymoo ships no types
    """The first generation: the members of ``planned_archs``, then random members."""

    def __init__(self, space: Space, inside: _Inside | None = None) -> None:
        super().__init__()
        self.space = space
        self.inside = inside

    def _do(self, _: Any, n_samples: int, *__: Any, random_state: Any = None, **___: Any) -> _Genes:
        names = list(self.space.choices)
        choices = self.space.choices.items()
        planned = [{n: c.options.index(genome[n]) for n, c in choices} for genome in planned_archs(self.space)]
        rng = Random(int(random_state.integers(2**32)))
        kept: list[list[int]] = []
        for tries in range(n_samples * (TRIES if self.inside else 1)):
            row = planned[tries] if tries < len(planned) else self._random(rng)
            genes = [row[name] for name in names]
            if self.inside is None or self.inside(_decode_genes(self.space, np.array(genes))):
                kept.append(genes)
            if len(kept) == n_samples:
                break
        if not kept:
            assert self.inside is not None
            raise self.inside.nothing(n_samples * TRIES)
        return np.array(kept, np.int64)

    def _random(self, rng: Random) -> dict[str, int]:
        return {name: rng.randrange(len(choice.options)) for name, choice in self.space.choices.items()}


def planned_archs(space: Space) -> list[dict[str, Option]]:
    """Return an option for every choice (also inactive ones) of the smallest, the largest, and variants of the largest.

    A variant of the largest has one type in every slot, or one kind of choice at its smallest option. The kind is the
    last part of a choice's name (resolution, width, depth, kernel, ...). The largest is trained most, so good cheaper
    members are near it.
    """
    largest = {name: choice.options[-1] for name, choice in space.choices.items()}
    slots = {name: choice.options for name, choice in space.choices.items() if name.endswith(".op")}
    types = sorted({option for options in slots.values() for option in options}, key=str)
    kinds = dict.fromkeys(_kind(name) for name in space.choices if _kind(name) != "op")
    return [
        _at_smallest(space, {}, space.choices),
        largest,
        *({**largest, **{name: kind for name, options in slots.items() if kind in options}} for kind in types),
        *(_at_smallest(space, largest, [name for name in space.choices if _kind(name) == kind]) for kind in kinds),
    ]


def _at_smallest(space: Space, genome: Mapping[str, Option], names: Iterable[str]) -> dict[str, Option]:
    return {**genome, **{name: space.choices[name].options[0] for name in names}}


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


class _Reset(Mutation):  # type: ignore[misc]  # pymoo ships no types
    """Draw a few genes anew, two on average. Options have no distance that a polynomial mutation could use."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.sizes = np.array([len(choice.options) for choice in space.choices.values()])

    def _do(self, _: Any, X: _Genes, *__: Any, random_state: Any = None, **___: Any) -> _Genes:
        active = max(1, int((self.sizes > 1).sum()))
        fresh = (random_state.random(X.shape) * self.sizes).astype(np.int64)
        return np.where(random_state.random(X.shape) < 4.0 / active, fresh, X)


class _Same(DuplicateElimination):  # type: ignore[misc]  # pymoo ships no types
    """Treat genomes that decode to the same architecture as duplicates. Also remove genomes that are not ``inside``."""

    def __init__(self, space: Space, inside: _Inside | None = None) -> None:
        super().__init__()
        self.space = space
        self.inside = inside

    def _do(self, pop: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        seen = set() if other is None else {_decode_genes(self.space, one.X) for one in other}
        for k in reversed(range(len(pop))):  # of equal genomes in one population, the last is kept
            arch = _decode_genes(self.space, pop[k].X)
            is_duplicate[k] |= arch in seen or (other is None and self.inside is not None and not self.inside(arch))
            if other is None:
                seen.add(arch)
        return is_duplicate
