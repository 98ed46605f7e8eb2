"""What a training run can go back to: its state in memory, the last good one, and the file that survives a kill."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnas.files import read_tensors, write_tensors
from hnas.optimiser import Diverged, MaskedSGD
from hnas.supernet import Supernet

SECONDS = 45.0  # between two checkpoints
GOOD = 100  # steps between two states that a run may fall back to
RECENT = 8  # losses whose median says where a run stands; one bad batch does not move it
ROW = 3  # steps in a row that are not finite before the state is doubted
SKIPS = 20  # skipped steps or falls back that a run may have
ADVICE = "lower the learning rate or look at the data"


class State:
    """Everything that a step changes: weights, their moments, and the architecture parameters with theirs."""

    def __init__(self, supernet: Supernet, optimiser: MaskedSGD, extra: Mapping[str, nn.Parameter]) -> None:
        self.supernet = supernet
        self.optimiser = optimiser
        self.extra = dict(extra)
        self._adam = torch.optim.Adam(self.extra.values(), lr=3e-3, betas=(0.5, 0.999)) if extra else None
        for parameter in self.extra.values():
            parameter.grad = torch.zeros_like(parameter)
        self.step_extra(rate=0.0)  # makes Adam's moments, so that they can be saved and restored from the first step on

    @torch.no_grad()
    def step_extra(self, among: Mapping[str, Sequence[int]] | None = None, *, rate: float = 3e-3) -> None:
        """One Adam step of the architecture parameters that have a gradient.

        among: parameter -> the entries that take part; they are then shifted alike, so that together they have as much
        of the softmax as before and the others keep theirs (ProxylessNAS, arXiv 1812.00332, section 3.2; without
        momentum, which would move the others, as in its published code).
        """
        if self._adam is None:
            return
        among = among or {}
        before = {name: self.extra[name][list(at)].logsumexp(0) for name, at in among.items()}
        self._adam.param_groups[0].update(lr=rate, betas=(0.0 if among else 0.5, 0.999))
        self._adam.step()
        self._adam.zero_grad()
        for name, mass in before.items():
            moved = self.extra[name][list(among[name])]
            self.extra[name][list(among[name])] = moved - (moved.logsumexp(0) - mass)

    def clear(self) -> None:
        """Drop all gradients, those of the architecture parameters too."""
        self.optimiser.clear()
        for parameter in self.extra.values():
            parameter.grad = None

    def check(self) -> None:
        """Diverged where a gradient of the architecture parameters is not finite; ``MaskedSGD`` checks the weights'."""
        for name, parameter in self.extra.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise Diverged(f"the gradient of the architecture parameters of {name} is not finite")

    def tensors(self) -> dict[str, Tensor]:
        """The state itself, by name; not a copy."""
        parts: dict[str, Tensor] = {f"weights/{name}": p for name, p in self.supernet.union.named_parameters()}
        parts |= {f"moments/{name}": m for name, m in self.optimiser.moments.items()}
        for name, parameter in self.extra.items():
            parts[f"extra/{name}"] = parameter
            assert self._adam is not None
            parts |= {f"extra-{key}/{name}": value for key, value in self._adam.state[parameter].items()}
        return parts

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state of the same names and shapes."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])
        self.supernet.changed()


class Guard:
    """Skips steps that are not finite, and takes a run back that has jumped out of its valley.

    A run has jumped where the median of its last losses is above twice the one at the last good state and half a nat.
    ``say`` gets one line each time.
    """

    def __init__(self, state: State, say: Callable[[str], None] | None = None) -> None:
        self.state = state
        self.say = say or (lambda _: None)
        self.losses: list[float] = []
        self.level = math.inf
        self.skips = 0
        self.row = 0
        self.good: dict[str, Tensor] = {}
        self._keep()

    def saw(self, step: int, loss: float) -> None:
        """Take note of a finished step and its loss."""
        self.row = 0
        self.losses = [*self.losses[-RECENT + 1 :], loss]
        if len(self.losses) < RECENT:
            return
        now = statistics.median(self.losses)
        if now > 2 * self.level + 0.5:
            self._back(step, f"the loss has jumped from {self.level:.3g} to {now:.3g}")
        elif (step + 1) % GOOD == 0:
            self.level = now
            self._keep()

    def skip(self, step: int, reason: str) -> None:
        """Take note of a step that ended before its time; three in a row mean that the state is bad."""
        self.row += 1
        if self.row == 2 * ROW:
            raise Diverged(f"{reason} at step {step}, as in the {self.row - 1} steps before; {ADVICE}")
        if self.row == ROW:
            self._back(step, reason)
        else:
            self._count(step, reason)
            self.say(f"step {step} skipped: {reason}")

    def end(self, steps: int) -> None:
        """Diverged where a run of ``steps`` steps has skipped most of them."""
        if 2 * self.skips > steps:
            raise Diverged(f"{self.skips} of {steps} steps were not finite; {ADVICE}")

    def to_json(self) -> dict[str, Any]:
        """What a resumed run must know, beside the good state."""
        return {"losses": self.losses, "level": self.level, "skips": self.skips, "row": self.row}

    def from_json(self, record: Mapping[str, Any], good: dict[str, Tensor]) -> None:
        """Stand where another guard stood."""
        self.losses, self.level = list(record["losses"]), record["level"]
        self.skips, self.row = record["skips"], record["row"]
        self.good = good

    def _keep(self) -> None:
        self.good = {name: tensor.detach().clone() for name, tensor in self.state.tensors().items()}

    def _count(self, step: int, reason: str) -> None:
        self.skips += 1
        if self.skips > SKIPS:
            raise Diverged(f"{reason} at step {step}, after {SKIPS} other steps that went wrong; {ADVICE}")

    def _back(self, step: int, reason: str) -> None:
        self._count(step, reason)
        self.state.restore(self.good)
        self.losses = []
        self.say(f"after step {step} the last good state is back: {reason}")


class Checkpoint:
    """The file of a run, written at most every ``SECONDS``; ``identity`` says whose it is. No file where it is None."""

    def __init__(self, file: Path | None, identity: Mapping[str, Any]) -> None:
        self.file = file
        self.identity = json.dumps(identity, sort_keys=True, default=str)
        self._saved = time.monotonic()

    def save(self, state: State, guard: Guard, step: int, *, last: bool) -> None:
        """Write what ``step`` finished steps have led to, if it is time, or the last."""
        if self.file is None or not (last or time.monotonic() - self._saved > SECONDS):
            return
        tensors = {**state.tensors(), **{f"good/{name}": tensor for name, tensor in guard.good.items()}}
        record = {"step": str(step), "identity": self.identity, "guard": json.dumps(guard.to_json())}
        write_tensors(self.file, tensors, record)
        self._saved = time.monotonic()

    def restore(self, state: State, guard: Guard) -> int:
        """The steps that are done already; 0 where there is no file."""
        if self.file is None or not self.file.exists():
            return 0
        tensors, record = read_tensors(self.file)
        if record.get("identity") != self.identity:
            differ = "recipe, space, data or seed differ"
            raise ValueError(f"{self.file} belongs to another run ({differ}); choose another --out")
        own = {name: tensor.shape for name, tensor in state.tensors().items()}
        expected = own | {f"good/{name}": shape for name, shape in own.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise ValueError(f"{self.file} holds other tensors than this space has; choose another --out")
        state.restore(tensors)
        good = {name.removeprefix("good/"): t for name, t in tensors.items() if name.startswith("good/")}
        guard.from_json(json.loads(record["guard"]), good)
        return int(record["step"])
