"""Several processes train one supernet: each takes its part of every batch, and all hold the same weights.

The archs of a step depend on seed and step alone, so every rank runs the same paths; what differs is its images. Batch
moments are those of the whole batch, gradients are averaged once a step, and a step of N processes is thereby the step
that one process would take on the whole batch, up to rounding. One process alone takes none of these paths.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from hnas.tasks import Task

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_CONTINUE = "the same command with --resume continues"
# How long a rank waits for another that scores or writes a checkpoint. A process that dies is noticed at once: its
# connection closes; only a machine that falls silent takes as long.
_TIMEOUT_S = 1800.0

_DEVICE: ContextVar[str] = ContextVar("_DEVICE", default="cpu")
_TOGETHER: ContextVar[bool] = ContextVar("_TOGETHER", default=False)
_DECIDING: ContextVar[bool] = ContextVar("_DECIDING", default=False)


class RankLost(RuntimeError):
    """Another process ended, or does not answer in time."""

    code = 1


@contextmanager
def group(device: str = "cpu", timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    """Be one of the processes that torchrun started, for as long as the context lasts; without torchrun, be alone.

    device: "cpu" talks through gloo, "cuda" through nccl, with one GPU a process. ValueError for another device or one
    that is not there, RankLost where not all processes come within ``timeout_s``.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    token = _DEVICE.set(_device(device, local))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if processes == 1:
            with _readers():
                yield
            return
        with _one_line(f"not all of the {processes} processes have come"):
            dist.init_process_group(BACKENDS[device], timeout=timedelta(seconds=timeout_s))
        before = signal.signal(signal.SIGTERM, _stopped)  # torchrun ends the others with it when one has ended
        try:
            with _readers():
                yield
        finally:
            signal.signal(signal.SIGTERM, before)
            dist.destroy_process_group()
    finally:
        _DEVICE.reset(token)


def rank() -> int:
    """The number of this process; 0 writes the files and speaks."""
    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device() -> torch.device:
    """Where this process computes."""
    return torch.device(_DEVICE.get())


@contextmanager
def together() -> Iterator[None]:
    """Take batch moments over the images of all ranks, for as long as the context lasts.

    Only a training step does: what a rank evaluates on its own would wait for others who do something else.
    """
    token = _TOGETHER.set(world() > 1)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def is_together() -> bool:
    """Whether batch moments are those of all ranks' images now."""
    return _TOGETHER.get()


def batch(task: Task, step: int) -> tuple[Any, Tensor]:
    """The (raw, labels) of this rank: an equal part of the batch of ``step``; all of it where there is one process.

    A task with ``part(step, rank, world)`` makes only that part; another makes the batch, which is then cut.
    """
    if world() == 1:
        return task.batch(step)
    part = getattr(task, "part", None)
    if part is not None:
        found: tuple[Any, Tensor] = part(step, rank(), world())
        return found
    return shard(*task.batch(step))


