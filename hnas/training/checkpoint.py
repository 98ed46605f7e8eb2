"""What a training run can go back to: its state in memory, the last good ones, and the file that survives a kill."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hnas.files import read_tensors, write_tensors
from hnas.supernet import Supernet
from hnas.training.optimiser import Diverged, MaskedSGD

SECONDS = 45.0  # between two checkpoints
GOOD = 100  # steps between two states that a run may fall back to
_RECENT = 8  # losses that say where a run stands; one bad batch, or one good one, does not move it
ROW = 3  # steps in a row that are not finite before the state is doubted
SKIPS = 20  # steps that may go wrong, skipped or with the state back, ...
_SPAN = 1000  # ... within so many
_TOLD = ("losses", "kinds", "first", "level", "wrong", "row", "doubt")  # what a guard knows, beside the kept states
_ADVICE = "lower the learning rate or look at the data"


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
        for own in self._adam.state.values() if self._adam else ():
            own["step"].zero_()  # and that was none: the first real step is a fresh Adam's

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

    The level is the median of the ``GOOD`` losses before a state was kept, and at first of the ``_RECENT`` first ones.
    A run has jumped where each of its ``_RECENT`` last losses is above the limit:

    1. twice the level and half a nat;
    2. half way from the level to the first losses, once the level is below half of those, where that is less and still
       half a nat above the level: it is back to about where it began.

    While the median of these is above it no state is kept. The newest of two kept states comes back. It may have been
    ruined just before it was kept: where it brings no calm, the one before comes back. ``say`` gets a line each time.
    Diverged where that does not help, or more than ``SKIPS`` of ``_SPAN`` steps go wrong; the state is then a kept one.
    """

    def __init__(self, state: State, say: Callable[[str], None] | None = None) -> None:
        self.state = state
        self.say = say or (lambda _: None)
        self.losses: list[float] = []
        self.kinds: list[object] = []
        self.first = self.level = math.inf
        self.wrong: list[int] = []
        self.row = 0
        self.doubt = False  # a state came back and no calm has followed yet
        self.kept: dict[int, dict[str, Tensor]] = {}  # after so many steps; the newest last
        self._keep(0)

    def saw(self, step: int, loss: float, kind: object = None) -> None:
        """Take note of a finished step and its loss.

        kind: of path, as JSON. One that was never seen has a level of its own: a mixture of all types stands elsewhere
        than the single paths before it.
        """
        self.row = 0
        if kind not in self.kinds:
            self.kinds.append(kind)
            self.losses, self.level = [], math.inf
        self.losses = [*self.losses[-GOOD + 1 :], loss]
        recent = self.losses[-_RECENT:]
        if len(recent) < _RECENT:
            return
        now = statistics.median_low(recent)
        if math.isinf(self.level):
            self.level = now
            self.first = now if math.isinf(self.first) else self.first
        limit = self._limit()
        if min(recent) > limit:
            self._back(step, f"the loss has jumped from {self.level:.3g} to {now:.3g}")
        elif now <= limit:
            self.doubt = False
            if (step + 1) % GOOD == 0:
                self.level = statistics.median_low(self.losses)
                self._keep(step + 1)

    def skip(self, step: int, reason: str) -> None:
        """Take note of a step that ended before its time; three in a row mean that the state is bad."""
        self.row += 1
        if self.row % ROW:
            self._count(step, reason)
            self.say(f"step {step} skipped: {reason}")
        elif self.row > ROW and len(self.kept) == 1:
            self._give_up(f"{reason} at step {step}, as in the {self.row - 1} steps before")
        else:
            self._back(step, reason)

    def end(self, steps: int) -> None:
        """Diverged where most of a run's ``steps`` steps went wrong; a long run has given up before."""
        if 2 * len(self.wrong) > steps:
            raise Diverged(f"{len(self.wrong)} of {steps} steps were not finite; {_ADVICE}")

    def tensors(self) -> dict[str, Tensor]:
        """The kept states by step and name; not a copy."""
        return {f"good/{step}/{name}": tensor for step, kept in self.kept.items() for name, tensor in kept.items()}

    def to_json(self) -> dict[str, Any]:
        """What a resumed run must know, beside the kept states."""
        return {**{name: getattr(self, name) for name in _TOLD}, "kept": list(self.kept)}

    def from_json(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Stand where another guard stood that had these ``tensors``."""
        for name in _TOLD:
            setattr(self, name, record[name])
        heads = {step: f"good/{step}/" for step in record["kept"]}
        self.kept = {k: {n.removeprefix(h): t for n, t in tensors.items() if n.startswith(h)} for k, h in heads.items()}

    def _limit(self) -> float:
        back = (self.level + self.first) / 2 if self.level < self.first / 2 else math.inf
        return min(2 * self.level + 0.5, max(back, self.level + 0.5))

    def _keep(self, step: int) -> None:
        if len(self.kept) == 2:  # before the copy is made: there are never more
            del self.kept[min(self.kept)]
        self.kept[step] = {name: tensor.detach().clone() for name, tensor in self.state.tensors().items()}

    def _count(self, step: int, reason: str) -> None:
        self.wrong = [*(other for other in self.wrong if other > step - _SPAN), step]
        if len(self.wrong) > SKIPS:
            self._give_up(f"{reason} at step {step}, after {SKIPS} others of the last {_SPAN} that went wrong")

    def _back(self, step: int, reason: str) -> None:
        self._count(step, reason)
        self._return()
        self.say(f"after step {step} the last good state is back: {reason}")

    def _return(self) -> None:
        if self.doubt and len(self.kept) == 2:
            del self.kept[max(self.kept)]
        self.doubt = True
        self.state.restore(self.kept[max(self.kept)])
        self.losses = []

    def _give_up(self, reason: str) -> NoReturn:
        """Diverged, with the last good state back, as if the steps after it had not been."""
        self._return()
        self.wrong, self.row = [step for step in self.wrong if step < max(self.kept)], 0
        raise Diverged(f"{reason}; {_ADVICE}")


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
        record = {"step": str(step), "identity": self.identity, "guard": json.dumps(guard.to_json())}
        write_tensors(self.file, state.tensors() | guard.tensors(), record)
        self._saved = time.monotonic()

    def restore(self, state: State, guard: Guard) -> int:
        """The steps that are done already; 0 where there is no file."""
        if self.file is None or not self.file.exists():
            return 0
        tensors, record = read_tensors(self.file)
        if record.get("identity") != self.identity:
            differ = "recipe, space, data or seed differ"
            raise ValueError(f"{self.file} belongs to another run ({differ}); choose another --out")
        told = json.loads(record["guard"])
        own = {name: tensor.shape for name, tensor in state.tensors().items()}
        kept = told.get("kept", [])
        expected = own | {f"good/{k}/{name}": shape for k in kept for name, shape in own.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise ValueError(f"{self.file} holds other tensors than this space has; choose another --out")
        state.restore(tensors)
        guard.from_json(told, tensors)
        return int(record["step"])
