"""A place in a network where operations of different types compete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn


class Slot(nn.Module):
    """Hold branches of different types between one input and one output.

    1. residual, no branch: the identity.
    2. residual, one branch: x + branch(x).
    3. residual, m branches: x + sqrt(m) * mean of the branches, which keeps the variance of one branch.
    4. not residual: as in 2 and 3 without x; at least one branch is needed.
    5. gated (relaxed search): x + sum_i gates[i] * branch_i(x); ``gates`` [m] is an argument of the supernet.
    6. divided: x + the concatenated outputs; together they have the channels of the slot (MixConv, arXiv 1907.09595).
    """

    def __init__(
        self, branches: Mapping[str, nn.Module], *, residual: bool, gated: bool = False, divided: bool = False
    ) -> None:
        super().__init__()
        if gated and divided:
            raise ValueError("a slot is gated or divided; gates of a divided slot would leave channels empty")
        if not branches and not residual:
            raise ValueError("a slot that changes shape needs a branch; identity is legal only where shapes match")
        self.residual = residual
        self.divided = divided
        self.branches = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.gates = nn.Parameter(torch.ones(len(branches))) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C, H, W] by the cases above."""
        if not self.branches:  # case 1
            return x
        if self.divided:  # case 6
            y = torch.cat([self.get_submodule(name)(x) for name in self.branches], 1)
        else:  # one branch after another, so that without gradients only one output is in memory beside the sum
            y = self._weighted(x, 0)
            for k in range(1, len(self.branches)):
                y = y + self._weighted(x, k)
            if self.gates is None and len(self.branches) > 1:
                y = y * len(self.branches) ** -0.5  # case 3
        return x + y if self.residual else y  # case 2, case 4

    def _weighted(self, x: Tensor, k: int) -> Tensor:
        """Return the output of branch ``k``, times its gate if the slot is gated (case 5)."""
        y: Tensor = self.get_submodule(self.branches[k])(x)
        return y if self.gates is None else self.gates[k] * y


def divided(builders: Mapping[str, Callable[[int], nn.Module]], channels: int) -> dict[str, nn.Module]:
    """Return the branches of a divided slot. Their outputs together have ``channels`` channels.

    The parts are near-equal, and multiples of 8 if possible.

    builders: type -> function that returns the branch for a number of output channels.

    A branch uses the weights of its own channels. Its layers with the output channels of the slot as first axis
    therefore take the slice that begins at the first channel of the part.
    """
    n, unit = len(builders), 8 if channels >= 8 * len(builders) else 1
    edges = [channels // unit * i // n * unit for i in range(n)] + [channels]
    branches = {}
    for (kind, build), (begin, end) in zip(builders.items(), pairwise(edges), strict=True):
        branches[kind] = build(end - begin)
        with torch.device("meta"):
            whole = dict(build(channels).named_parameters())
        for name, parameter in branches[kind].named_parameters():
            if parameter.shape[0] != whole[name].shape[0]:
                layer = branches[kind].get_submodule(name.rpartition(".")[0])
                object.__setattr__(layer, "subweight", _from(begin))
    return branches


def _from(begin: int) -> Callable[[str, tuple[int, ...], tuple[int, ...]], tuple[slice, ...]]:
    def subweight(name: str, full: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return slices: output channels from ``begin``, inputs from 0, kernels from their centre."""
        del name
        starts = [begin, *(0 for _ in shape[1:2]), *((m - k) // 2 for m, k in zip(full[2:], shape[2:], strict=True))]
        return tuple(slice(start, start + k) for start, k in zip(starts, shape, strict=True))

    return subweight
