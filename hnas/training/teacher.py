"""A pretrained network of any kind as the teacher of a supernet.

``task = taught(task, net, size)`` adds the teacher to a task; ``fine_tune(task, steps, file, run)`` trains it.
Every path of a training then learns from the outputs of the teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnas.files import read_tensors, write_tensors
from hnas.journal import digest
from hnas.tasks.classification import Classification

SHARE = 0.25  # of the steps of the supernet that the teacher is fine-tuned for
_RATE, _MOMENTUM, _DECAY, _CLIP, _WARM = 0.01, 0.9, 1e-4, 5.0, 20
_LARGEST = 2**31  # bytes of the file of a teacher
_CHUNK = 64  # images of a forward pass in the evaluation


@dataclass(frozen=True)
class Taught(Classification):
    """A task with a teacher, which is no part of its identity.

    teacher: a network that returns class scores.
    side: height and width of the teacher's input, in pixels.
    """

    teacher: nn.Module = field(kw_only=True)
    side: int = field(kw_only=True)

    def teach(self, raw: Any) -> Tensor:
        """Return the class scores of the teacher for uint8 images [N, H, W, C], without a gradient."""
        with torch.no_grad():
            return self.scores(raw)

    def scores(self, raw: Any) -> Tensor:
        """Return the class scores of the teacher for uint8 images [N, H, W, C]."""
        (x,) = self.inputs(raw, ((self.preprocessing.channels, self.side, self.side),))
        found: Tensor = self.teacher(x)
        return found


def taught(task: Classification, net: Any, side: int, seed: int) -> Taught:
    """Return ``task`` with the teacher ``net`` of timm, which gets a new classifier.

    Raises:
        ValueError: the network does not read images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.reset_classifier(len(task.classes))
    same = {each.name: getattr(task, each.name) for each in fields(task)}
    made = Taught(**same, teacher=net.eval(), side=side)
    try:
        made.teach(task.splits["train"].images[:2])
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{type(net).__name__} does not read images of {side} x {side} pixels: {reason}") from None
    return made


def fine_tune(task: Taught, steps: int, file: Path, run: Any, say: Callable[[str], None]) -> None:
    """Train the teacher on the training images, and leave it in evaluation mode; read it from ``file`` if it is there.

    steps: length of the training: SGD with a cosine.
    file: where the trained teacher is kept, so that a resumed run has the same one.
    run: a JSON value that identifies the run with its network and seed. The file of another run, or of a run on other
        images, is replaced.
    say: called with its accuracy on the search images.
    """
    identity = digest([run, task.to_json(), steps, task.side])
    if file.is_file():
        tensors, notes = read_tensors(file, _LARGEST)
        if notes.get("identity") == identity:
            _load(task.teacher, tensors, file)
            return
    say(f"fine-tuning the teacher for {steps} steps")
    optimiser = _optimiser(task)
    task.teacher.train()
    for step in range(steps):
        rate = _RATE * min((step + 1) / _WARM, 0.5 * (1 + math.cos(math.pi * step / steps)))
        _step(task, optimiser, step, rate)
    task.teacher.eval()
    write_tensors(
        file, {name: value.clone() for name, value in task.teacher.state_dict().items()}, {"identity": identity}
    )
    raw, labels = task.held("search")
    scores = torch.cat([task.teach(raw[i : i + _CHUNK]) for i in range(0, len(raw), _CHUNK)])
    say(f"the teacher classifies {task.metric(scores, labels):.1%} of the search images")


def _load(net: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load a state into ``net``. Raise ValueError if it is that of another network."""
    own = {name: value.shape for name, value in net.state_dict().items()}
    if {name: value.shape for name, value in tensors.items()} != own:
        raise ValueError(f"{file} holds another network than {type(net).__name__}; remove it, or choose another --out")
    net.load_state_dict(tensors)


def time_tuning(task: Taught) -> float:
    """Return the seconds of a step of ``fine_tune``; the weights of the teacher do not change."""
    optimiser = _optimiser(task)
    _step(task, optimiser, 0, 0.0)
    begun = time.monotonic()
    _step(task, optimiser, 1, 0.0)
    return time.monotonic() - begun


def _optimiser(task: Taught) -> torch.optim.SGD:
    weights = task.teacher.parameters()
    return torch.optim.SGD(weights, lr=_RATE, momentum=_MOMENTUM, nesterov=True, weight_decay=_DECAY)


def _step(task: Taught, optimiser: torch.optim.SGD, step: int, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    raw, labels = task.batch(step)
    optimiser.zero_grad()
    torch.autograd.backward(task.loss(task.scores(raw), labels))
    nn.utils.clip_grad_norm_(task.teacher.parameters(), _CLIP)
    optimiser.step()
