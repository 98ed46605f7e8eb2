"""Training a supernet: the loop, its checkpoints, and the folder that ``hnas-deploy`` reads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from hnas import spaces
from hnas.files import read_json, read_tensors, write_json, write_tensors
from hnas.optimiser import MaskedSGD
from hnas.space import Arch, Space
from hnas.supernet import Supernet
from hnas.tasks import Task

Pick = Callable[[Space, Random], tuple[Arch, ...]]
CHECKPOINT_SECONDS = 45.0


@dataclass(frozen=True)
class Schedule:
    """Cosine cycles with warm restarts (SGDR, arXiv 1608.03983), each of so many steps from its own peak rate.

    warmup: the share of a cycle that warms up; final: where its cosine ends, as a share of the rate; the rest is SGD's.
    Moments begin at zero in every cycle.
    """

    cycles: tuple[tuple[int, float], ...]
    warmup: float = 0.05
    final: float = 0.0
    momentum: float = 0.9
    decay: float = 5e-4
    clip: float = 5.0

    @property
    def steps(self) -> int:
        """The steps of all cycles."""
        return sum(steps for steps, _ in self.cycles)

    def begins(self, step: int) -> bool:
        """Whether a cycle begins at ``step``."""
        return self._within(step)[0] == 0

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        position, steps, rate = self._within(step)
        warm = max(1, round(self.warmup * steps))
        if position < warm:
            return rate * (position + 1) / warm
        share = (position - warm) / max(1, steps - warm)
        return rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share)))

    def _within(self, step: int) -> tuple[int, int, float]:
        """The position in the cycle that ``step`` falls into, and that cycle."""
        for steps, rate in self.cycles:
            if step < steps:
                return step, steps, rate
            step -= steps
        raise ValueError(f"the schedule ends after {self.steps} steps")


def train(
    supernet: Supernet,
    task: Task,
    pick: Pick,
    schedule: Schedule,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    advance: Callable[[int, float], None] | None = None,
) -> None:
    """Train ``supernet`` in place; the first subnet of each pick is the teacher of the others.

    Everything random depends on (seed, step) alone, so a run that is killed and resumed ends in the same weights.
    A checkpoint (weights, moments, step, seed) is written at most every ``CHECKPOINT_SECONDS``. ``advance(step, loss)``
    follows each step. RuntimeError where a loss or a gradient is not finite.
    """
    optimiser = MaskedSGD(dict(supernet.union.named_parameters()), schedule.momentum, schedule.decay)
    identity = json.dumps({"schedule": asdict(schedule), "seed": seed, "task": task.to_json()}, sort_keys=True)
    start = _restore(supernet, optimiser, checkpoint, identity) if checkpoint and resume else 0
    saved = time.monotonic()
    for step in range(start, schedule.steps):
        if schedule.begins(step):
            optimiser.reset()
        archs = pick(supernet.space, Random(f"{seed}/{step}"))
        loss = _forward_backward(supernet, task, archs, step)
        optimiser.step(schedule.at(step), [supernet.where(arch) for arch in archs], schedule.clip)
        supernet.changed()
        if advance:
            advance(step + 1, loss)
        if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(supernet, optimiser, checkpoint, identity, step + 1)
            saved = time.monotonic()
    if checkpoint:
        _save(supernet, optimiser, checkpoint, identity, schedule.steps)


def _forward_backward(supernet: Supernet, task: Task, archs: tuple[Arch, ...], step: int) -> float:
    raw, labels = task.batch(step)
    teacher, first = None, 0.0
    for arch in archs:
        outputs = supernet(arch, *task.inputs(raw, supernet.space.example(arch)))
        loss = task.loss(outputs, labels, teacher)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {step}; lower the learning rate or look at the data")
        torch.autograd.backward(loss)
        if teacher is None:
            teacher, first = outputs.detach(), value
    return first


def _save(supernet: Supernet, optimiser: MaskedSGD, file: Path, identity: str, step: int) -> None:
    tensors: dict[str, torch.Tensor] = {f"weights/{name}": p for name, p in supernet.union.named_parameters()}
    tensors |= {f"moments/{name}": m for name, m in optimiser.moments.items()}
    space = json.dumps(supernet.space.to_json(), sort_keys=True)
    write_tensors(file, tensors, {"step": str(step), "identity": identity, "space": space})


@torch.no_grad()
def _restore(supernet: Supernet, optimiser: MaskedSGD, file: Path, identity: str) -> int:
    if not file.exists():
        return 0
    tensors, metadata = read_tensors(file)
    space = json.dumps(supernet.space.to_json(), sort_keys=True)
    if metadata.get("identity") != identity or metadata.get("space", space) != space:
        raise ValueError(f"{file} belongs to another run (recipe, space, data or seed differ); choose another --out")
    own = dict(supernet.union.named_parameters())
    expected = {f"{part}/{name}": p.shape for part in ("weights", "moments") for name, p in own.items()}
    if {name: t.shape for name, t in tensors.items()} != expected:
        raise ValueError(f"{file} holds other tensors than this space has; choose another --out")
    for name, parameter in own.items():
        parameter.copy_(tensors[f"weights/{name}"])
        optimiser.moments[name].copy_(tensors[f"moments/{name}"])
    supernet.changed()
    return int(metadata["step"])


def make(space: Space, seed: Any, origin: str) -> Supernet:
    """The untrained supernet of ``space``; ValueError where what ``origin`` asks for makes no network."""
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{origin}: the seed is {seed!r}; it is a whole number from 0 on")
    shapes = [shape for arch in (space.smallest, space.largest) for shape in space.example(arch)]
    try:
        if any(side < 1 for shape in shapes for side in shape):
            raise ValueError(f"inputs have the shapes {shapes}")
        return Supernet(space, seed)
    except (TypeError, RuntimeError, ValueError, ArithmeticError) as error:  # constructors raise whatever they like
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{origin}: no network of the space {space.name!r} can be built: {reason}") from error


def save(supernet: Supernet, folder: Path, record: dict[str, Any]) -> None:
    """Write the folder that ``load`` reads: supernet.safetensors, then supernet.json, which makes it valid."""
    folder.mkdir(parents=True, exist_ok=True)
    space = supernet.space
    write_tensors(folder / "supernet.safetensors", _weights(supernet), {"space": space.name})
    write_json(folder / "supernet.json", {"schema": 1, "space": space.to_json(), "seed": supernet.seed, **record})


@torch.no_grad()
def load(folder: Path) -> tuple[Supernet, dict[str, Any]]:
    """The supernet in ``folder`` and its record; one line says what is malformed, truncated, foreign or not finite."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --supernet takes what hnas-train --out wrote")
    record = read_json(folder / "supernet.json")
    if record.get("schema") != 1 or not isinstance(record.get("space"), dict):
        raise ValueError(f"{folder / 'supernet.json'} is no supernet record of schema 1")
    supernet = make(spaces.restore(record["space"]), record.get("seed", 0), str(folder / "supernet.json"))
    tensors, _ = read_tensors(folder / "supernet.safetensors")
    own = _weights(supernet)
    for name, parameter in own.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            wanted = f"{name} should be {list(parameter.shape)}, found {found}"
            raise ValueError(f"{folder}: {wanted}; it is another space's supernet")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{folder}: {name} holds NaN or infinite weights; train again from a good checkpoint")
        parameter.copy_(tensors[name])
    unknown = sorted(tensors.keys() - own.keys())
    if unknown:
        raise ValueError(f"{folder}: {unknown[0]} is no parameter of the space {supernet.space.name!r}")
    supernet.changed()
    return supernet, record


def _weights(supernet: Supernet) -> dict[str, torch.nn.Parameter]:
    """Every weight by name; tied ones keep both names."""
    return dict(supernet.union.named_parameters(remove_duplicate=False))
