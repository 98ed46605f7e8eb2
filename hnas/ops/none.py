"""No connection: zeros instead of an edge (NAS-Bench-201, arXiv 2001.00326)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _NoConnection(nn.Module):
    """Zeros in the shape of the input, without weights."""

    def __init__(self, cin: int, cout: int, stride: int, act: str = "relu") -> None:
        del act  # every operation takes this argument
        if cin != cout or stride != 1:
            raise ValueError(f"none keeps the shape; {cin} to {cout} channels at stride {stride} is not possible")
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> zeros."""
        return torch.zeros_like(x)


build = _NoConnection
