"""Training of one supernet by several processes (ranks). Each rank takes its part of every batch.

``with distributed.group("cuda"): ...`` joins the processes that torchrun started.

All ranks have equal weights. The architectures of a step depend on seed and step alone, so that every rank trains the
same paths on different images. Batch moments are those of the whole batch, and gradients are averaged once a step.
A step of N processes therefore equals the step of one process on the whole batch, up to rounding. A single process
communicates with nobody.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
# Timeout for a rank that waits while another one scores or writes a checkpoint. The end of a process is noticed at
# once, because its connection closes. Only a machine that stops answering takes the whole timeout.
_TIMEOUT_S = 1800.0

_DEVICE: ContextVar[str] = ContextVar("_DEVICE", default="cpu")
_TOGETHER: ContextVar[bool] = ContextVar("_TOGETHER", default=False)
_DECIDING: ContextVar[bool] = ContextVar("_DECIDING", default=False)


class RankLost(RuntimeError):
    """Another process has ended, or did not answer before the timeout."""

    code = 1


@contextmanager
def group(device: str = "cpu", timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    """Join the processes that torchrun started, for the duration of the context. Without torchrun there is one process.

    device: "cpu" (gloo) or "cuda" (nccl, one GPU for each process).
    timeout_s: seconds to wait for other processes.

    Raises:
        ValueError: the device is unknown or missing.
        RankLost: not all processes joined before the timeout, or a process ended.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    token = _DEVICE.set(_device(device, local))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if processes == 1:
            with _readers():
                yield
            return
        with _one_line(f"not all {processes} processes have joined"):
            dist.init_process_group(BACKENDS[device], timeout=timedelta(seconds=timeout_s))
        before = signal.signal(signal.SIGTERM, _stopped)  # torchrun sends it to the others when one process ends
        try:
            with _readers():
                yield
        finally:
            signal.signal(signal.SIGTERM, before)
            dist.destroy_process_group()
    finally:
        _DEVICE.reset(token)


def rank() -> int:
    """Return the number of this process. Rank 0 writes files and reports progress."""
    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device() -> torch.device:
    """Return the device on which this process computes."""
    return torch.device(_DEVICE.get())


@contextmanager
def together() -> Iterator[None]:
    """Compute batch moments over the images of all ranks, for the duration of the context.

    Use the context in a training step alone. In an evaluation by one rank it would wait for the other ranks.
    """
    token = _TOGETHER.set(world() > 1)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def is_together() -> bool:
    """Return whether batch moments are computed over the images of all ranks now."""
    return _TOGETHER.get()


def batch(task: Task, step: int) -> tuple[Any, Tensor]:
    """Return (raw, labels) of this rank: an equal part of the batch of ``step``.

    A task with ``part(step, rank, world)`` makes only that part. Any other task makes the whole batch.
    """
    if world() == 1:
        return task.batch(step)
    part = getattr(task, "part", None)
    if part is not None:
        found: tuple[Any, Tensor] = part(step, rank(), world())
        return found
    return shard(*task.batch(step))


