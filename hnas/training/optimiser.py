"""Stochastic gradient descent that touches only what a step used.

A slice that no path of the step ran has a zero gradient, not none: decay and momentum would still move weights that
nobody trained. Here update, decay and moments are masked to the used part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hnas.supernet import Index

_Used = Mapping[str, tuple[nn.Parameter, Index | None]]


class Diverged(RuntimeError):
    """A step whose loss or gradient is not finite, or a run whose loss does not come down again."""

    code = 1  # of a command that ends by it


class MaskedSGD:
    """SGD with Nesterov momentum that keeps book of used slices; decay applies to weights of two or more axes."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], momentum: float = 0.9, decay: float = 5e-4) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.decay = decay
        self.moments = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._names = {p: name for name, p in self.parameters.items()}  # a tied weight is one, whatever view calls it

    def reset(self) -> None:
        """Forget all momentum."""
        for moment in self.moments.values():
            moment.zero_()

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float, used: Iterable[_Used], clip: float | None = None) -> float:
        """One update from the gradients at hand; returns their norm before clipping. Gradients are cleared.

        Diverged, with every weight as it was, where the gradients are not finite.
        """
        parts = {n: mask for n, mask in self._parts(used).items() if self.parameters[n].grad is not None}
        parameters, moments = ([found[name] for name in parts] for found in (self.parameters, self.moments))
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads)) if grads else 0.0
        if not math.isfinite(norm):
            # Backwards it passes on to every layer before: the last one is where it begins.
            bad = [name for name, grad in zip(parts, grads, strict=True) if not bool(torch.isfinite(grad).all())]
            raise Diverged(f"the norm of the gradients is {norm}" + (f", from that of {bad[-1]}" if bad else ""))
        if clip and norm > clip:
            torch._foreach_mul_(grads, clip / (norm + 1e-6))
        for parameter, moment, grad, mask in zip(parameters, moments, grads, parts.values(), strict=True):
            if parameter.ndim > 1:
                grad.add_(parameter, alpha=self.decay)
            if mask is None:
                moment.mul_(self.momentum).add_(grad)
                grad.add_(moment, alpha=self.momentum)
            else:
                moment.copy_(torch.where(mask, moment * self.momentum + grad, moment))
                grad.add_(moment, alpha=self.momentum).mul_(mask)
        if grads:
            torch._foreach_add_(parameters, grads, alpha=-rate)
        self.clear()
        return norm

    def _parts(self, used: Iterable[_Used]) -> dict[str, Tensor | None]:
        """For each used parameter: None when all of it was used, else the mask of what was."""
        boxes: dict[str, list[Index] | None] = {}
        for view in used:
            for parameter, index in view.values():
                name = self._names[parameter]
                if index is None:
                    boxes[name] = None
                elif (known := boxes.setdefault(name, [])) is not None:
                    known.append(index)
        parts: dict[str, Tensor | None] = {}
        for name, indices in boxes.items():
            parts[name] = None
            if indices is not None:
                mask = torch.zeros_like(self.parameters[name], dtype=torch.bool)
                for index in indices:
                    mask[index] = True
                parts[name] = mask
        return parts


@torch.no_grad()
def project(teacher: Mapping[nn.Parameter, Tensor]) -> None:
    """Add the teacher's gradients to those of the students at hand so that they do not work against each other.

    NASViT (Gong et al., ICLR 2022), by parameter: g = g_T + g_S (1 + clamp(-<g_S, g_T> / (|g_S|^2 + 1e-6), 0, 2)).
    """
    for parameter, first in teacher.items():
        own = parameter.grad
        if own is None:
            parameter.grad = first
        else:
            against = -(own * first).sum() / (own.square().sum() + 1e-6)
            own.mul_(1 + against.clamp(0, 2)).add_(first)
