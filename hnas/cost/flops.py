"""Multiply-accumulates and parameters of a subnet, counted by torch on the meta skeleton."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs(net: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-accumulates of ``net`` (on the meta device) for one example of ``shapes``."""
    mode = net.training
    net.train()
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            net(*(torch.empty(2, *shape) for shape in shapes))  # one map of 1 x 1 has no batch moments
    finally:
        net.train(mode)
    return int(counter.get_total_flops()) // 4


def parameters(net: nn.Module) -> int:
    """How many weights ``net`` has."""
    return sum(p.numel() for p in net.parameters())