def held(task: Task, split: str, step: int, images: int) -> tuple[Any, Tensor]:
    """Return (raw, labels) of held-out images for this rank.

    images: the number of images for each rank; fewer if the split is too small.

    Successive steps take successive images. After the last full step the images start again from the first.
    """
    raw, labels = task.held(split)
    images = max(1, min(images, len(labels) // world()))
    turns = max(1, len(labels) // (images * world()))
    begin = ((step % turns) * world() + rank()) * images
    return raw[begin : begin + images], labels[begin : begin + images]


def shard(raw: Any, labels: Tensor) -> tuple[Any, Tensor]:
    """Return the equal part of a batch for this rank. Raise ValueError if the images do not divide."""
    size, rest = divmod(len(labels), world())
    if rest or not size:
        raise ValueError(f"a batch of {len(labels)} images does not divide among {world()} processes; change the batch")
    own = slice(rank() * size, (rank() + 1) * size)
    return raw[own], labels[own]


def mean(value: float) -> float:
    """Return the mean of ``value`` over all ranks, the same on every rank. It is not finite if one value is not."""
    if world() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device())
    _sum(total)
    return float(total) / world()


def total(count: int) -> int:
    """Return the sum of the counts of all ranks."""
    return round(mean(count) * world())


def agreed(make: Callable[[], Any]) -> Any:
    """Return on every rank the JSON value that ``make`` returns on rank 0. No other rank calls ``make``.

    Use it for scores and choices that training depends on, because different processors can compute different values.

    Raises:
        RankLost: rank 0 has ended or does not answer; or ``make`` failed there, on the other ranks.
        Exception: whatever ``make`` raises, on rank 0.
    """
    if world() == 1 or _DECIDING.get():  # a nested call of rank 0: the other ranks wait for the outer answer
        return make()
    if rank() == 0:
        token = _DECIDING.set(True)
        try:
            text = json.dumps({"made": make()})
        except Exception as error:
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            with suppress(RankLost):  # its own error is the one to report
                _send_text(json.dumps({"failed": line}))  # the others wait for an answer
            raise
        finally:
            _DECIDING.reset(token)
    answer = json.loads(_send_text(text if rank() == 0 else ""))
    if "failed" in answer:
        raise RankLost(f"rank {_who()}: rank 0 failed: {answer['failed']}")
    return answer["made"]


def _send_text(text: str) -> str:
    """Return the text of rank 0 on every rank."""
    sent = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device())
    size = torch.tensor([len(sent)], device=device())
    with _one_line("rank 0 has not sent its answer"):
        dist.broadcast(size, 0)
        sent = sent if rank() == 0 else torch.empty(int(size), dtype=torch.uint8, device=device())
        dist.broadcast(sent, 0)
    return bytes(sent.tolist()).decode()


def reduce(tensors: Sequence[Tensor]) -> None:
    """Replace float32 gradients by their mean over the ranks, in place, by one all-reduce."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    _sum(flat)
    flat /= world()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def begin(step: int, tensors: Sequence[Tensor]) -> None:
    """Copy the ``tensors`` of rank 0 to every rank, because different processors can draw different weights.

    Raises:
        ValueError: the ranks would start at different steps, because not every rank sees the checkpoint.
    """
    if world() == 1:
        return
    steps = torch.zeros(world(), dtype=torch.int64, device=device())
    steps[rank()] = step
    _sum(steps)
    if len(set(steps.tolist())) > 1:
        found = ", ".join(map(str, steps.tolist()))
        raise ValueError(f"the ranks would start at the steps {found}; --out must be a folder that every machine sees")
    # Adam's step count is always on the CPU.
    flat = torch.cat([tensor.detach().reshape(-1).to(device()) for tensor in tensors])
    with _one_line("rank 0 has not sent its weights"):
        dist.broadcast(flat, 0)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return ``x`` [N, C, H, W] normalised by the moments over all ranks; gradients pass through the moments."""
    out: Tensor = _BatchNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


class _BatchNorm(torch.autograd.Function):
    """Batch norm over ranks. Forward sums count, sum and squared sum; backward sums two terms of the gradient.

    torch's SyncBatchNorm does not support CPUs. Moments are float32 and pooled in float64 for any precision of ``x``.
    Squares are taken about the mean of each rank, so that a small variance beside a large mean stays accurate.
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


def _stopped(number: int, frame: object) -> None:  # noqa: ARG001 - the arguments of a signal handler
    raise RankLost(f"rank {_who()}: torchrun has stopped this process, as it does when another one ends; {_CONTINUE}")


@contextmanager
def _readers() -> Iterator[None]:
    """Raise RankLost if a worker of torch's DataLoader is killed. torch raises at any line of the block."""
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
    """Raise RankLost, in one line, for an error of torch.distributed."""
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:  # the base class of the errors of torch.distributed
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        raise RankLost(f"rank {_who()}: {what}: {reason}; {_CONTINUE}") from None
