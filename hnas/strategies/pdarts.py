"""P-DARTS (Chen et al., ICCV 2019, arXiv 1904.12760): DARTS in stages that drop the least likely types of every slot.

``[train] strategy = "pdarts"`` and ``[shrink] method = "pdarts"`` of a recipe run it: each cycle of the schedule is a
stage. ``shrink(study, space, PDartsOptions(), training=training)`` is the library's call.

1. Every stage is DARTS with dropout on the identity, whose rate falls within the stage. Its first steps do not train
   alpha.
2. After a stage every slot keeps its most likely types, and alpha begins at zero again. The published code keeps 5 and
   then 3 of 8 types. The paper also makes the network deeper; here its depth is that of the space.
3. The derived network has at most two identities (``hnas.sampling.derive``, ``max_skips=2``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor, nn

from hnas.ops.skip import DropBlock
from hnas.ranges import Limit, NonNegative, Share
from hnas.sampling.draws import logits_of, slot_types
from hnas.sampling.expected import CostTable, latencies
from hnas.shrinking import loop as shrinking
from hnas.shrinking.edits import Edit, Scores, ShrinkRules
from hnas.shrinking.loop import StageHooks, StageTraining
from hnas.space import Space
from hnas.strategies import darts
from hnas.strategies.darts import SPLIT, extra
from hnas.strategies.msgdas import drop_rate
from hnas.study import Study
from hnas.training.step import SubnetPath

__all__ = ("IN_STAGES", "MAX_SKIPS", "SPLIT", "PDartsOptions", "extra", "latencies", "pick", "shrink")

MAX_SKIPS = 2  # identities of a derived cell
IN_STAGES = True  # a recipe with this strategy has [shrink]


@dataclass(frozen=True)
class PDartsOptions:
    """Hold the options of the stages.

    keep: share of a slot's first number of types that it keeps after each stage but the last, rounded up (5/8, 3/8).
    """

    keep: tuple[Share, ...] = (0.625, 0.375)

    @property
    def stages(self) -> int:
        """Return the number of stages: one for each share, and the last."""
        return 1 + len(self.keep)


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    latency: CostTable | None = None,
    limit: Limit | None = None,
    weight: NonNegative = 0.1,
    warmup: Share = 0.4,
    drop: Share = 0.3,
) -> tuple[SubnetPath, ...]:
    """Return the paths of DARTS, with dropout on the identity.

    extra, latency, limit, weight: as in ``hnas.strategies.darts.pick``.
    warmup: share of a stage in which only weights are trained (0.4: 10 of 25 epochs).
    drop: rate of the dropout at the beginning of a stage, below 1; 0 switches it off (0.3).
    """
    rate = drop_rate(progress, warmup, drop)
    blocks = DropBlock(rate, 1, rng.getrandbits(32)) if rate else None
    paths = darts.pick(space, rng, progress, extra, latency, limit, weight, warmup)
    return tuple(replace(path, drop=blocks) for path in paths)


def shrink(
    study: Study,
    space: Space,
    options: PDartsOptions | None = None,
    *,
    training: StageTraining,
    log: list[Edit] | None = None,
) -> Space:
    """Train and drop in stages; return the space that is left. The last stage only trains.

    training: the schedules of the stages, ``pick``, and the logits that it trains.
    log: receives the edits.

    Raises:
        ValueError: the training has no logits, or the space is not part of the study's.
    """
    options = options or PDartsOptions()
    shrinking.refuse_foreign(study, space)
    if not training.extra:
        raise ValueError('pdarts drops types by their logits; train with a strategy that has some, such as "pdarts"')
    first = {slot: len(slot_types(space, slot)) for slot in space.slots}
    before, keep = study.trained, options.keep or (1.0,)

    def unlikely(trained: Study, left: Space) -> Scores:
        """Score 0 for the types that go after this stage, 1 for the others."""
        stage = trained.trained - before - 1  # a resumed run does not ask again for the stages that it has finished
        share = keep[min(stage, len(keep) - 1)]
        return {
            (f"{slot}.op", kind): float(rank < max(1, math.ceil(share * first[slot])))
            for slot in left.slots
            for rank, kind in enumerate(_by_likelihood(left, slot, training.extra))
        }

    def restart(left: Space, _: object, __: int) -> tuple[Edit, ...]:
        for slot in left.slots:
            training.extra[slot] = nn.Parameter(torch.zeros(len(slot_types(left, slot))))
        return ()

    rules = ShrinkRules(threshold=0.5, force=True)
    key = ["pdarts", options]
    return shrinking.run_stages(
        study, space, unlikely, training, rules, key=key, hooks=StageHooks(after=restart), log=log
    )


def _by_likelihood(space: Space, slot: str, extra: Mapping[str, Tensor]) -> list[str]:
    """Return the types of a slot, the most likely first."""
    logits, kinds = logits_of(space, slot, extra).tolist(), slot_types(space, slot)
    return [kinds[k] for k in sorted(range(len(kinds)), key=lambda k: -logits[k])]
