"""The place in a network where operations of different types compete."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Slot(nn.Module):
    """Branches of different types between one input and one output.

    1. residual, no branch: the identity.
    2. residual, one branch: x + branch(x).
    3. residual, m branches: x + sqrt(m) * mean of the branches, so that the spread stays that of one.
    4. not residual: the same without x; at least one branch is needed.
    5. gated (relaxed search): x + sum_i gates[i] * branch_i(x); ``gates`` [m] is an input of the supernet's view.
    """

    def __init__(self, branches: Mapping[str, nn.Module], *, residual: bool, gated: bool = False) -> None:
        super().__init__()
        if not branches and not residual:
            raise ValueError("a slot that changes shape needs a branch; identity is legal only where shapes match")
        self.residual = residual
        self.branches = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.gates = nn.Parameter(torch.ones(len(branches))) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """The junction of the branches, by the cases above."""
        outputs = [self.get_submodule(name)(x) for name in self.branches]
        if self.gates is not None:
            outputs = [gate * y for gate, y in zip(self.gates, outputs, strict=True)]
            scale = 1.0
        else:
            scale = max(len(outputs), 1) ** -0.5
        if not outputs:
            return x
        y: Tensor = outputs[0]
        for other in outputs[1:]:
            y = y + other
        if scale != 1.0:
            y = y * scale
        return x + y if self.residual else y
