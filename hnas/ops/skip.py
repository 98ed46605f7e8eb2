"""Define the identity as a branch among others, for sums without a residual connection.

In a differentiable search the identity wins too often, because gradients pass through it unchanged. During the search
it can therefore drop blocks of its input (DropBlock, arXiv 1810.12890): ``with dropping(DropBlock(0.3)): net(x)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DropBlock:
    """Say how identity branches drop blocks of their input in a training pass.

    rate: expected share of dropped positions, from 0 to below 1.
    block: height and width of a dropped block; at most the height and width of the map (7).
    seed: seed of the dropped positions of this pass (0).

    Raises:
        ValueError: ``rate`` or ``block`` is out of range.
    """

    rate: float
    block: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"the drop rate is {self.rate}; it is from 0 to below 1")
        if self.block < 1:
            raise ValueError(f"the dropped block has {self.block} positions a side; it is 1 or more")


_DROPPING: ContextVar[tuple[DropBlock, torch.Generator] | None] = ContextVar("_DROPPING", default=None)


@contextmanager
def dropping(drop: DropBlock | None) -> Iterator[None]:
    """Let every identity branch drop blocks in training mode, for the duration of the context. None: no drop."""
    token = _DROPPING.set(None if drop is None else (drop, torch.Generator().manual_seed(drop.seed)))
    try:
        yield
    finally:
        _DROPPING.reset(token)


def drop_blocks(x: Tensor, rate: float, block: int, generator: torch.Generator) -> Tensor:
    """Return ``x`` [N, C, H, W] with square blocks set to zero; the rest is scaled so that the mean is kept.

    rate: expected share of dropped positions.
    block: side of a block, at most H and W.
    """
    height, width = x.shape[2:]
    side = min(block, height, width)
    inner = (*x.shape[:2], height - side + 1, width - side + 1)
    seeds = rate / side**2 * (height * width) / (inner[2] * inner[3])  # arXiv 1810.12890, equation 1
    drawn = torch.rand(inner, generator=generator) < seeds
    # A block begins at its seed; the padding lets the pooling window reach every block that covers a position.
    kept = 1 - F.max_pool2d(F.pad(drawn.float(), [side - 1] * 4), side, 1)
    scale = kept.numel() / kept.sum().clamp_min(1)
    return x * (kept * scale).to(x.device, x.dtype)


class Skip(nn.Identity):
    """Pass the input [N, C, H, W] on unchanged. Within ``dropping`` a training pass drops blocks of the input."""

    def __init__(self, cin: int, cout: int, stride: int, act: str = "relu") -> None:
        del act  # every operation takes this argument
        if cin != cout or stride != 1:
            raise ValueError(f"skip keeps the shape; {cin} to {cout} channels at stride {stride} is not possible")
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C, H, W]."""
        active = _DROPPING.get() if self.training else None
        if active is None or not active[0].rate:
            return x
        drop, generator = active
        return drop_blocks(x, drop.rate, drop.block, generator)


build = Skip
