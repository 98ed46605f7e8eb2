"""Count the activations that the backward passes of a step keep: ``saved_bytes(supernet, task, paths)``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from hnas import strategies
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import space_of
from hnas.ops.skip import dropping
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.step import TRAIN, SubnetPath


@dataclass(frozen=True, kw_only=True)
class SavedSetting:
    """The setting of a part that counts saved activations.

    picks: name -> strategy and the options of its ``pick``.
    steps: drawn steps, whose largest pass counts.
    """

    data: StudyData
    space: str
    arguments: Mapping[str, Any]
    picks: Mapping[str, tuple[str, Mapping[str, Any]]]
    steps: int


def saved(images: Path | None, seed: int, setting: SavedSetting) -> Result:
    """Return name -> bytes of the largest pass among steps that are drawn over the whole schedule."""
    space = space_of(setting.space, setting.arguments)
    supernet, task = Supernet(space, seed), setting.data.task(images, seed)
    found = {}
    for name, (strategy, options) in setting.picks.items():
        module: Any = strategies.load(strategy)
        extra = {"extra": module.extra(space)} if hasattr(module, "extra") else {}
        pick = partial(module.pick, **extra, **options)
        steps = [pick(space, Random(f"{seed}/{k}"), k / setting.steps) for k in range(setting.steps)]
        found[name] = max(saved_bytes(supernet, task, paths) for paths in steps)
    return found


def saved_bytes(supernet: Supernet, task: Task, paths: Iterable[SubnetPath]) -> int:
    """Return the largest number of bytes that one backward pass of a step keeps: activations, no weights.

    Weights are frozen in the passes that train architecture parameters, as in ``hnas.training.step``.
    """
    raw, labels = task.batch(0)
    return max(_saved_by_pass(supernet, task, path, raw, labels) for path in paths)


def _saved_by_pass(supernet: Supernet, task: Task, path: SubnetPath, raw: Any, labels: Tensor) -> int:
    weights = {p.untyped_storage().data_ptr() for p in supernet.union.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a saved output itself would keep its graph, and the graph would keep it

    supernet.union.requires_grad_(path.split == TRAIN)
    try:
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.set_grad_enabled(path.trains), dropping(path.drop):
            inputs = task.inputs(raw, supernet.space.example(path.arch))
            loss = task.loss(supernet(path.arch, *inputs, gates=path.gates), labels, None)
        del loss
    finally:
        supernet.union.requires_grad_(True)
    return sum(found.values())
