"""Search with predictors that are fitted during the run: Bayesian optimisation with constraints (Gardner et al. 2014).

A few planned architectures are measured first. Then Gaussian processes predict the accuracy and each cost of all other
architectures. A latency is also predicted from its kernels (``hnas.cost.fitted``). The next one to try has the largest
expected improvement, weighted by the probability that it meets every constraint.
``search(study, space, SurrogateOptions(...))`` yields candidates.

An accuracy on a few thousand images is partly luck, and the best of many is the luckiest. So an architecture counts as
accurate as the lower of two values: what was measured, and what the predictor estimates from all that was measured.

The evolution of ``hnas.strategies.evolution`` finds a whole front. This search goes for one point of it, with fewer
evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # scipy.stats takes half a second to import

from hnas.cost.fitted import FittedLatency
from hnas.cost.work import NotSeparable, Work
from hnas.pareto import Candidate
from hnas.predictor import Predictor
from hnas.space import Arch, Option, Space
from hnas.strategies.evolution import Budget, Windows, planned_archs, refuse_unknown_costs, violation
from hnas.study import Study

_Floats = NDArray[np.float64]
_Model = Predictor | FittedLatency
_LATENCY = "latency_ms"
_Genome = Mapping[str, Option]  # an option for every choice of the space, also for choices that are not active
PLANNED, DRAWN = 10, 6  # architectures before the first prediction: variants of the largest, and mutations of these
_ROUNDS, _PARENTS, _CHILDREN = 4, 24, 200  # of the search on predictions
_HOPE = 0.01  # of the best probability of a sufficient accuracy; no cost is predicted below it
_TUNE = 4  # new architectures after which the predictors learn again which choices count


@dataclass(frozen=True)
class SurrogateOptions:
    """Options of ``search``.

    windows: metric -> Window, for costs of the study and for "accuracy".
    cost: the cost of the study that is minimised ("latency_ms").
    accurate: True: find the most accurate architecture inside the windows. False (default): find the cheapest one.
    relative: the window of the accuracy is a distance to the largest architecture (False).
    evaluations: number of architectures to try (60); None: no limit.
    seconds: seconds after which no further architecture is tried; None (default): no limit.
    seed: seed of all random numbers (0).
    """

    windows: Windows = field(default_factory=dict)
    cost: str = "latency_ms"
    accurate: bool = False
    relative: bool = False
    evaluations: int | None = 60
    seconds: float | None = None
    seed: int = 0


def search(study: Study, space: Space, options: SurrogateOptions) -> Iterator[Candidate]:
    """Yield candidates as they are tried, the smallest architecture first.

    A candidate outside a cost window has no accuracy. One outside the window of the accuracy may have infinite costs,
    because it was not priced. The search ends when the budget is spent, or when nothing promises an improvement.

        windows = {"accuracy": Window(low=0.92)}
        for candidate in search(study, space, SurrogateOptions(windows, evaluations=40)):
            print(candidate.arch, candidate.metrics)

    Raises:
        ValueError: no budget is given, or a cost is unknown.
    """
    if options.evaluations is None and options.seconds is None:
        raise ValueError("the search needs a budget; give evaluations or seconds")
    refuse_unknown_costs(study, options.windows, options.cost)
    rng, budget = Random(options.seed), Budget(study, options.cost, options.evaluations, options.seconds)
    belief = _Belief(study, space, options)
    genomes: dict[Arch, _Genome] = {}
    planned = iter(_first(belief, space, rng))
    while len(genomes) < space.size:
        start = next(planned, None)
        genome = start or _propose(space, rng, belief, genomes)
        if genome is None:
            return
        arch = space.arch(genome)
        if arch in genomes:
            continue
        if budget.is_spent(len(genomes), arch):
            return
        genomes[arch] = genome
        yield belief.learn(arch, planned=start is not None)


def estimated_accuracies(
    study: Study, space: Space, candidates: Sequence[Candidate], *, relative: bool
) -> dict[Arch, float]:
    """Return the accuracy of each scored candidate as a predictor estimates it from all accuracies that are known.

    relative: as in ``SurrogateOptions``.
    """
    own = {each.arch: each.metrics["accuracy"] for each in candidates if "accuracy" in each.metrics}
    known = {**study.known, **own}
    model = Predictor(space).fit(list(known), list(known.values()), variance=_luck(study, known))
    means, _ = model.predict(list(own))
    return dict(zip(own, (means + (_shift(model, space, known) if relative else 0.0)).tolist(), strict=True))


def _luck(study: Study, accuracies: Mapping[Arch, float]) -> float:
    """Return the variance of an accuracy over other search images, apart from what all subnets have in common.

    A third of the binomial variance, because subnets of one supernet err on mostly the same images. The accuracies of
    48 subnets of the shipped supernet on the two halves of its search images gave 0.33 +- 0.07.
    """
    mean = sum(accuracies.values()) / max(1, len(accuracies))
    return max(0.0, mean * (1 - mean)) / study.search_images / 3


def _shift(model: _Model, space: Space, known: Mapping[Arch, float]) -> float:
    """Return what gives the estimate of the largest architecture its measured accuracy.

    A window that is a distance to the largest one has its luck. This luck is not to count for or against the others.
    """
    if space.largest not in known:
        return 0.0
    return known[space.largest] - float(model.predict([space.largest])[0][0])


def _first(belief: _Belief, space: Space, rng: Random) -> Iterator[_Genome]:
    """Yield the ends of the space and variants of the largest; then accurate known members, or mutations of these."""
    planned = planned_archs(space)[:PLANNED]
    yield from planned
    known = belief.known
    accurate = sorted(known, key=lambda arch: known[arch])[-len(known) // 4 :]
    if len(accurate) >= DRAWN:
        yield from (_completed(space, arch) for arch in rng.sample(accurate, DRAWN))
        return
    for _ in range(DRAWN):
        yield _crossed(rng.choice(planned), _drawn(space, rng), rng, share=rng.choice((0.2, 0.4)))


class _Belief:
    """Hold what was tried, and predict the rest."""

    def __init__(self, study: Study, space: Space, options: SurrogateOptions) -> None:
        self.study, self.space, self.options = study, space, options
        self.known = {arch: accuracy for arch, accuracy in study.known.items() if arch in space}
        self.tried: list[Candidate] = []
        metrics = dict.fromkeys((options.cost, *options.windows, "accuracy"))
        self._predictors = {metric: _predictor(study, space, metric) for metric in metrics}
        self._models: dict[str, _Model] = {}  # those of metrics that are known for some architecture
        self._tuned: dict[str, int] = {}  # metric -> number of known values when its predictor last learned what counts
        self._shift = 0.0
        self._estimated: dict[Arch, float] = {}  # accuracies of architectures that were tried

    def learn(self, arch: Arch, *, planned: bool) -> Candidate:
        """Try ``arch`` and return the candidate.

        1. The cheapest architecture is sought, and the predictors exist: the accuracy comes first, because it costs
           less than a price. An architecture outside the window of the accuracy is not priced: its cost is infinite.
        2. Otherwise it is priced, and its accuracy is scored if every cost is inside its window.
        """
        window = self.options.windows.get("accuracy")
        if not (planned or self.options.accurate or window is None):  # case 1
            accuracy = self.study.search_accuracy(arch)
            if window.excess(accuracy) > 0:
                return self._kept(Candidate(arch, {**dict.fromkeys(self.study.costs, math.inf), "accuracy": accuracy}))
        costs = {metric: self.study.price(arch, metric).value for metric in self.study.costs}  # case 2
        windows = {name: window for name, window in self.options.windows.items() if name != "accuracy"}
        priced = Candidate(arch, costs)
        return self._kept(priced if violation(priced, windows) > 0 else self.study.score(arch))

    def _kept(self, candidate: Candidate) -> Candidate:
        self.tried.append(candidate)
        return candidate

    def fit(self) -> None:
        """Fit every predictor to what is known."""
        for metric, model in self._predictors.items():
            scaled = {arch: _scaled(metric, value) for arch, value in self._values(metric).items()}
            finite = {arch: value for arch, value in scaled.items() if math.isfinite(value)}
            if finite:
                before = self._tuned.get(metric, -_TUNE)
                tune = len(finite) >= before + max(_TUNE, before // 8)
                self._tuned[metric] = len(finite) if tune else before
                luck = _luck(self.study, finite) if metric == "accuracy" else 0.0
                self._models[metric] = model.fit(list(finite), list(finite.values()), variance=luck, tune=tune)
        if "accuracy" in self._models:
            self._estimate(self._models["accuracy"])

    def _values(self, metric: str) -> dict[Arch, float]:
        """Return every known value of ``metric``."""
        own = {each.arch: each.metrics[metric] for each in self.tried if metric in each.metrics}
        return {**self.known, **own} if metric == "accuracy" else own

    def _estimate(self, model: _Model) -> None:
        scored = [each.arch for each in self.tried if "accuracy" in each.metrics]
        self._shift = _shift(model, self.space, self._values("accuracy")) if self.options.relative else 0.0
        self._estimated = dict(zip(scored, (model.predict(scored)[0] + self._shift).tolist(), strict=True))

    def excluded(self, arch: Arch) -> bool:
        """Return whether the accuracy of ``arch`` is known, and outside its window."""
        window = self.options.windows.get("accuracy")
        return window is not None and arch in self.known and window.excess(self.known[arch]) > 0

    def ranked(self) -> list[Candidate]:
        """Return what was tried, the best first: by violation, then by the objective. Accuracies are the lower ones."""
        goal = "accuracy" if self.options.accurate else self.options.cost
        sign = -1.0 if self.options.accurate else 1.0

        def key(each: Candidate) -> tuple[float, float]:
            missing = violation(each, self.options.windows) + ("accuracy" not in each.metrics)
            return missing, sign * each.metrics.get(goal, 0.0)

        return sorted(map(self._lowered, self.tried), key=key)

    def _lowered(self, each: Candidate) -> Candidate:
        estimate = self._estimated.get(each.arch, math.inf)
        if "accuracy" not in each.metrics or estimate >= each.metrics["accuracy"]:
            return each
        return Candidate(each.arch, {**each.metrics, "accuracy": estimate})

    def worth(self, archs: Sequence[Arch]) -> _Floats:
        """Return how much each architecture promises: the expected improvement times a weight for its risk.

        The weight is the squared probability of meeting the windows. Without the square, the search is drawn to
        networks that would be a large improvement but are hardly ever accurate enough.
        """
        chance = self._chance(archs, ("accuracy",))
        hopeful = np.flatnonzero(chance >= _HOPE * chance.max())  # costs take longer to predict
        worth = np.zeros(len(archs))
        worth[hopeful] = self._worth([archs[int(k)] for k in hopeful], chance[hopeful])
        return worth

    def _worth(self, archs: Sequence[Arch], accurate: _Floats) -> _Floats:
        """Return the same; ``accurate`` is the probability that the accuracy of each is inside its window."""
        chance = accurate * self._chance(archs, [metric for metric in self.options.windows if metric != "accuracy"])
        goal, sign = ("accuracy", 1.0) if self.options.accurate else (self.options.cost, -1.0)
        best = self.ranked()[0]
        if violation(best, self.options.windows) > 0 or "accuracy" not in best.metrics:
            return chance  # nothing meets the windows yet
        mean, deviation = self._predicted(archs, goal)
        worth: _Floats = _expected_gain(sign * (mean - _scaled(goal, best.metrics[goal])), deviation) * chance**2
        return worth

    def _chance(self, archs: Sequence[Arch], metrics: Iterable[str]) -> _Floats:
        """Return the probability that each architecture is inside the windows of ``metrics``, where they are known."""
        chance = np.ones(len(archs))
        for metric in metrics:
            window = self.options.windows.get(metric)
            if window is not None and metric in self._models:
                low, high = _scaled(metric, window.low), _scaled(metric, window.high)
                chance *= _within(*self._predicted(archs, metric), low, high)
        return chance

    def _predicted(self, archs: Sequence[Arch], metric: str) -> tuple[_Floats, _Floats]:
        mean, deviation = self._models[metric].predict(archs)
        return mean + (self._shift if metric == "accuracy" else 0.0), deviation


def _predictor(study: Study, space: Space, metric: str) -> _Model:
    """Return a new model of ``metric``. That of a latency counts kernels, if the slots are modules of the network."""
    if metric == _LATENCY:
        with suppress(NotSeparable):
            return FittedLatency(Work(space, study.supernet.skeleton))
    return Predictor(space)


def _propose(space: Space, rng: Random, belief: _Belief, known: Mapping[Arch, _Genome]) -> _Genome | None:
    """Return the untried architecture that promises most, found by evolution on predictions; None: none promises."""
    belief.fit()
    ranked = [known[each.arch] for each in belief.ranked()[:_PARENTS]]
    pool: dict[Arch, _Genome] = _decoded(space, _flipped(space, ranked[0]))
    pool |= {arch: _completed(space, arch) for arch in belief.known}
    parents: Sequence[_Genome] = ranked
    best: tuple[float, _Genome | None] = (0.0, None)
    for _ in range(_ROUNDS):
        pool |= _decoded(space, (_child(space, rng, parents, ranked) for _ in range(_CHILDREN)))
        fresh = [arch for arch in pool if arch not in known and not belief.excluded(arch)]
        if not fresh:
            return None
        worth = belief.worth(fresh)
        order = np.argsort(-worth)[:_PARENTS]
        parents = [pool[fresh[k]] for k in order]
        best = max(best, (float(worth[order[0]]), parents[0]), key=lambda pair: pair[0])
        pool = {fresh[k]: pool[fresh[k]] for k in order}
    return best[1]


def _decoded(space: Space, genomes: Iterable[_Genome]) -> dict[Arch, _Genome]:
    return {space.arch(genome): genome for genome in genomes}


def _flipped(space: Space, genome: _Genome) -> Iterator[_Genome]:
    """Yield the genome with each single gene changed to each other option."""
    for name, choice in space.choices.items():
        for option in choice.options:
            if option != genome[name]:
                yield {**genome, name: option}


def _child(space: Space, rng: Random, parents: Sequence[_Genome], best: Sequence[_Genome]) -> _Genome:
    """Return a parent, crossed with one of the best half of the times, with one to four genes drawn anew."""
    genome = dict(rng.choice(parents))
    if rng.random() < 0.5:
        genome = _crossed(genome, rng.choice(best), rng, share=0.5)
    for name in rng.sample(list(space.choices), min(len(space.choices), rng.randint(1, 4))):
        genome[name] = rng.choice(space.choices[name].options)
    return genome


def _crossed(genome: _Genome, other: _Genome, rng: Random, share: float) -> dict[str, Option]:
    """Return the genome with each gene taken from ``other`` with the probability ``share``."""
    return {name: other[name] if rng.random() < share else option for name, option in genome.items()}


def _completed(space: Space, arch: Arch) -> _Genome:
    return {name: arch.get(name, choice.options[0]) for name, choice in space.choices.items()}


def _drawn(space: Space, rng: Random) -> _Genome:
    return {name: rng.choice(choice.options) for name, choice in space.choices.items()}


def _scaled(metric: str, value: float) -> float:
    """Return an accuracy unchanged, and the logarithm of a cost: costs of parts multiply more than they add."""
    if metric == "accuracy" or value == math.inf:
        return value
    return math.log(value) if value > 0 else -math.inf


def _within(mean: _Floats, deviation: _Floats, low: float, high: float) -> _Floats:
    inside: _Floats = ndtr((high - mean) / deviation) - ndtr((low - mean) / deviation)
    return inside


def _expected_gain(gain: _Floats, deviation: _Floats) -> _Floats:
    """Return the expected improvement (Jones et al. 1998) of predictions with a mean gain over the best."""
    z = gain / deviation
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected: _Floats = gain * ndtr(z) + deviation * density
    return np.maximum(expected, 0.0)
