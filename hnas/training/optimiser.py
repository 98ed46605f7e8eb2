"""SGD and Adam that update only the slices of weights that a step used.

The gradient of a shared weight is zero, not missing, in slices that no path of the step used. Without a mask, weight
decay and momentum would change these slices. Update, decay and momentum buffers are therefore masked to the used part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hnas.supernet import Index

_SQUARES, _COUNT = "/squares", "/count"  # of the names of Adam's buffers
_SQUARES_DECAY, _EPSILON = 0.999, 1e-8  # of Adam
_Used = Mapping[str, tuple[nn.Parameter, Index | None]]


class Diverged(RuntimeError):
    """The loss or a gradient of a step is not finite, or the loss of a run jumped and stayed high."""

    code = 1  # exit code of a command that ends with this error


class MaskedOptimiser(ABC):
    """An optimiser on used slices; weight decay applies to weights with two or more axes.

    parameters: name -> parameter of the supernet.
    moments: name -> buffer of the optimiser.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], momentum: float = 0.9, decay: float = 5e-4) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.decay = decay
        self.moments = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._names = {p: name for name, p in self.parameters.items()}  # one name for a tied weight

    def reset(self) -> None:
        """Zero all buffers."""
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
            self._direct(name, grad, masks[name])
        if grads:
            torch._foreach_add_([self.parameters[name] for name in grads], list(grads.values()), alpha=-rate)
        self.clear()
        return norm

    @abstractmethod
    def _direct(self, name: str, grad: Tensor, mask: Tensor | None) -> None:
        """Make ``grad`` the update of the parameter ``name`` at a rate of 1, and update its buffers.

        mask: the used part; None: all of it.
        """

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


class MaskedSGD(MaskedOptimiser):
    """SGD with Nesterov momentum. Weight decay is a part of the gradient."""

    def _direct(self, name: str, grad: Tensor, mask: Tensor | None) -> None:
        parameter, moment = self.parameters[name], self.moments[name]
        if parameter.ndim > 1:
            grad.add_(parameter, alpha=self.decay)
        if mask is None:
            moment.mul_(self.momentum).add_(grad)
            grad.add_(moment, alpha=self.momentum)
        else:
            moment.copy_(torch.where(mask, moment * self.momentum + grad, moment))
            grad.add_(moment, alpha=self.momentum).mul_(mask)


class MaskedAdam(MaskedOptimiser):
    """Adam (arXiv 1412.6980) with decoupled weight decay (AdamW, arXiv 1711.05101).

    Every weight has its own count of steps, so that the correction of the bias is right where a path used it seldom.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], momentum: float = 0.9, decay: float = 5e-4) -> None:
        super().__init__(parameters, momentum, decay)
        for name, parameter in self.parameters.items():
            for buffer in (_SQUARES, _COUNT):
                self.moments[name + buffer] = torch.zeros_like(parameter)

    def _direct(self, name: str, grad: Tensor, mask: Tensor | None) -> None:
        parameter = self.parameters[name]
        moment, squares, count = (self.moments[name + buffer] for buffer in ("", _SQUARES, _COUNT))
        weight = torch.ones_like(grad) if mask is None else mask.to(grad.dtype)
        moment.lerp_(grad, weight * (1 - self.momentum))
        squares.lerp_(grad.square(), weight * (1 - _SQUARES_DECAY))
        count.add_(weight)
        steps = count.clamp(min=1)
        root = (squares / (1 - _SQUARES_DECAY**steps)).sqrt_().add_(_EPSILON)
        torch.div(moment / (1 - self.momentum**steps), root, out=grad)
        if parameter.ndim > 1:
            grad.add_(parameter, alpha=self.decay)
        grad.mul_(weight)


OPTIMISERS: Mapping[str, type[MaskedOptimiser]] = {"sgd": MaskedSGD, "adam": MaskedAdam}


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
