"""The state of a training run: in memory, its last good copies, and the checkpoint file."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hnas.files import read_tensors, write_tensors
from hnas.supernet import Supernet
from hnas.training.optimiser import Diverged, MaskedOptimiser

SECONDS = 45.0  # between two checkpoints
GOOD = 100  # steps between two states that are kept as good
_RECENT = 8  # losses whose median is the current loss; one bad or good batch does not change it
ROW = 3  # steps in a row that are not finite before the last good state is restored
SKIPS = 20  # failed steps (skipped, or followed by a restored state) that are allowed ...
_SPAN = 1000  # ... within this number of steps
_TOLD = ("losses", "kinds", "first", "level", "wrong", "row", "doubt")  # fields of a guard that a checkpoint stores
_ADVICE = "lower the learning rate or look at the data"


@dataclass(frozen=True)
class AdamOptions:
    """Define the optimiser of the architecture parameters: Adam with betas of 0.5 and 0.999, as in DARTS' code.

    rate: learning rate (3e-3).
    decay: weight decay (0); DARTS has 1e-3.
    """

    rate: float = 3e-3
    decay: float = 0.0


ADAM = AdamOptions()


class TrainingState:
    """Hold what a step changes: weights, momentum buffers, and architecture parameters with Adam's moments."""

    def __init__(
        self,
        supernet: Supernet,
        optimiser: MaskedOptimiser,
        extra: Mapping[str, nn.Parameter],
        adam: AdamOptions = ADAM,
    ) -> None:
        self.supernet = supernet
        self.optimiser = optimiser
        self.extra = dict(extra)
        self._rate = adam.rate
        self._adam = (
            torch.optim.Adam(self.extra.values(), lr=adam.rate, betas=(0.5, 0.999), weight_decay=adam.decay)
            if extra
            else None
        )
        for parameter in self.extra.values():
            parameter.grad = torch.zeros_like(parameter)
        self.step_extra(
            rate=0.0
        )  # creates Adam's moments, so that they can be saved and restored before the first step
        for own in self._adam.state.values() if self._adam else ():
            own["step"].zero_()  # the first real step is then the first step of a fresh Adam

    @torch.no_grad()
    def step_extra(self, among: Mapping[str, Sequence[int]] | None = None, *, rate: float | None = None) -> None:
        """Take one Adam step on the architecture parameters that have a gradient.

        among: parameter -> indices of the entries to update; None: all entries. Afterwards these entries are shifted by
            one amount, so that their total share of the softmax is unchanged (ProxylessNAS, arXiv 1812.00332, section
            3.2). The step has no momentum (as in the published code), because momentum would change other entries.
        rate: learning rate; None (default): that of the options.
        """
        if self._adam is None:
            return
        among = among or {}
        before = {name: self.extra[name][list(at)].logsumexp(0) for name, at in among.items()}
        self._adam.param_groups[0].update(lr=self._rate if rate is None else rate, betas=(0.0 if among else 0.5, 0.999))
        self._adam.step()
        self._adam.zero_grad()
        for name, mass in before.items():
            moved = self.extra[name][list(among[name])]
            self.extra[name][list(among[name])] = moved - (moved.logsumexp(0) - mass)

    def clear(self) -> None:
        """Drop all gradients, including those of the architecture parameters."""
        self.optimiser.clear()
        for parameter in self.extra.values():
            parameter.grad = None

    def check(self) -> None:
        """Raise Diverged if a gradient of the architecture parameters is not finite; the optimiser checks weights."""
        for name, parameter in self.extra.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise Diverged(f"the gradient of the architecture parameters of {name} is not finite")

    def tensors(self) -> dict[str, Tensor]:
        """Return the state itself by name, not a copy."""
        parts: dict[str, Tensor] = {f"weights/{name}": p for name, p in self.supernet.union.named_parameters()}
        parts |= {f"moments/{name}": m for name, m in self.optimiser.moments.items()}
        for name, parameter in self.extra.items():
            parts[f"extra/{name}"] = parameter
            assert self._adam is not None
            parts |= {f"extra-{key}/{name}": value for key, value in self._adam.state[parameter].items()}
        return parts

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` into this state. They have the same names and shapes."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])
        self.supernet.changed()


class DivergenceGuard:
    """Detect steps that are not finite and losses that jump, and restore the last good state.

    The level is the median of the last 100 losses (``GOOD``) before the newest state was kept. At the start it is the
    median of the first 8 losses (``_RECENT``). The loss has jumped if each of the last 8 losses is above the limit. The
    limit is the lower of two values:

    1. Twice the level plus 0.5.
    2. The middle between the level and the first level, but at least the level plus 0.5. It is used only if the level
       is below half of the first level. Above this value, training has lost about half of its progress.

    The two newest states are kept. No state is kept while the median of the recent losses is above the limit. After a
    jump the newest state is restored. If the loss stays high, this state may itself be damaged, so the older state is
    restored. ``on_message`` gets one line for each restored state. If more than 20 (``SKIPS``) of the last 1,000 steps
    (``_SPAN``) failed, or steps still fail after the older state was restored, Diverged is raised. The weights are then
    those of a kept state.
    """

    def __init__(self, state: TrainingState, on_message: Callable[[str], None] | None = None) -> None:
        self.state = state
        self.say = on_message or (lambda _: None)
        self.losses: list[float] = []
        self.kinds: list[object] = []
        self.first = self.level = math.inf
        self.wrong: list[int] = []
        self.row = 0
        self.doubt = False  # a state was restored, and the loss has not been below the limit since
        self.kept: dict[int, dict[str, Tensor]] = {}  # finished steps -> state; the newest last
        self._keep(0)

    def record_loss(self, step: int, loss: float, kind: object = None) -> None:
        """Record the loss of a finished step; restore a state if the loss has jumped.

        kind: the kind of path as JSON. A new kind gets a new level, because for instance a mixture of all types has
            another loss than a single path.
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
            self._recover(step, f"the loss has jumped from {self.level:.3g} to {now:.3g}")
        elif now <= limit:
            self.doubt = False
            if (step + 1) % GOOD == 0:
                self.level = statistics.median_low(self.losses)
                self._keep(step + 1)

    def record_skip(self, step: int, reason: str) -> None:
        """Record a skipped step; after ``ROW`` of them in a row, restore a state."""
        self.row += 1
        if self.row % ROW:
            self._count(step, reason)
            self.say(f"step {step} skipped: {reason}")
        elif self.row > ROW and len(self.kept) == 1:
            self._give_up(f"{reason} at step {step}, as in the {self.row - 1} steps before")
        else:
            self._recover(step, reason)

    def finish(self, steps: int) -> None:
        """Raise Diverged if most of a run's ``steps`` steps failed. Long runs end earlier, by ``SKIPS``."""
        if 2 * len(self.wrong) > steps:
            raise Diverged(f"{len(self.wrong)} of {steps} steps were not finite; {_ADVICE}")

    def tensors(self) -> dict[str, Tensor]:
        """Return the kept states themselves by step and name, not copies."""
        return {f"good/{step}/{name}": tensor for step, kept in self.kept.items() for name, tensor in kept.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the guard, without the kept states, as a JSON object."""
        return {**{name: getattr(self, name) for name in _TOLD}, "kept": list(self.kept)}

    def from_json(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over the ``record`` and the kept ``tensors`` of another guard."""
        for name in _TOLD:
            setattr(self, name, record[name])
        heads = {step: f"good/{step}/" for step in record["kept"]}
        self.kept = {k: {n.removeprefix(h): t for n, t in tensors.items() if n.startswith(h)} for k, h in heads.items()}

    def _limit(self) -> float:
        back = (self.level + self.first) / 2 if self.level < self.first / 2 else math.inf  # case 2
        return min(2 * self.level + 0.5, max(back, self.level + 0.5))  # case 1, case 2

    def _keep(self, step: int) -> None:
        if len(self.kept) == 2:  # deleted before the copy is made, so that memory never holds three states
            del self.kept[min(self.kept)]
        self.kept[step] = {name: tensor.detach().clone() for name, tensor in self.state.tensors().items()}

    def _count(self, step: int, reason: str) -> None:
        self.wrong = [*(other for other in self.wrong if other > step - _SPAN), step]
        if len(self.wrong) > SKIPS:
            self._give_up(f"{reason} at step {step}, after {SKIPS} others of the last {_SPAN} that went wrong")

    def _recover(self, step: int, reason: str) -> None:
        self._count(step, reason)
        self._restore()
        self.say(f"after step {step} the last good state is restored: {reason}")

    def _restore(self) -> None:
        if self.doubt and len(self.kept) == 2:
            del self.kept[max(self.kept)]
        self.doubt = True
        self.state.restore(self.kept[max(self.kept)])
        self.losses = []

    def _give_up(self, reason: str) -> NoReturn:
        """Restore the last good state, forget the steps after it, and raise Diverged."""
        self._restore()
        self.wrong, self.row = [step for step in self.wrong if step < max(self.kept)], 0
        raise Diverged(f"{reason}; {_ADVICE}")


class Checkpoint:
    """The checkpoint file of a run, written at most every ``SECONDS``.

    file: where; None: nothing is written.
    identity: the run that the file belongs to, as a JSON object; the file of another run is refused.
    """

    def __init__(self, file: Path | None, identity: Mapping[str, Any]) -> None:
        self.file = file
        self.identity = json.dumps(identity, sort_keys=True, default=str)
        self._saved = time.monotonic()

    def save(self, state: TrainingState, guard: DivergenceGuard, step: int, *, last: bool) -> None:
        """Write the state after ``step`` finished steps, if ``SECONDS`` have passed or it is the ``last``."""
        if self.file is None or not (last or time.monotonic() - self._saved > SECONDS):
            return
        record = {"step": str(step), "identity": self.identity, "guard": json.dumps(guard.to_json())}
        write_tensors(self.file, state.tensors() | guard.tensors(), record)
        self._saved = time.monotonic()

    def restore(self, state: TrainingState, guard: DivergenceGuard) -> int:
        """Restore ``state`` and ``guard`` from the file; return the number of finished steps, 0 without a file.

        Raises:
            ValueError: the file belongs to another run, or holds other tensors.
        """
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


def identity_of(file: Path) -> dict[str, Any]:
    """Return the identity that ``CheckpointOptions`` gave the checkpoint ``file``; empty if it has none.

    Raises:
        ValueError: the file is malformed or incomplete.
    """
    told = json.loads(read_tensors(file, only_metadata=True)[1].get("identity", "{}"))
    found = told.get("of") if isinstance(told, dict) else None
    return found if isinstance(found, dict) else {}
