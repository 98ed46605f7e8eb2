"""The training of a supernet: schedule, options and loop.

``train(supernet, task, pick, schedule)`` trains in place; ``Study.train`` calls it with a checkpoint.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn

from hnas import distributed
from hnas.memory import return_memory, reuse_memory
from hnas.space import Space
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.checkpoint import ADAM, AdamOptions, Checkpoint, DivergenceGuard, TrainingState
from hnas.training.optimiser import OPTIMISERS, Diverged
from hnas.training.step import TRAIN, SubnetPath, compute_gradients, step_architecture

# (space, random numbers of the step, share of the schedule that is done, in [0, 1)) -> the passes of one step
Pick = Callable[[Space, Random, float], Sequence[SubnetPath]]


_TRIM = 20  # steps after which free memory is returned


@dataclass(frozen=True)
class Schedule:
    """Cosine cycles with warm restarts (SGDR, arXiv 1608.03983). The optimiser begins anew in every cycle.

    cycles: ((steps, peak learning rate), ...).
    warmup: share of a cycle in which the rate rises linearly (0.05).
    final: where the cosine ends, as a share of the peak rate (0).
    momentum: of SGD (0.9); of Adam, the decay of the mean gradient.
    decay: weight decay of weights with two or more axes (5e-4).
    clip: largest norm of the gradients of a step (5); 0: no limit.
    optimiser: "sgd" (default), with Nesterov momentum; "adam", which suits recurrent networks.

        Schedule(((2400, 0.1), (1200, 0.02)))

    Raises:
        ValueError: no such optimiser, or a momentum of 1 or more for Adam, which divides by the rest.
    """

    cycles: tuple[tuple[int, float], ...]
    warmup: float = 0.05
    final: float = 0.0
    momentum: float = 0.9
    decay: float = 5e-4
    clip: float = 5.0
    optimiser: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"no optimiser {self.optimiser!r}; known: {', '.join(OPTIMISERS)}")
        if self.optimiser == "adam" and self.momentum >= 1:
            raise ValueError(f"the momentum of Adam is {self.momentum:g}; give a number from 0 to below 1")

    @property
    def steps(self) -> int:
        """Return the number of steps of all cycles."""
        return sum(steps for steps, _ in self.cycles)

    def begins(self, step: int) -> bool:
        """Return whether a cycle begins at ``step``."""
        return self._within(step)[0] == 0

    def at(self, step: int) -> float:
        """Return the learning rate of ``step``."""
        position, steps, rate = self._within(step)
        warm = max(1, round(self.warmup * steps))
        if position < warm:
            return rate * (position + 1) / warm
        share = (position - warm) / max(1, steps - warm)
        return rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share)))

    def _within(self, step: int) -> tuple[int, int, float]:
        """Return the position of ``step`` in its cycle, and that cycle."""
        for steps, rate in self.cycles:
            if step < steps:
                return step, steps, rate
            step -= steps
        raise ValueError(f"the schedule ends after {self.steps} steps")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of ``train``.

    space: the part of the supernet's space to train; None (default): all of it.
    combine: "sum" (default) adds the gradients of all paths of a step; "project" resolves conflicts between the
        teacher's and the students' gradients (NASViT).
    precision: "fp32" (default), or "bf16": forward pass and loss in bfloat16 (torch.autocast); weights, momentum
        buffers and gradients of weights stay float32.
    seed: seed of all random numbers (0). The random numbers of a step depend only on seed and step.
    begin: number of steps of earlier trainings of the study (0), so that their images and paths are not drawn again.
    adam: rate and decay of the architecture parameters.
    """

    space: Space | None = None
    combine: str = "sum"
    precision: str = "fp32"
    seed: int = 0
    begin: int = 0
    adam: AdamOptions = ADAM


@dataclass(frozen=True)
class CheckpointOptions:
    """The checkpoint file of a training.

    file: written at most every ``hnas.training.checkpoint.SECONDS``, and after the last step.
    identity: a JSON value that says which run the file belongs to; a file of another run is refused.
    resume: continue from ``file`` where it exists (False).
    """

    file: Path
    identity: Any = None
    resume: bool = False


@dataclass(frozen=True)
class Observer:
    """Callbacks of a training.

    on_step: called after each step with the number of finished steps and the loss of the step's first path.
    on_message: called with one line for a person: a skipped step, a restored state, a finished stage.
    """

    on_step: Callable[[int, float], None] | None = None
    on_message: Callable[[str], None] | None = None


