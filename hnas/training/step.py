"""One step of training: passes through subnets on the same images, and the gradients that they leave."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hnas import distributed
from hnas.distillation import imitation
from hnas.space import Arch
from hnas.tasks import Task
from hnas.training.checkpoint import State
from hnas.training.optimiser import Diverged, project
from hnas.training.probes import first_not_finite, outputs_of

Batch = tuple[Any, Tensor]  # what a task makes of some examples, and their labels


@dataclass(frozen=True)
class Path:
    """One forward and backward pass of a step.

    arch: a member, or a relaxed one, whose slots hold several types at once.
    gates: slot -> [branches], for every relaxed slot; gradients reach them.
    teaches: its outputs, without gradient, are the teacher of every path after it in the step.
    rivals: of ``arch`` and these the one with the lowest loss on the step's images is trained (AttentiveNAS' BestUp,
        arXiv 2011.09011).
    weight: of its loss in the sum.
    imitates: a slot. The loss is how far that slot's output is from what the path that teaches, which differs there
        alone, puts out; no gradient passes into the slot's input (``hnas.distillation.imitation``).
    penalty: added to the loss; what architecture parameters pay for, such as the expected latency.
    searches: an architecture parameter -> the entries of it that this pass is about. The pass is a step of its own,
        after that of the others: on calibration images, which are never trained on, with the weights as they are.
        These entries alone move, and the softmax of the rest stays as it was (ProxylessNAS, section 3.2).
    """

    arch: Arch
    gates: Mapping[str, Tensor] | None = None
    teaches: bool = False
    rivals: tuple[Arch, ...] = ()
    weight: float = 1.0
    imitates: str | None = None
    penalty: Tensor | None = None
    searches: Mapping[str, Sequence[int]] | None = None


def gradients(
    state: State, task: Task, batch: Batch, paths: Sequence[Path], combine: str, precision: str
) -> tuple[float, list[Arch]]:
    """Gradients of every path, over the images of all ranks; the loss of the first, and the archs that were trained.

    Diverged where a loss, or a gradient of architecture parameters, is not finite.
    """
    watched = [path.imitates for path in paths if path.imitates is not None]
    passes = Passes(state, task, batch[0], batch[1].to(distributed.device()), precision, watched)
    weights = state.optimiser.parameters.values()
    archs: list[Arch] = []
    first, apart = math.nan, None
    for path in paths:
        value, arch = passes.backward(path)
        first = first if archs else value
        archs.append(arch)
        if path.teaches and combine == "project":
            apart = {p: p.grad for p in weights if p.grad is not None}
            for parameter in apart:
                parameter.grad = None
    found = [p.grad for p in (*weights, *state.extra.values()) if p.grad is not None]
    distributed.reduce([*(apart or {}).values(), *found])
    if apart is not None:
        project(apart)
    state.check()
    return first, archs


def search(state: State, task: Task, path: Path, step: int, images: int, precision: str) -> None:
    """An architecture step: on so many calibration images, those of ``step``, with every weight frozen."""
    state.supernet.union.requires_grad_(False)
    try:
        gradients(state, task, distributed.held(task, "calibration", step, images), [path], "sum", precision)
    except Diverged as error:
        raise Diverged(f"in the pass that searches, after the weights have moved, {error}") from None
    finally:
        state.supernet.union.requires_grad_(True)
    state.step_extra(path.searches)


@dataclass
class Passes:
    """The passes of one step, which share its images, the teacher's outputs and those of the slots that are imitated.

    raw, labels: of this rank. watched: the slots whose outputs a path that teaches has to show.
    """

    state: State
    task: Task
    raw: Any
    labels: Tensor
    precision: str
    watched: Sequence[str]
    teacher: Tensor | None = None
    shown: dict[str, Tensor] = field(default_factory=dict)

    def backward(self, path: Path) -> tuple[float, Arch]:
        """Add the path's gradients to those at hand: the loss, and which arch it was."""
        arch = path.arch
        if path.rivals:
            with torch.no_grad():
                losses = {each: self.forward(each, path)[2] for each in (arch, *path.rivals)}
            arch = min(losses, key=losses.__getitem__)
        outputs, loss, value = self.forward(arch, path)
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value}{self._where(arch, path)}")
        if loss.requires_grad:  # an architecture step on a member without a relaxed slot has nothing to move
            torch.autograd.backward(loss)
        if path.teaches:
            self.teacher = outputs.detach()
        return value, arch

    def forward(self, arch: Arch, path: Path) -> tuple[Tensor, Tensor, float]:
        """Outputs, loss, and the mean of the ranks' losses: what one rank skips, all must skip."""
        own = path.imitates
        if own is not None and own not in self.shown:
            raise ValueError(f"a path imitates {own!r}, and none that teaches comes before it; let the first one teach")
        watched = self.watched if path.teaches else [own] if own else []
        with outputs_of(self._net(arch), watched, own) as seen, self._computing():
            outputs = self._run(arch, path).float()
            labels = self.labels.to(outputs.device)
            loss = (
                self.task.loss(outputs, labels, self.teacher) if own is None else imitation(seen[own], self.shown[own])
            )
            loss = path.weight * loss + (0.0 if path.penalty is None else path.penalty)
        if path.teaches:
            self.shown.update({slot: output.detach() for slot, output in seen.items()})
        return outputs, loss, distributed.mean(float(loss.detach()))

    def _where(self, arch: Arch, path: Path) -> str:
        """The operation that is not finite, if one is: one more forward pass, in a step that is lost anyway."""
        with torch.no_grad(), first_not_finite(self._net(arch)) as found, self._computing():
            self._run(arch, path)
        return f"; the first that puts out what is not finite is {found[0]}" if found else ""

    def _run(self, arch: Arch, path: Path) -> Tensor:
        supernet, device = self.state.supernet, distributed.device()
        inputs = [x.to(device) for x in self.task.inputs(self.raw, supernet.space.example(arch))]
        outputs: Tensor = supernet(arch, *inputs, gates=path.gates)
        return outputs

    def _net(self, arch: Arch) -> nn.Module:
        return self.state.supernet.skeleton(arch)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        bf16 = self.precision == "bf16"
        with distributed.together(), torch.autocast(distributed.device().type, torch.bfloat16, enabled=bf16):
            yield
