"""Training a supernet: the loop, its checkpoints, and the folder that ``hnas-deploy`` reads."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import torch
from torch import nn

from hnas import distributed, spaces
from hnas.files import read_json, read_tensors, write_json, write_tensors
from hnas.memory import reuse_memory
from hnas.space import Space
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.checkpoint import Checkpoint, Guard, State
from hnas.training.optimiser import Diverged, MaskedSGD
from hnas.training.step import Path, gradients, search

# (space, random numbers of the step, share of the schedule that is behind, in [0, 1)) -> the passes of one step
Pick = Callable[[Space, Random, float], Sequence[Path]]


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
    space: Space | None = None,
    extra: Mapping[str, nn.Parameter] | None = None,
    combine: str = "sum",
    precision: str = "fp32",
    seed: int = 0,
    begin: int = 0,
    identity: Any = None,
    checkpoint: pathlib.Path | None = None,
    resume: bool = False,
    advance: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Train ``supernet`` in place on the paths that ``pick`` draws from ``space`` (or from all of its own).

    extra: architecture parameters, trained beside the weights by Adam. combine: "sum" of all paths' gradients, or
    "project" (NASViT). begin: steps that an earlier training took, whose images and paths are not drawn again.
    Everything random depends on (seed, step) alone, so a run that is killed and resumed ends in the same weights. A
    checkpoint is written at most every ``hnas.training.checkpoint.SECONDS``; one with another ``identity``, space,
    schedule, task or seed is refused. ``advance(step, loss)`` follows each step, with the loss of its first path.

    Paths that search follow the others of their step, one by one (``Path.searches``).

    A step whose loss or gradient is not finite is skipped; where the loss jumps and stays up, the last good state comes
    back (``Guard``); ``say`` gets a line each time, with the operation that it came from where one can be told.
    RuntimeError where that happens too often, with the last good state in the checkpoint.

    precision: "bf16" computes forward and loss in bfloat16 (torch.autocast); weights, moments and gradients of weights
    stay float32. Within ``distributed.group`` each rank takes its part of every batch and rank 0 writes the checkpoint.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"no precision {precision!r} to train in; known: fp32, bf16")
    space = space or supernet.space
    reuse_memory()
    with _laid_out(supernet, extra or {}):
        optimiser = MaskedSGD(dict(supernet.union.named_parameters()), schedule.momentum, schedule.decay)
        state = State(supernet, optimiser, dict(extra or {}))
        own = {"schedule": asdict(schedule), "seed": seed, "begin": begin, "combine": combine}
        record = Checkpoint(checkpoint, {**own, "task": task.to_json(), "space": space.to_json(), "of": identity})
        guard = Guard(state, say)
        start = record.restore(state, guard) if resume else 0
        distributed.begin(start, [*state.tensors().values(), *guard.tensors().values()])
        try:
            for step in range(start, schedule.steps):
                if schedule.begins(step):
                    optimiser.reset()
                paths = pick(space, Random(f"{seed}/{begin + step}"), step / schedule.steps)
                trained = [path for path in paths if path.searches is None]
                try:
                    batch = distributed.batch(task, begin + step)
                    loss, archs = gradients(state, task, batch, trained, combine, precision)
                    optimiser.step(schedule.at(step), [supernet.where(arch) for arch in archs], schedule.clip)
                    state.step_extra()
                    supernet.changed()
                    for path in paths:
                        if path.searches is not None:
                            search(state, task, path, begin + step, len(batch[1]), precision)
                except Diverged as error:
                    state.clear()
                    guard.skip(step, str(error))
                else:
                    guard.saw(step, loss, [[path.teaches, path.gates is not None] for path in trained[:1]])
                    if advance:
                        advance(step + 1, loss)
                if distributed.rank() == 0:
                    record.save(state, guard, step + 1, last=step + 1 == schedule.steps)
        except Diverged:  # the guard has given up, and the state is the newest that it kept
            if distributed.rank() == 0:
                record.save(state, guard, max(guard.kept), last=True)
            raise
        guard.end(schedule.steps)


@contextmanager
def _laid_out(supernet: Supernet, extra: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """On the device that trains, channels last: 1.3 to 1.7 times as fast on CPUs, depthwise convolutions most.

    Afterwards on the CPU and contiguous, as an extracted net is.
    """

    def lay_out(device: torch.device, order: torch.memory_format) -> None:
        for parameter in (*supernet.union.parameters(), *extra.values()):
            data = parameter.data.to(device)
            parameter.data = data.contiguous(memory_format=order) if data.ndim == 4 else data

    lay_out(distributed.device(), torch.channels_last)
    try:
        yield
    finally:
        lay_out(torch.device("cpu"), torch.contiguous_format)


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


def save(supernet: Supernet, folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Write the folder that ``load`` reads: supernet.safetensors, then supernet.json, which makes it valid."""
    folder.mkdir(parents=True, exist_ok=True)
    space = supernet.space
    write_tensors(folder / "supernet.safetensors", _weights(supernet), {"space": space.name})
    splits = [[split.branch, split.context, list(split.options)] for split in supernet.splits.values()]
    own = {"schema": 1, "space": space.to_json(), "seed": supernet.seed, **({"splits": splits} if splits else {})}
    write_json(folder / "supernet.json", {**own, **record})


@torch.no_grad()
def load(folder: pathlib.Path) -> tuple[Supernet, dict[str, Any]]:
    """The supernet in ``folder`` and its record; one line says what is malformed, truncated, foreign or not finite."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --supernet takes what hnas-train --out wrote")
    record = read_json(folder / "supernet.json")
    if record.get("schema") != 1 or not isinstance(record.get("space"), dict):
        raise ValueError(f"{folder / 'supernet.json'} is no supernet record of schema 1")
    space = spaces.restore(record["space"])
    supernet = make(space, record.get("seed", 0), str(folder / "supernet.json"))
    try:
        if splits := record.get("splits", []):  # which name options of the whole space: some may have gone since
            supernet.space = spaces.load(space.name)(**space.arguments)
        for branch, context, options in splits:
            supernet.split(branch, context, options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'supernet.json'}: {error}") from None
    supernet.space = space
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
