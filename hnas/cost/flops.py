"""Multiply-accumulates and parameters of a network, counted by torch on the meta device."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs(net: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of ``net`` for one example.

    net: on the meta device.
    shapes: the shape of each input, without the batch axis.

    Example: ``macs(supernet.skeleton(arch), *space.example(arch))``
    """
    mode = net.training
    net.train()
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            # Two examples: batch norm in training mode refuses a single map of 1 x 1.
            net(*(torch.empty(2, *shape) for shape in shapes))
    finally:
        net.train(mode)
    return int(counter.get_total_flops()) // 4  # two examples, two operations in a multiply-accumulate


def parameters(net: nn.Module) -> int:
    """Return the number of weights of ``net``."""
    return sum(p.numel() for p in net.parameters())
