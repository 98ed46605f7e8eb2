"""PAD-NAS (Xia et al., arXiv 2005.07564): operations that no good architecture takes are pruned, layer by layer.

The supernet is trained on single paths; a search inside the latency window says how often each operation of each slot
occurs among the good; the rare ones go, the weights of the rest are inherited and fine-tuned; then the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from hnas.pareto import Candidate
from hnas.shrinking import loop as shrinking
from hnas.shrinking.evidence import pareto_frequency
from hnas.shrinking.loop import Edit
from hnas.space import Space
from hnas.strategies import evolution, spos
from hnas.strategies.evolution import Window
from hnas.study import Study
from hnas.training.loop import Pick, Schedule

SHARES = (120, 80, 40)  # epochs of the paper's stages
_RATES = (0.5, 0.1, 0.1)  # and their learning rates


def schedules(steps: int, rate: float = 0.1, **changes: Any) -> tuple[Schedule, ...]:
    """The paper's stages, 3 : 2 : 1 of ``steps``, the first from ``rate``, the others from a fifth of it."""
    if steps < sum(SHARES) // 40:
        raise ValueError(f"{steps} steps cannot be divided as {':'.join(map(str, SHARES))}; give at least 6")
    lengths = [round(steps * share / sum(SHARES)) for share in SHARES[:-1]]
    lengths.append(steps - sum(lengths))
    rates = [rate * share / _RATES[0] for share in _RATES]
    return tuple(Schedule(((n, r),), **changes) for n, r in zip(lengths, rates, strict=True))


def shrink(
    study: Study,
    space: Space,
    stages: Iterable[Schedule],
    pick: Pick = spos.pick,
    *,
    windows: Mapping[str, Window] | None = None,
    cost: str = "latency_ms",
    evaluations: int = 64 * 40,
    population: int = 64,
    seed: int = 0,
    threshold: float = 0.01,
    ranks: int = pareto_frequency.RANKS,
    spread: float = 0.5,
    force: bool = False,
    back: int = 0,
    extra: dict[str, nn.Parameter] | None = None,
    log: list[Edit] | None = None,
    advance: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Space:
    """Train and prune in stages; the space that is left. The arguments are those of ``search``."""
    shrinking.refuse_foreign(study, space)
    bounds = _bounds(windows, cost, population, seed)
    evolution.meets(study, space, windows, cost, seed)
    if space.size == 1:
        study.train(pick, next(iter(stages)), space=space, extra=extra, advance=advance, say=say)
        return space
    evidence = partial(pareto_frequency.scores, search=evolution.search, ranks=ranks, evaluations=evaluations, **bounds)
    rules: dict[str, Any] = {"threshold": threshold, "spread": spread, "force": force, "back": back}
    name = f"padnas/{bounds}/{evaluations}/{ranks}/{rules}"
    follow: dict[str, Any] = {"extra": extra, "log": log, "advance": advance, "say": say}
    return shrinking.run(study, space, evidence, stages, pick, name=name, **follow, **rules)


def search(
    study: Study,
    space: Space,
    *,
    windows: Mapping[str, Window] | None = None,
    cost: str = "latency_ms",
    evaluations: int | None = 64 * 40,
    seconds: float | None = None,
    population: int = 64,
    seed: int = 0,
    steps: int = 2400,
    stages: Sequence[Schedule] | None = None,
    pick: Pick = spos.pick,
    **rules: Any,
) -> Iterator[Candidate]:
    """Train and prune in stages, then the candidates of the last search, scored with the weights of the last stage.

    stages: a schedule each, in place of ``schedules(steps)``; between two of them the operations go whose share of the
    good architectures is ``threshold`` or less. windows, cost, evaluations, population: of every search; a candidate
    outside a window is drawn again. seconds: of the last search alone, for what hangs on the clock would not replay.
    rules: the rest of ``shrink``. threshold, ranks: see there the defaults, which are the paper's. spread, force: the
    guard of ``hnas.shrinking.loop.shrink``; the paper has none, which is ``force=True``. back: how many pruned
    operations return after each pruning, the likeliest first; the paper's prunes for good. extra: the architecture
    parameters of ``pick``, which follow the space. ``log`` receives the edits.
    """
    if evaluations is None:
        raise ValueError("padnas searches once a stage and needs a number of evaluations for each; give evaluations")
    bounds = _bounds(windows, cost, population, seed)
    bounded = {key: value for key, value in bounds.items() if key != "reject"}
    space = shrink(study, space, stages or schedules(steps), pick, evaluations=evaluations, **bounded, **rules)
    yield from evolution.search(study, space, evaluations=evaluations, seconds=seconds, **bounds)


def _bounds(windows: Mapping[str, Window] | None, cost: str, population: int, seed: int) -> dict[str, Any]:
    """What every search of a run goes by."""
    return {"windows": windows, "cost": cost, "population": population, "seed": seed, "reject": True}
