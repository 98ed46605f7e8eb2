"""The sections of a recipe as records: their keys, types and defaults. ``hnas.recipes.schema`` decodes a recipe.

A key that a recipe leaves out has the default of the record. ``UNSET`` stands for the default of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from hnas.distillation import Divergence
from hnas.growth.loop import GrowthRules
from hnas.ranges import Count, NonNegative, Positive, PositiveInt, Share
from hnas.shrinking.edits import ShrinkRules
from hnas.training.checkpoint import AdamOptions
from hnas.training.loop import Schedule

_Restarts = Annotated[tuple[tuple[Positive, Positive], ...], Meta(description="a list of [epochs, rate]")]
CostName = Literal["latency", "weights", "macs", "memory"]  # of a cost in the loss; ``hnas.cost.counts.COUNTED``
_Options = Annotated[dict[str, Any], Meta(description="a table of the strategy's options")]


class TrainSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[train].

    strategy: name of a file in ``hnas.strategies``.
    epochs: length of the first cycle; may be a fraction.
    rate: peak learning rate of the first cycle (0.1).
    restarts: further cycles, [[epochs, rate], ...].
    batch: images in a step, summed over all processes (128).
    smoothing: label smoothing; default: that of the task.
    distil: share of the teacher in a student's loss; default: that of the task.
    divergence: distance from the teacher, "kl" or "alpha"; default: that of the task.
    warmup, final, momentum, decay, clip, optimiser: as in ``hnas.training.loop.Schedule``.
    options: the options of the strategy.
    combine, precision: as in ``hnas.training.loop.TrainingOptions``.
    alpha_rate, alpha_decay: learning rate and weight decay of architecture parameters (0.003 and 0).
    max_skips: largest number of identities of the derived network; default: that of the strategy.
    """

    strategy: str
    epochs: Positive
    rate: NonNegative = 0.1
    restarts: _Restarts = ()
    batch: PositiveInt = 128
    smoothing: Share | UnsetType = UNSET
    distil: Share | UnsetType = UNSET
    divergence: Divergence | UnsetType = UNSET
    warmup: NonNegative = Schedule.warmup
    final: NonNegative = Schedule.final
    momentum: NonNegative = Schedule.momentum
    decay: NonNegative = Schedule.decay
    clip: NonNegative = Schedule.clip
    optimiser: Literal["sgd", "adam"] = Schedule.optimiser
    options: _Options = {}
    combine: Literal["sum", "project"] = "sum"
    precision: Literal["fp32", "bf16"] = "fp32"
    alpha_rate: Positive = AdamOptions.rate
    alpha_decay: NonNegative = AdamOptions.decay
    max_skips: Count | UnsetType = UNSET


@dataclass(frozen=True)
class DataSection:
    """[data]: the name of a file in ``hnas.tasks``, and the options that the recipe gives for its ``open_task``."""

    task: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ShrinkByEvidence:
    """[shrink] by the stages of ``hnas.shrinking.loop``: an evidence, the options that the recipe gives, the rules."""

    evidence: str
    options: Mapping[str, Any]
    rules: ShrinkRules


@dataclass(frozen=True)
class ShrinkByMethod:
    """[shrink] by a published method: its name, its options record, and the device whose latency is its cost."""

    method: str
    options: Any
    device: str | None


@dataclass(frozen=True)
class Experiment:
    """A decoded recipe: data, training, the options of the training strategy, and how the space shrinks or grows."""

    data: DataSection
    train: TrainSection
    options: Mapping[str, Any]
    shrink: ShrinkByEvidence | ShrinkByMethod | None
    grow: GrowthRules | None = None