def held(task: Task, split: str, step: int, images: int) -> tuple[Any, Tensor]:
    """So many images of a held-out split for this rank: step after step the next ones, then from the start again.

    What would not fill a last step is left out; of a split that is smaller than one step each gives what there is.
    """
    raw, labels = task.held(split)
    images = max(1, min(images, len(labels) // world()))
    turns = max(1, len(labels) // (images * world()))
    begin = ((step % turns) * world() + rank()) * images
    return raw[begin : begin + images], labels[begin : begin + images]


def shard(raw: Any, labels: Tensor) -> tuple[Any, Tensor]:
    """The equal part of a batch that this rank takes; ValueError where the images do not divide."""
    size, rest = divmod(len(labels), world())
    if rest or not size:
        raise ValueError(f"a batch of {len(labels)} images does not divide among {world()} processes; change the batch")
    own = slice(rank() * size, (rank() + 1) * size)
    return raw[own], labels[own]


def mean(value: float) -> float:
    """The mean of every rank's number, the same on all ranks; not finite where one of them is not."""
    if world() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device())
    _sum(total)
    return float(total) / world()


def total(count: int) -> int:
    """The sum of every rank's count."""
    return round(mean(count) * world())


def agreed(make: Callable[[], Any]) -> Any:
    """What ``make`` gives on rank 0, a JSON value, on every rank; nobody else calls it.

    For what a training goes on from (a score, a choice): equal weights give equal answers on equal processors only.
    """
    if world() == 1 or _DECIDING.get():  # what rank 0 asks on its way is its own: the others wait for the outer answer
        return make()
    answer = ""
    if rank() == 0:
        token = _DECIDING.set(True)
        try:
            answer = json.dumps(make())
        finally:
            _DECIDING.reset(token)
    text = torch.tensor(list(answer.encode()), dtype=torch.uint8, device=device())
    size = torch.tensor([len(text)], device=device())
    with _one_line("rank 0 has not sent its answer"):
        dist.broadcast(size, 0)
        text = text if rank() == 0 else torch.empty(int(size), dtype=torch.uint8, device=device())
        dist.broadcast(text, 0)
    return json.loads(bytes(text.tolist()))


def reduce(tensors: Sequence[Tensor]) -> None:
    """Replace float32 gradients by their mean over the ranks, in place, with one all-reduce for all of them."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    _sum(flat)
    flat /= world()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def begin(step: int, tensors: Sequence[Tensor]) -> None:
    """Start every rank from rank 0's ``tensors``; ValueError where the ranks would start at different steps.

    Equal seeds give equal weights on equal processors only, and a checkpoint must be seen by every rank.
    """
    if world() == 1:
        return
    steps = torch.zeros(world(), dtype=torch.int64, device=device())
    steps[rank()] = step
    _sum(steps)
    if len(set(steps.tolist())) > 1:
        found = ", ".join(map(str, steps.tolist()))
        raise ValueError(f"the ranks would start at the steps {found}; --out must be a folder that every machine sees")
    # Adam counts its steps on the CPU, wherever it computes.
    flat = torch.cat([tensor.detach().reshape(-1).to(device()) for tensor in tensors])
    with _one_line("rank 0 has not sent its weights"):
        dist.broadcast(flat, 0)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[N, C, H, W] normalised by the moments of all ranks' images, gradients through these moments included."""
    out: Tensor = _BatchNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


class _BatchNorm(torch.autograd.Function):
    """Batch norm over ranks: count, sum and squared sum go forward, the two sums of its gradient come back.

    torch's own SyncBatchNorm refuses CPUs. Moments are float32 and pooled in float64, whatever the precision of ``x``;
    squares are taken about each rank's own mean, so that a large mean does not swallow a small variance.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        wide = x.float()
        count = wide.numel() // wide.shape[1]
        own = wide.mean((0, 2, 3))
        spread = (wide - own[:, None, None]).square().sum((0, 2, 3)).double()
        own = own.double()
        sums = torch.cat([own.new_tensor([count]), own * count, spread + own.square() * count])
        _sum(sums)
        n, first, second = sums[0], *sums[1:].chunk(2)
        middle = first / n
        variance = (second / n - middle.square()).clamp_min(0).float()
        centre, scale = middle.float(), (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, centre, scale, n)
        return F.batch_norm(x, centre, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, centre, scale, n = ctx.saved_tensors
        normal = (x.float() - centre[:, None, None]) * scale[:, None, None]
        wide = grad.float()
        to_bias, to_weight = wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))
        sums = torch.cat([to_bias, to_weight]).double()
        _sum(sums)
        pull, turn = (part.float()[:, None, None] for part in (sums / n).chunk(2))
        inner = (wide - pull - normal * turn) * (weight * scale)[:, None, None]
        return inner.to(x.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype), None


def _device(name: str, local: int) -> str:
    if name not in BACKENDS:
        raise ValueError(f"no device {name!r} to train on; known: {', '.join(BACKENDS)}")
    if name == "cpu":
        return name
    if local >= torch.cuda.device_count():
        raise ValueError(f"process {local} of this machine needs a GPU of its own; it has {torch.cuda.device_count()}")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _sum(tensor: Tensor) -> None:
    with _one_line("another process has ended or does not answer"):
        dist.all_reduce(tensor)


def _stopped(number: int, frame: object) -> None:  # noqa: ARG001 - what the signal module gives
    raise RankLost(f"rank {_who()}: torchrun has stopped this process, as it does when another one ends; {_CONTINUE}")


@contextmanager
def _readers() -> Iterator[None]:
    """RankLost where a worker of torch's DataLoader was killed: that raises wherever this process is just then."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = next(iter(str(error).splitlines())).rstrip(". ")
        what = "memory was short, or torchrun has stopped all processes"
        raise RankLost(
            f"rank {_who()}: a process that reads images has ended: {what} ({reason}); {_CONTINUE}"
        ) from None


def _who() -> str:
    return os.environ.get("RANK", "0")


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """RankLost in one line for whatever torch.distributed says in many."""
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:  # every error of torch.distributed is one
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        raise RankLost(f"rank {_who()}: {what}: {reason}; {_CONTINUE}") from None
