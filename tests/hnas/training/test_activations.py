"""A step of several sub-graphs keeps the activations of one branch at a time, as long as training really runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hnas import spaces, strategies
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, keep_for_alpha
from hnas.training.loop import Schedule, train
from tests.hnas import tiny

STEPS = 6


class Saved:
    """The bytes of the storages that graphs of autograd hold now, and the most they ever held."""

    def __init__(self) -> None:
        self.peak = 0
        self._users: Counter[tuple[int, int]] = Counter()

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Holder(self, tensor.detach()), _Holder.unpack)

    def change(self, storage: tuple[int, int], by: int) -> None:
        self._users[storage] += by
        self.peak = max(self.peak, sum(size for (_, size), users in self._users.items() if users > 0))


class _Holder:
    """A saved tensor. It ends with the graph that saved it."""

    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._saved, self._tensor, self._key = saved, tensor, (storage.data_ptr(), storage.nbytes())
        saved.change(self._key, 1)

    def __del__(self) -> None:
        self._saved.change(self._key, -1)

    def unpack(self) -> Tensor:
        return self._tensor


def peak_of(strategy: str, **options: Any) -> int:
    """Return the most bytes that graphs hold during a training of some steps."""
    space = spaces.load("nasbench201")(classes=4, resolution=12, width=4, nodes=3)
    whole = tiny.task()
    task = Classification(keep_for_alpha(whole.splits, 0.5), whole.preprocessing, 16, flip=False, shift=1)
    module: Any = strategies.load(strategy)
    extra: Mapping[str, Tensor] = module.extra(space) if hasattr(module, "extra") else {}
    more = {"extra": extra} if extra else {}
    saved = Saved()
    with saved.hooks():
        train(
            Supernet(space),
            task,
            lambda given, rng, progress: module.pick(given, rng, progress, **more, **options),
            Schedule(((STEPS, 0.0),)),
            **more,
        )
    return saved.peak


def test_several_sub_graphs_hold_no_more_than_one_path() -> None:
    one = peak_of("spos")
    assert peak_of("msgdas", paths=3) <= 1.15 * one
    assert peak_of("darts") > 1.5 * one


def test_graphs_that_stay_alive_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant: the backward pass of every path is left to the end of the training."""
    one, kept = peak_of("spos"), []
    monkeypatch.setattr(torch.autograd, "backward", kept.append)
    assert peak_of("msgdas", paths=3) > 2 * one
