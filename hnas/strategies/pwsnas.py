"""PWSNAS: a space shrunk by angle (ABS, arXiv 2004.13431), and survivors that share their weights with fewer.

After a long first stage on single paths, short ones follow; after each the operations whose weights have turned least
from their initialisation go, and the budget that this frees buys copies of branches whose gradients disagree between
contexts. Then a host searches what is left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from hnas.pareto import Candidate
from hnas.shrinking import loop as shrinking
from hnas.shrinking import unsharing
from hnas.shrinking.angles import Graph, Snapshot
from hnas.shrinking.evidence import angle
from hnas.shrinking.loop import Edit
from hnas.space import Option, Space
from hnas.strategies import evolution, spos
from hnas.strategies.evolution import Window
from hnas.study import Study
from hnas.training.loop import Pick, Schedule

SHARES = (100, 5)  # epochs of the first stage and of each later one
END = 1_000_000  # members that are left when ABS stops
_RESTART = 50  # dropped operations after which ABS measures angles from the weights as they are then


def schedules(steps: int, rate: float = 0.1, **changes: Any) -> Iterator[Schedule]:
    """A first stage of ``steps``, then for ever stages of a twentieth of them from a fifth of the rate."""
    yield Schedule(((steps, rate),), **changes)
    later = Schedule(((max(1, round(steps * SHARES[1] / SHARES[0])), rate / 5),), **changes)
    yield from itertools.repeat(later)


def end(space: Space) -> int:
    """How many members shrinking should leave: ABS' million, or the cube root of a space where that is less (ours)."""
    return min(END, math.ceil(math.cbrt(space.size)))


def shrink(
    study: Study,
    space: Space,
    stages: Iterable[Schedule],
    pick: Pick = spos.pick,
    *,
    samples: int = 1000,
    form: str = "raw",
    graph: Graph | None = None,
    balance: Option | None = None,
    drop: int | None = None,
    until: int | None = None,
    restart: int = _RESTART,
    p_max: float | None = 1.5,
    spread: float = 0.5,
    force: bool = False,
    back: int = 0,
    seed: int = 0,
    windows: Mapping[str, Window] | None = None,
    cost: str = "latency_ms",
    extra: dict[str, nn.Parameter] | None = None,
    log: list[Edit] | None = None,
    advance: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Space:
    """Train, drop and split in stages; the space that is left. The arguments are those of ``search``."""
    shrinking.refuse_foreign(study, space)
    if space.size == 1:
        study.train(pick, next(iter(stages)), space=space, extra=extra, advance=advance, say=say)
        return space
    types = {option for slot in space.slots for option in space.choices[f"{slot}.op"].options}
    drop = len(types) if drop is None else drop
    until = end(space) if until is None else until
    options: dict[str, Any] = {"samples": samples, "form": form, "graph": graph, "balance": balance, "seed": seed}
    rules: dict[str, Any] = {"drop": drop, "until": until, "spread": spread, "force": force, "back": back}
    reference: Snapshot | None = None

    def evidence(study: Study, space: Space) -> Mapping[tuple[str, Option], float]:
        return angle.scores(study, space, reference=reference, **options)

    def after(space: Space, log: Sequence[Edit], stage: int) -> Sequence[Edit]:
        nonlocal reference
        gone = sum({"drop": 1, "revive": -1}.get(edit.kind, 0) for edit in log)
        if reference is None and gone > restart:
            reference = study.snapshot()
        return unsharing.unshare(study, space, p_max=p_max, seed=seed, stage=stage) if p_max else ()

    def legal(space: Space) -> bool:
        """Whether some member still fits; angles know nothing of costs."""
        try:
            evolution.meets(study, space, windows, cost, seed)
        except ValueError:
            return False
        return True

    name = f"pwsnas/{options}/{rules}/{restart}/{p_max}" + (f"/{windows}/{cost}" if windows else "")
    follow: dict[str, Any] = {"extra": extra, "log": log, "advance": advance, "say": say}
    follow |= {"after": after, "legal": legal if windows else None}
    return shrinking.run(study, space, evidence, stages, pick, name=name, **follow, **rules)


def search(
    study: Study,
    space: Space,
    *,
    windows: Mapping[str, Window] | None = None,
    cost: str = "latency_ms",
    evaluations: int | None = 1000,
    seconds: float | None = None,
    population: int = 50,
    seed: int = 0,
    steps: int = 2400,
    stages: Sequence[Schedule] | None = None,
    pick: Pick = spos.pick,
    host: Pick | None = None,
    host_schedule: Schedule | None = None,
    extra: dict[str, nn.Parameter] | None = None,
    say: Callable[[str], None] | None = None,
    **rules: Any,
) -> Iterator[Candidate]:
    """Train and shrink in stages, let a host train what is left, then the candidates of an evolutionary search there.

    stages: schedules in place of ``schedules(steps)``. host, host_schedule: a training strategy that goes on in the
    shrunken space; the published comparison trains its hosts anew there, which is a new study of that space. extra: the
    architecture parameters of ``pick`` or of ``host``, which follow the space from stage to stage. windows: an
    operation without which no architecture would be inside them is not dropped, however little it has turned.
    rules: the rest of ``shrink``. drop: operations a stage, the number of types unless given. until: members at which
    shrinking ends, ``end(space)`` unless given. restart: once more operations than this are gone, angles are measured
    from the weights of that moment, once. p_max: the budget of ``hnas.shrinking.unsharing.unshare``; None or 0: no
    un-sharing, which is ABS. samples, form, graph, balance: of ``hnas.shrinking.evidence.angle``. spread, force, back:
    of ``hnas.shrinking.loop``; ABS is ``force=True``. ``log`` receives the edits.
    """
    shrinking.refuse_foreign(study, space)
    evolution.meets(study, space, windows, cost, seed)
    bound: dict[str, Any] = {"windows": windows, "cost": cost, "seed": seed}
    space = shrink(study, space, stages or schedules(steps), pick, extra=extra, say=say, **bound, **rules)
    if host_schedule is not None:
        study.train(host or pick, host_schedule, space=space, extra=extra, say=say)
    limits: dict[str, Any] = {"evaluations": evaluations, "seconds": seconds, "population": population}
    yield from evolution.search(study, space, reject=True, **bound, **limits)
