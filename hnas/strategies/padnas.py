"""PAD-NAS (Xia et al., arXiv 2005.07564): operations that no good architecture takes are pruned, slot by slot.

The supernet is trained on single paths. A search inside the latency window counts how often the good architectures take
each operation of each slot. Rare operations are dropped, and training continues with the remaining weights. These
stages repeat. ``search(study, space, PadNasOptions(...))`` runs the stages and yields candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hnas.pareto import Candidate
from hnas.ranges import Count, PositiveInt, Share
from hnas.shrinking import loop as shrinking
from hnas.shrinking.edits import Edit, ShrinkRules
from hnas.shrinking.evidence import pareto_frequency
from hnas.shrinking.loop import StageTraining
from hnas.space import Space
from hnas.strategies import evolution, spos
from hnas.strategies.evolution import EvolutionOptions, Windows
from hnas.study import Study
from hnas.training.loop import Schedule

SHARES = (120, 80, 40)  # epochs of the paper's stages
_RATES = (0.5, 0.1, 0.1)  # learning rates of the paper's stages
STEPS = 2400  # default number of steps, of all stages together


@dataclass(frozen=True)
class PadNasOptions:
    """Options of PAD-NAS; the defaults are the paper's, except for the guard ``spread``.

    windows: metric -> Window of every search (section 3.3: a latency window); empty (default): none.
    evaluations: number of architectures that each search prices (section 4: 40 generations of 64).
    population: number of architectures in a generation (section 4: 64).
    seed: seed of the searches (0).
    threshold: operations whose share of the good architectures is at most this are dropped (section 3.3: 0.01).
    ranks: non-domination ranks that count as good (section 3.3: 9).
    spread: largest share of its slots that an operation type may be dropped from (0.5). The paper has no such guard.
    force: switch off the guard ``spread``, as in the paper (False).
    back: number of dropped operations that are restored after each stage, the most frequent first (0, as in the paper).
    cost: the cost of the study that every search minimises ("latency_ms"). A recipe cannot set it; it sets ``device``.
    seconds: time limit of the last search; None (default): no limit. The searches between stages have no time limit, so
        that a repeated run drops the same operations.

    Raises:
        ValueError: ``evaluations`` is 0.
    """

    windows: Windows = field(default_factory=dict)
    evaluations: PositiveInt = 64 * 40
    population: PositiveInt = 64
    seed: Count = 0
    threshold: Share = 0.01
    ranks: PositiveInt = pareto_frequency.RANKS
    spread: Share = 0.5
    force: bool = False
    back: Count = 0
    cost: str = field(default="latency_ms", metadata={"recipe": False})
    seconds: float | None = field(default=None, metadata={"recipe": False})

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ValueError(
                "padnas searches once a stage and needs a number of evaluations for each; give evaluations"
            )

    def search_options(self) -> EvolutionOptions:
        """Return the options of a search between two stages."""
        return EvolutionOptions(
            self.windows, self.cost, self.evaluations, population=self.population, seed=self.seed, reject=True
        )


def schedules(steps: int, rate: float = 0.1, **changes: Any) -> tuple[Schedule, ...]:
    """Return the schedules of the paper's three stages.

    steps: number of steps of all stages, divided 3 : 2 : 1; at least 6.
    rate: peak learning rate of the first stage (0.1). The other stages have a fifth of it.
    changes: other fields of ``Schedule``.

    Raises:
        ValueError: there are fewer than 6 steps.
    """
    if steps < sum(SHARES) // 40:
        raise ValueError(f"{steps} steps cannot be divided as {':'.join(map(str, SHARES))}; give at least 6")
    lengths = [round(steps * share / sum(SHARES)) for share in SHARES[:-1]]
    lengths.append(steps - sum(lengths))
    rates = [rate * share / _RATES[0] for share in _RATES]
    return tuple(Schedule(((n, r),), **changes) for n, r in zip(lengths, rates, strict=True))


def shrink(
    study: Study,
    space: Space,
    options: PadNasOptions | None = None,
    *,
    training: StageTraining | None = None,
    log: list[Edit] | None = None,
) -> Space:
    """Train and prune in stages; return the space that is left.

    training: schedules and strategy of the stages; None: ``schedules(2400)`` on single paths.
    log: receives the edits.

        left = padnas.shrink(study, space, PadNasOptions(threshold=0.02))

    Raises:
        ValueError: the space is not part of the study's, or no member that was drawn is inside the windows.
    """
    options = options or PadNasOptions()
    training = training or StageTraining(schedules(STEPS), spos.pick)
    shrinking.refuse_foreign(study, space)
    evolution.find_member_inside(study, space, options.windows, options.cost, options.seed)
    if space.size == 1:
        training.train_once(study, space)
        return space
    evidence = partial(
        pareto_frequency.scores,
        search=partial(evolution.search, options=options.search_options()),
        windows=options.windows,
        cost=options.cost,
        ranks=options.ranks,
    )
    rules = ShrinkRules(threshold=options.threshold, spread=options.spread, force=options.force, back=options.back)
    key = ["padnas", replace(options, seconds=None)]
    return shrinking.run_stages(study, space, evidence, training, rules, key=key, log=log)


def search(
    study: Study,
    space: Space,
    options: PadNasOptions | None = None,
    *,
    training: StageTraining | None = None,
    log: list[Edit] | None = None,
) -> Iterator[Candidate]:
    """Train and prune in stages, then yield the candidates of a last search with the weights of the last stage.

    The arguments are those of ``shrink``. Candidates outside a cost window are not yielded.

        for candidate in padnas.search(study, space, PadNasOptions({"latency_ms": Window(60, 70)}, force=True)):
            print(candidate.arch, candidate.metrics)
    """
    options = options or PadNasOptions()
    space = shrink(study, space, options, training=training, log=log)
    yield from evolution.search(study, space, replace(options.search_options(), seconds=options.seconds))