def train(
    supernet: Supernet,
    task: Task,
    pick: Pick,
    schedule: Schedule,
    options: TrainingOptions | None = None,
    *,
    extra: Mapping[str, nn.Parameter] | None = None,
    checkpoint: CheckpointOptions | None = None,
    observer: Observer | None = None,
) -> None:
    """Train ``supernet`` in place on the paths that ``pick`` draws.

    extra: architecture parameters, which Adam trains beside the weights.
    pick: returns the paths of a step.
    schedule: the steps and their learning rates.
    options: None: the defaults of ``TrainingOptions``.
    checkpoint: the checkpoint file; None: no checkpoint. A resumed run ends with the same weights as an uninterrupted
        run.
    observer: callbacks; None: no callbacks.

    A step whose loss or gradient is not finite is skipped. If the loss jumps and stays high, the last good state is
    restored (``DivergenceGuard``). Within ``distributed.group`` each rank takes its part of every batch, and rank 0
    writes the checkpoint.

        train(supernet, task, sandwich.pick, Schedule(((2400, 0.1),)), TrainingOptions(seed=1))

    Raises:
        Diverged: too many steps were not finite; the checkpoint then holds the last good state.
        ValueError: an unknown precision, or a checkpoint of another run.
    """
    options = options or TrainingOptions()
    if options.precision not in ("fp32", "bf16"):
        raise ValueError(f"no precision {options.precision!r} to train in; known: fp32, bf16")
    reuse_memory()
    with _laid_out(supernet, extra or {}):
        run = _Run(supernet, task, schedule, options, dict(extra or {}), observer or Observer())
        run.train(pick, checkpoint)
    return_memory()


class _Run:
    """The state of one call of ``train``."""

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        schedule: Schedule,
        options: TrainingOptions,
        extra: Mapping[str, nn.Parameter],
        observer: Observer,
    ) -> None:
        optimiser = OPTIMISERS[schedule.optimiser](
            dict(supernet.union.named_parameters()), schedule.momentum, schedule.decay
        )
        self.task = task
        self.schedule = schedule
        self.options = options
        self.observer = observer
        self.space = options.space or supernet.space
        self.state = TrainingState(supernet, optimiser, extra, options.adam)
        self.guard = DivergenceGuard(self.state, observer.on_message)

    def train(self, pick: Pick, checkpoint: CheckpointOptions | None) -> None:
        """Take all steps that the checkpoint does not have yet."""
        state, guard, steps = self.state, self.guard, self.schedule.steps
        record = self._checkpoint(checkpoint)
        start = record.restore(state, guard) if checkpoint and checkpoint.resume else 0
        distributed.begin(start, [*state.tensors().values(), *guard.tensors().values()])
        try:
            with _late_interrupt() as interrupted:
                for step in range(start, steps):
                    self._guarded_step(pick, step)
                    if (step + 1) % _TRIM == 0:
                        return_memory()
                    if distributed.rank() == 0:
                        record.save(state, guard, step + 1, last=step + 1 == steps or bool(interrupted))
                    if interrupted:
                        raise KeyboardInterrupt
        except Diverged:  # the guard has restored the newest kept state
            if distributed.rank() == 0:
                record.save(state, guard, max(guard.kept), last=True)
            raise
        guard.finish(steps)

    def _guarded_step(self, pick: Pick, step: int) -> None:
        """Take one step; skip it where something is not finite."""
        if self.schedule.begins(step):
            self.state.optimiser.reset()
        paths = pick(self.space, Random(f"{self.options.seed}/{self.options.begin + step}"), step / self.schedule.steps)
        trained = [path for path in paths if path.split == TRAIN]
        searching = [path for path in paths if path.split != TRAIN]
        try:
            loss = self._step(step, trained, searching)
        except Diverged as error:
            self.state.clear()
            self.guard.record_skip(step, str(error))
            return
        first = next(path for path in trained if path.trains)
        self.guard.record_loss(step, loss, [[first.teaches, first.gates is not None]])
        if self.observer.on_step:
            self.observer.on_step(step + 1, loss)

    def _step(self, step: int, trained: Sequence[SubnetPath], searching: Sequence[SubnetPath]) -> float:
        """Update the weights on the ``trained`` paths, then the architecture on the ``searching`` paths."""
        state, options, at = self.state, self.options, self.options.begin + step
        batch = distributed.batch(self.task, at)
        loss, archs = compute_gradients(state, self.task, batch, trained, options.combine, options.precision)
        used = [state.supernet.where(arch) for arch in archs]
        state.optimiser.step(self.schedule.at(step), used, self.schedule.clip)
        state.step_extra()
        state.supernet.changed()
        if searching:
            step_architecture(state, self.task, searching, at, len(batch[1]), options.precision)
        return loss

    def _checkpoint(self, options: CheckpointOptions | None) -> Checkpoint:
        identity = {
            "schedule": {k: v for k, v in asdict(self.schedule).items() if (k, v) != ("optimiser", "sgd")},
            "seed": self.options.seed,
            "begin": self.options.begin,
            "combine": self.options.combine,
            "task": self.task.to_json(),
            "space": self.space.to_json(),
            "of": options.identity if options else None,
            **({} if self.options.adam == ADAM else {"adam": asdict(self.options.adam)}),
        }
        return Checkpoint(options.file if options else None, identity)


@contextmanager
def _late_interrupt() -> Iterator[list[int]]:
    """Yield a list that the first Ctrl-C fills, so that a step is finished and saved. The second one ends at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)

    # Another handler is that of a program that uses hnas as a library; only the main thread may set one.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield received
        return
    signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _laid_out(supernet: Supernet, extra: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Keep the parameters on the training device, channels last: 1.3 to 1.7 times as fast on CPUs.

    Depthwise convolutions gain most. Afterwards the parameters are on the CPU and contiguous, as in an extracted net.
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
