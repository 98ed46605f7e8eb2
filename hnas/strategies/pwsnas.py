"""PWSNAS: a space shrunk by angle (ABS, arXiv 2004.13431), and less weight sharing among the surviving operations.

A long first stage trains single paths; short stages follow. After each stage the operations with the smallest angle
between initial and present weights are dropped. This frees parameters for copies of branches whose gradients disagree
between contexts. Another strategy, the host, may then train the remaining space.
``search(study, space, PwsNasOptions(...))`` yields candidates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hnas.pareto import Candidate
from hnas.ranges import Count, NonNegative, PositiveInt, Share
from hnas.sampling.draws import follow_space
from hnas.shrinking import loop as shrinking
from hnas.shrinking import unsharing
from hnas.shrinking.angles import AngleBasis, Snapshot
from hnas.shrinking.edits import Edit, ShrinkRules
from hnas.shrinking.evidence import angle
from hnas.shrinking.evidence.angle import Form
from hnas.shrinking.graph import PathGraph
from hnas.shrinking.loop import StageHooks, StageTraining
from hnas.space import Option, Space
from hnas.strategies import evolution, spos
from hnas.strategies.evolution import EvolutionOptions, Windows
from hnas.study import Study
from hnas.training.loop import Schedule

SHARES = (100, 5)  # epochs of the first stage and of each later one
END = 1_000_000  # members that are left when ABS stops
_RESTART = 50  # after more dropped operations than this, ABS measures angles from the weights of that moment
STEPS = 2400  # default number of steps of the first stage


@dataclass(frozen=True)
class PwsNasOptions:
    """Options of PWSNAS. ABS is ``force=True, p_max=None``. Sections are those of ABS (arXiv 2004.13431).

    samples: children for each operation whose angles are averaged (1000).
    form: form of the angle, as in ``hnas.shrinking.evidence.angle`` ("raw", section 3.2).
    balance: an option ("identity") whose number in a child is drawn first; None (default): no such option.
    drop: number of operations to drop after a stage; None (default): the number of operation types.
    until: shrinking ends when this number of members is left; None (default): ``members_left(space)``.
    restart: after more dropped operations than this, angles are measured from the weights of that moment (50).
    p_max: budget of ``hnas.shrinking.unsharing.unshare``, a factor of the supernet's parameters (1.5); None or 0: no
        copies.
    spread: largest share of its slots that an operation type may be dropped from (0.5).
    force: switch off the guard ``spread`` (False).
    back: dropped operations that are restored after each stage (0).
    seed: seed of children, copies and the last search (0).
    windows: metric -> Window; empty (default): no constraint. An operation is not dropped if no member inside the
        windows would be left.
    graph: the cell whose edges are the slots; None (default): a chain. A recipe cannot set this and the next four.
    cost: the cost of the study that the last search minimises ("latency_ms").
    evaluations: number of architectures that the last search prices (1000); None: no limit.
    seconds: time limit of the last search; None (default): no limit.
    population: number of architectures in a generation of the last search (50).
    """

    samples: PositiveInt = 1000
    form: Form = "raw"
    balance: str | None = None
    drop: PositiveInt | None = None
    until: PositiveInt | None = None
    restart: Count = _RESTART
    p_max: NonNegative | None = 1.5
    spread: Share = 0.5
    force: bool = False
    back: Count = 0
    seed: Count = 0
    windows: Windows = field(default_factory=dict)
    graph: PathGraph | None = field(default=None, metadata={"recipe": False})
    cost: str = field(default="latency_ms", metadata={"recipe": False})
    evaluations: int | None = field(default=1000, metadata={"recipe": False})
    seconds: float | None = field(default=None, metadata={"recipe": False})
    population: int = field(default=50, metadata={"recipe": False})

    def search_options(self) -> EvolutionOptions:
        """Return the options of the last search."""
        limits = self.evaluations, self.seconds, self.population
        return EvolutionOptions(self.windows, self.cost, *limits, self.seed, reject=True)

    def rules(self, space: Space) -> ShrinkRules:
        """Return the rules of the stages, with the defaults of ``drop`` and ``until`` for ``space``."""
        types = {option for slot in space.slots for option in space.choices[f"{slot}.op"].options}
        drop = len(types) if self.drop is None else self.drop
        until = members_left(space) if self.until is None else self.until
        return ShrinkRules(drop, spread=self.spread, force=self.force, back=self.back, until=until)


def schedules(steps: int, rate: float = 0.1, **changes: Any) -> Iterator[Schedule]:
    """Yield the schedule of the first stage, then endlessly that of a later stage.

    steps: number of steps of the first stage. A later stage has a twentieth.
    rate: peak learning rate of the first stage (0.1). A later stage has a fifth.
    changes: other fields of ``Schedule``.
    """
    yield Schedule(((steps, rate),), **changes)
    later = Schedule(((max(1, round(steps * SHARES[1] / SHARES[0])), rate / 5),), **changes)
    yield from itertools.repeat(later)


def members_left(space: Space) -> int:
    """Return the number of members at which shrinking ends: 1,000,000 as in ABS, or the cube root of the size.

    The smaller of the two is used. The cube root is our own rule for small spaces.
    """
    return min(END, math.ceil(math.cbrt(space.size)))


def shrink(
    study: Study,
    space: Space,
    options: PwsNasOptions | None = None,
    *,
    training: StageTraining | None = None,
    log: list[Edit] | None = None,
) -> Space:
    """Train, drop and split in stages; return the space that is left.

    training: schedules and strategy of the stages; None: ``schedules(2400)`` on single paths.
    log: receives the edits.

        left = pwsnas.shrink(study, space, PwsNasOptions(form="standardised", until=1000))

    Raises:
        ValueError: the space is not part of the study's, or its weights are not finite.
    """
    options = options or PwsNasOptions()
    training = training or StageTraining(schedules(STEPS), spos.pick)
    shrinking.refuse_foreign(study, space)
    if space.size == 1:
        training.train_once(study, space)
        return space
    rules, method = options.rules(space), _Angles(study, options)
    hooks = StageHooks(method.is_legal if options.windows else None, method.unshare)
    key = ["pwsnas", replace(options, evaluations=None, seconds=None, population=0)]
    return shrinking.run_stages(study, space, method.scores, training, rules, key=key, hooks=hooks, log=log)


def search(
    study: Study,
    space: Space,
    options: PwsNasOptions | None = None,
    *,
    training: StageTraining | None = None,
    host: StageTraining | None = None,
    log: list[Edit] | None = None,
) -> Iterator[Candidate]:
    """Train and shrink in stages, then yield the candidates of an evolutionary search in the remaining space.

    training: as in ``shrink``.
    host: a further training in the remaining space before the search, by its first schedule; None: no further training.
        Its architecture parameters, such as those of DARTS, begin as those of ``space``; they follow the space.
        The published comparison instead trains new weights in the remaining space; use a new study for this.
    log: as in ``shrink``.

        for candidate in pwsnas.search(study, space, PwsNasOptions(until=1000, evaluations=500)):
            print(candidate.arch, candidate.metrics)
    """
    options = options or PwsNasOptions()
    shrinking.refuse_foreign(study, space)
    evolution.find_member_inside(study, space, options.windows, options.cost, options.seed)
    whole, space = space, shrink(study, space, options, training=training, log=log)
    if host is not None:
        if training is None or host.extra is not training.extra:  # those of the stages have followed already
            follow_space(host.extra, whole, space)
        host.train_once(study, space)
    yield from evolution.search(study, space, options.search_options())


class _Angles:
    """The parts of PWSNAS in the stages: evidence by angle, copies of branches, and the guard of the windows."""

    def __init__(self, study: Study, options: PwsNasOptions) -> None:
        self.study = study
        self.options = options
        self.reference: Snapshot | None = None

    def scores(self, study: Study, space: Space) -> Mapping[tuple[str, Option], float]:
        """Return the angle of every operation from the reference weights."""
        given = self.options
        basis = AngleBasis(self.reference, given.graph)
        return angle.scores(
            study, space, samples=given.samples, form=given.form, balance=given.balance, seed=given.seed, basis=basis
        )

    def unshare(self, space: Space, log: Sequence[Edit], stage: int) -> Sequence[Edit]:
        """Split branches after a stage. After more than ``restart`` drops, make the present weights the reference."""
        gone = sum({"drop": 1, "revive": -1}.get(edit.kind, 0) for edit in log)
        if self.reference is None and gone > self.options.restart:
            self.reference = self.study.snapshot()
        if not self.options.p_max:
            return ()
        return unsharing.unshare(self.study, space, p_max=self.options.p_max, seed=self.options.seed, stage=stage)

    def is_legal(self, space: Space) -> bool:
        """Return whether some member of ``space`` is inside every window. The angles do not depend on costs."""
        try:
            evolution.find_member_inside(self.study, space, self.options.windows, self.options.cost, self.options.seed)
        except ValueError:
            return False
        return True
