"""Stochastic gradient descent that updates only the slices of weights that a step used.

The gradient of a shared weight is zero, not missing, in slices that no path of the step used. Without a mask, weight
decay and momentum would change these slices. Update, decay and momentum buffers are therefore masked to the used part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hnas.supernet import Index

_Used = Mapping[str, tuple[nn.Parameter, Index | None]]


class Diverged(RuntimeError):
    """The loss or a gradient of a step is not finite, or the loss of a run jumped and stayed high."""

    code = 1  # exit code of a command that ends with this error


class MaskedSGD:
    """SGD with Nesterov momentum on used slices; weight decay applies to weights with two or more axes.

    parameters: name -> parameter of the supernet.
    moments: name -> momentum buffer.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], momentum: float = 0.9, decay: float = 5e-4) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.decay = decay
        self.moments = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._names = {p: name for name, p in self.parameters.items()}  # one name for a tied weight

    def reset(self) -> None:
        """Zero all momentum buffers."""
        for moment in self.moments.values():
            moment.zero_()

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float, used: Iterable[_Used], clip: float | None = None) -> float:
        """Update the weights, clear all gradients, and return the norm of the gradients before clipping.

        rate: learning rate.
        used: for each path the slices that it used, as ``Supernet.where`` returns them.
        clip: largest norm of all gradients together; None or 0: no limit.

        Raises:
            Diverged: a gradient is not finite; every weight is unchanged.
        """
        masks = {n: mask for n, mask in self._masks(used).items() if self.parameters[n].grad is not None}
        grads = {name: grad for name in masks if (grad := self.parameters[name].grad) is not None}
        norm = float(nn.utils.get_total_norm(list(grads.values()))) if grads else 0.0
        if not math.isfinite(norm):
            raise Diverged(f"the norm of the gradients is {norm}{_origin(grads)}")
        if clip and norm > clip:
            torch._foreach_mul_(list(grads.values()), clip / (norm + 1e-6))
        for name, grad in grads.items():
            self._add_momentum(name, grad, masks[name])
        if grads:
            torch._foreach_add_([self.parameters[name] for name in grads], list(grads.values()), alpha=-rate)
        self.clear()
        return norm

    def _add_momentum(self, name: str, grad: Tensor, mask: Tensor | None) -> None:
        """Make ``grad`` the update of the parameter ``name``: weight decay, then Nesterov momentum, both masked."""
        parameter, moment = self.parameters[name], self.moments[name]
        if parameter.ndim > 1:
            grad.add_(parameter, alpha=self.decay)
        if mask is None:
            moment.mul_(self.momentum).add_(grad)
            grad.add_(moment, alpha=self.momentum)
        else:
            moment.copy_(torch.where(mask, moment * self.momentum + grad, moment))
            grad.add_(moment, alpha=self.momentum).mul_(mask)

    def _masks(self, used: Iterable[_Used]) -> dict[str, Tensor | None]:
        """Return for each used parameter the mask of its used part; None where all of it was used."""
        boxes: dict[str, list[Index] | None] = {}
        for view in used:
            for parameter, index in view.values():
                name = self._names[parameter]
                if index is None:
                    boxes[name] = None
                elif (known := boxes.setdefault(name, [])) is not None:
                    known.append(index)
        return {name: None if indices is None else self._mask(name, indices) for name, indices in boxes.items()}

    def _mask(self, name: str, indices: Iterable[Index]) -> Tensor:
        mask = torch.zeros_like(self.parameters[name], dtype=torch.bool)
        for index in indices:
            mask[index] = True
        return mask


def _origin(grads: Mapping[str, Tensor]) -> str:
    """Return a suffix that names the first gradient of the backward pass that is not finite.

    A backward pass goes from the last layer to the first, and passes such a gradient on to every earlier layer.
    """
    bad = [name for name, grad in grads.items() if not bool(torch.isfinite(grad).all())]
    return f", from that of {bad[-1]}" if bad else ""


@torch.no_grad()
def project_gradients(teacher: Mapping[nn.Parameter, Tensor]) -> None:
    """Add the teacher's gradients to those of the students, and weaken the students' gradients that oppose them.

    teacher: parameter -> its gradient of the teacher's loss.
    NASViT (Gong et al., ICLR 2022), for each parameter:
    g = g_T + g_S (1 + clamp(-<g_S, g_T> / (|g_S|^2 + 1e-6), 0, 2)).
    """
    for parameter, first in teacher.items():
        own = parameter.grad
        if own is None:
            parameter.grad = first
        else:
            against = -(own * first).sum() / (own.square().sum() + 1e-6)
            own.mul_(1 + against.clamp(0, 2)).add_(first)
