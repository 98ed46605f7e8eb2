"""Simple networks that the accuracy of a supernet is compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hnas.recipes import baseline
from hnas.recipes.baseline import majority, train_plain_cnn
from tests.hnas import tiny


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, list[int]]]:
    """Replace the plain CNN by a linear layer. Return the first weights of each, and the images of its passes."""
    nets: list[tuple[torch.Tensor, list[int]]] = []

    def make(channels: int, classes: int) -> nn.Sequential:
        last = nn.Linear(channels, classes)
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
        passes: list[int] = []
        net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
        nets.append((last.weight.detach().clone(), passes))
        return net

    monkeypatch.setattr(baseline, "_plain_cnn", make)
    return nets


def test_baselines() -> None:
    task = tiny.task()
    _, labels = task.held("search")
    assert majority(task) == float(labels.bincount().max()) / len(labels)
    first = train_plain_cnn(task, size=12, seconds=0.0)
    assert 0 <= first <= 1
    assert train_plain_cnn(task, size=12, cpu_seconds=0.0) == first


def test_large_images_are_evaluated_in_small_chunks(made: list[tuple[torch.Tensor, list[int]]]) -> None:
    """One step of 16 images, then 64 search images: about as many pixels in a pass as 500 images of 32 x 32 have."""
    for size in (12, 112):
        train_plain_cnn(tiny.task(), size=size, seconds=0.0)
    assert [passes for _, passes in made] == [[16, 64], [16, 40, 24]]


def test_a_seed_chooses_the_weights(made: list[tuple[torch.Tensor, list[int]]]) -> None:
    for seed in (0, 1, 1):
        train_plain_cnn(tiny.task(), size=12, seconds=0.0, seed=seed)
    (first, _), (second, _), (third, _) = made
    assert torch.equal(second, third)
    assert not torch.equal(first, second)
