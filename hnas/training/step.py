"""One step of training: forward and backward passes of several subnets on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hnas import distributed
from hnas.distillation import feature_distance, imitation
from hnas.ops.skip import DropBlock, dropping
from hnas.space import Arch
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.checkpoint import TrainingState
from hnas.training.optimiser import Diverged, project_gradients
from hnas.training.probes import first_not_finite, outputs_of

Batch = tuple[Any, Tensor]  # (raw examples in the task's own form, labels)

TRAIN = "train"  # the split on which weights are trained


@dataclass(frozen=True)
class SubnetPath:
    """Describe one forward and backward pass of a step through one subnet.

    arch: a member, or a relaxed architecture, in which a slot holds several types at once.
    gates: slot -> [branches], for every relaxed slot; gradients reach the gates.
    teaches: the outputs of this pass, without gradient, are the teacher of every later path of the step.
    rivals: further candidates. Of ``arch`` and the rivals, only the one with the lowest loss on the step's images is
        trained (AttentiveNAS' BestUp, arXiv 2011.09011).
    weight: factor of the loss of this path in the sum of the losses (1).
    imitates: a slot. The loss is the distance of the slot's output from the output of the path that teaches; the two
        paths differ in that slot alone. No gradient passes into the slot's input (``hnas.distillation.imitation``).
    features: factor of the distance of the outputs of all stages from those of the path that teaches, added to the loss
        (0; ``hnas.distillation.feature_distance``). It needs a network with the module list ``stages``, and a teacher
        before it.
    penalty: added to the loss; a cost of the architecture parameters, such as the expected latency.
    trains: False for a forward pass without gradients, whose outputs only teach (True).
    drop: the rate at which identity branches drop blocks of their input (``hnas.ops.skip``); None: no drop.
    split: the images of the pass. "train" (default): a pass that trains the weights. The name of a held-out split: a
        pass that trains the architecture parameters, with frozen weights, after the weights of the step have moved.
        All such passes of a step share one update.
    moves: for a pass on a held-out split, architecture parameter -> indices of the entries that may change. The softmax
        of the other entries is unchanged (ProxylessNAS, section 3.2). None (default): all entries.
    """

    arch: Arch
    gates: Mapping[str, Tensor] | None = None
    teaches: bool = False
    rivals: tuple[Arch, ...] = ()
    weight: float = 1.0
    imitates: str | None = None
    features: float = 0.0
    penalty: Tensor | None = None
    trains: bool = True
    drop: DropBlock | None = None
    split: str = TRAIN
    moves: Mapping[str, Sequence[int]] | None = None


def compute_gradients(
    state: TrainingState, task: Task, batch: Batch, paths: Sequence[SubnetPath], combine: str, precision: str
) -> tuple[float, list[Arch]]:
    """Compute the gradients of all paths over the images of all ranks, in place.

    Returns the loss of the first path that trains, and the architectures that were trained.

    Raises:
        Diverged: a loss, or a gradient of the architecture parameters, is not finite.
    """
    watched = _watched(state.supernet, paths)
    passes = _StepPasses(state, task, batch[0], batch[1].to(distributed.device()), precision, watched)
    if (teach := getattr(task, "teach", None)) is not None:  # a network outside the supernet
        passes.teacher, passes.outside = teach(batch[0]).to(distributed.device()), True
    weights = state.optimiser.parameters.values()
    trained: list[tuple[float, Arch]] = []
    apart = None
    for path in paths:
        found = passes.backward(path)
        trained += [found] if path.trains else []
        if path.teaches and path.trains and combine == "project":
            apart = _take_gradients(weights)
    gradients = [p.grad for p in (*weights, *state.extra.values()) if p.grad is not None]
    distributed.reduce([*(apart or {}).values(), *gradients])
    if apart is not None:
        project_gradients(apart)
    state.check()
    return trained[0][0], [arch for _, arch in trained]


def _watched(supernet: Supernet, paths: Sequence[SubnetPath]) -> list[str]:
    """Return the slots and stages of the path that teaches, from whose outputs other paths learn."""
    slots = [path.imitates for path in paths if path.imitates is not None]
    return slots + (_stages(supernet, paths[0].arch) if any(path.features for path in paths) else [])


def _stages(supernet: Supernet, arch: Arch) -> list[str]:
    """Return the stages of a subnet. Raise ValueError if its space has none."""
    stages = getattr(supernet.skeleton(arch), "stages", None)
    if not isinstance(stages, nn.Module) or not (names := [name for name, _ in stages.named_children()]):
        what = f"the option 'features' needs a network with stages, and the space {supernet.space.name!r} has none"
        raise ValueError(f"{what}; leave the option out")
    return [f"stages.{name}" for name in names]


def _take_gradients(weights: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Return the gradients of the weights that have one, and clear them."""
    taken = {parameter: parameter.grad for parameter in weights if parameter.grad is not None}
    for parameter in taken:
        parameter.grad = None
    return taken


def step_architecture(
    state: TrainingState, task: Task, paths: Sequence[SubnetPath], step: int, images: int, precision: str
) -> None:
    """Update the architecture parameters on held-out images. All weights are frozen.

    paths: the paths that train the architecture parameters, all on one split; their gradients add up.
    step: chooses the images.
    images: number of images for this rank.
    precision: "fp32" or "bf16".

    Raises:
        Diverged: a loss or a gradient is not finite.
        ValueError: the task does not have the split.
    """
    (split,) = {path.split for path in paths}
    if split not in task.splits:
        raise ValueError(f"the task has no images {split!r}; known: {', '.join(task.splits)}; see [data] of the recipe")
    state.supernet.union.requires_grad_(False)
    try:
        compute_gradients(state, task, distributed.held(task, split, step, images), paths, "sum", precision)
    except Diverged as error:
        raise Diverged(f"in the pass that searches, after the weights have moved, {error}") from None
    finally:
        state.supernet.union.requires_grad_(True)
    moves = [path.moves for path in paths if path.moves is not None]
    state.step_extra({name: at for own in moves for name, at in own.items()})


@dataclass
class _StepPasses:
    """Run the passes of one step. They share the images, the teacher's outputs and the outputs of imitated slots.

    raw, labels: the images and labels of this rank.
    watched: the slots and stages whose outputs a path that teaches stores.
    teacher: the outputs of the path that teaches, or None before this path.
    outside: a network outside the supernet teaches; the outputs of no path replace its outputs.
    shown: slot or stage -> its output in the path that teaches.
    """

    state: TrainingState
    task: Task
    raw: Any
    labels: Tensor
    precision: str
    watched: Sequence[str]
    teacher: Tensor | None = None
    outside: bool = False
    shown: dict[str, Tensor] = field(default_factory=dict)

    def backward(self, path: SubnetPath) -> tuple[float, Arch]:
        """Add the gradients of the path to those of earlier paths; return the loss and the trained architecture.

        Raises:
            Diverged: the loss is not finite.
        """
        arch = path.arch
        if path.rivals:
            with torch.no_grad():
                losses = {each: self.forward(each, path)[2] for each in (arch, *path.rivals)}
            arch = min(losses, key=losses.__getitem__)
        with torch.set_grad_enabled(path.trains):
            outputs, loss, value = self.forward(arch, path)
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value}{self._where(arch, path)}")
        if loss.requires_grad:  # an architecture step on a member without a relaxed slot has no gradient
            torch.autograd.backward(loss)
        if path.teaches and not self.outside:
            self.teacher = outputs.detach()
        return value, arch

    def forward(self, arch: Arch, path: SubnetPath) -> tuple[Tensor, Tensor, float]:
        """Return outputs, loss, and the mean loss over all ranks, so that all ranks skip the same steps.

        Raises:
            ValueError: the path learns from a slot or from stages, and no path that teaches comes before it.
        """
        slot = path.imitates
        stages = _stages(self.state.supernet, arch) if path.features else []
        wanted = [*([slot] if slot else []), *stages]
        if missing := [name for name in wanted if name not in self.shown]:
            what = f"imitates {slot!r}" if missing[0] == slot else f"has the option 'features' = {path.features:g}"
            raise ValueError(f"a path {what}, and none that teaches comes before it; put a teacher first")
        net = self._net(arch)
        watched = {*wanted, *(self.watched if path.teaches else [])}
        with outputs_of(net, watched, slot) as seen, self._computing(), dropping(path.drop):
            outputs = self._run(arch, path).float()
            loss = self._loss(outputs) if slot is None else imitation(seen[slot], self.shown[slot])
            if stages:
                pairs = [(seen[stage], self.shown[stage]) for stage in stages]
                loss = loss + path.features * feature_distance(pairs)
            loss = path.weight * loss + (0.0 if path.penalty is None else path.penalty)
        if path.teaches:
            self.shown.update({slot: output.detach() for slot, output in seen.items()})
        return outputs, loss, distributed.mean(float(loss.detach()))

    def _loss(self, outputs: Tensor) -> Tensor:
        return self.task.loss(outputs, self.labels.to(outputs.device), self.teacher)

    def _where(self, arch: Arch, path: SubnetPath) -> str:
        """Return a suffix that names the first operation whose output is not finite; costs one more forward pass."""
        with torch.no_grad(), first_not_finite(self._net(arch)) as found, self._computing():
            self._run(arch, path)
        return f"; the first output that is not finite is that of {found[0]}" if found else ""

    def _run(self, arch: Arch, path: SubnetPath) -> Tensor:
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
