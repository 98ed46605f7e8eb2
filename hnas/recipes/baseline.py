"""Simple baselines, so that a person can judge the accuracy of a supernet.

``majority(task)`` and ``train_plain_cnn(task, seconds=30)`` return the accuracy on the search images;
``train_plain_recurrent(task, "lstm", steps=400, weights=2000)`` returns the metric of a sequence task.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hnas.study import chunk_size
from hnas.tasks import Task

_WIDTHS = (32, 64, 128, 256)
_RATE = 1e-3  # of Adam
_RECURRENT_RATE = 1e-2  # of Adam, for LSTM and GRU
_HIDDEN = range(1, 513)  # possible sizes of their state
_CHUNK = 250  # windows in one forward pass of the evaluation


def majority(task: Task) -> float:
    """Return the share of the most frequent class among the search images."""
    _, labels = task.held("search")
    return float(labels.bincount().max()) / len(labels)


def _plain_cnn(channels: int, classes: int) -> nn.Sequential:
    """Return a network of four 3 x 3 convolutions with batch norms and max pooling, as one would write it."""
    layers: list[nn.Module] = []
    for width in _WIDTHS:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if width != _WIDTHS[-1] else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def train_plain_cnn(
    task: Task,
    *,
    size: int,
    seconds: float | None = None,
    cpu_seconds: float | None = None,
    split: str = "search",
    seed: int = 0,
) -> float:
    """Train a plain CNN on the augmented batches of ``task``. Return its accuracy on a held-out split.

    size: height and width of the input, in pixels.
    seconds: how long to train, by the clock.
    cpu_seconds: how long to train, by the processor time of this process; for comparisons on busy machines.
    seed: seed of the weights (0).
    """
    clock, length = (time.monotonic, seconds) if seconds is not None else (time.process_time, cpu_seconds)
    assert length is not None
    space = task.space_arguments
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _plain_cnn(space["channels"], space["classes"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
    start, step = clock(), 0
    while step == 0 or clock() - start < length:
        for group in optimiser.param_groups:  # to zero at the end
            group["lr"] = _RATE * max(0.02, 1 - (clock() - start) / max(length, 1e-9))
        raw, labels = task.batch(step)
        loss = F.cross_entropy(net(_inputs(task, raw, size)), labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        step += 1
    net.eval()
    raw, labels = task.held(split)
    chunk = chunk_size([(size, size)])
    with torch.no_grad():
        outputs = [net(_inputs(task, raw[i : i + chunk], size)) for i in range(0, len(raw), chunk)]
    return task.metric(torch.cat(outputs), labels)


class _PlainRecurrent(nn.Module):
    """torch's LSTM or GRU with a linear readout: [N, T, features] -> [N, T, outputs]."""

    def __init__(self, kind: str, features: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](features, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs at every row."""
        found: torch.Tensor = self.readout(self.layer(x)[0])
        return found


def train_plain_recurrent(
    task: Task,
    kind: str,
    *,
    steps: int,
    weights: int,
    split: str = "test",
    rate: float = _RECURRENT_RATE,
    seed: int = 0,
) -> float:
    """Train torch's LSTM or GRU with Adam on the batches of a sequence task. Return its metric on a held-out split.

    kind: "lstm" or "gru".
    steps: number of batches.
    weights: the hidden size is the one whose number of weights is nearest to this number.
    rate: of Adam, at the start of a cosine (0.01).
    seed: seed of the weights (0).
    """
    shape = task.space_arguments["features"], task.space_arguments["outputs"]

    def counted(hidden: int) -> int:
        with torch.device("meta"):
            net = _PlainRecurrent(kind, *shape, hidden)
        return sum(each.numel() for each in net.parameters())

    place = bisect_left(_HIDDEN, weights, key=counted)  # the first that has as many weights
    near = _HIDDEN[max(0, place - 1) : place + 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _PlainRecurrent(kind, *shape, min(near, key=lambda hidden: abs(counted(hidden) - weights)))
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for step in range(steps):
        raw, labels = task.batch(step)
        loss = task.loss(net(*task.inputs(raw, ())), labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    raw, labels = task.held(split)
    with torch.no_grad():
        outputs = [net(*task.inputs(raw[i : i + _CHUNK], ())) for i in range(0, len(raw), _CHUNK)]
    return task.metric(torch.cat(outputs), labels)


def _inputs(task: Task, raw: Any, size: int) -> torch.Tensor:
    (x,) = task.inputs(raw, ((task.space_arguments["channels"], size, size),))
    return x
