"""Losses of in-place distillation: the distance of a student's outputs from the outputs of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(outputs: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of class scores [N, classes], averaged over the batch."""
    student = F.log_softmax(outputs, 1)
    return F.kl_div(student, F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)


def alpha_divergence(
    outputs: Tensor, teacher: Tensor, low: float = -1.0, high: float = 1.0, clip: float = 5.0
) -> Tensor:
    """Return the adaptive alpha-divergence of AlphaNet (arXiv 2102.07954, algorithm 1), averaged over the batch.

    outputs, teacher: class scores [N, classes]; no gradient reaches the teacher.
    low, high: the two alphas (-1 and 1). For each example the larger of D_low and D_high is used. A negative alpha
        penalises a student that is certain where its teacher is not; a positive alpha penalises the opposite.
    clip: upper bound of the importance weights in the gradient (5).

    The value is the divergence; the gradient is that of the clipped surrogate.
    """
    student, target = F.log_softmax(outputs, 1), F.log_softmax(teacher.detach(), 1)
    ends = [_divergence(student, target, end, clip) for end in (low, high)]
    (left, left_surrogate), (right, right_surrogate) = ends
    larger = left > right
    value = left.where(larger, right).mean()
    surrogate = left_surrogate.where(larger, right_surrogate).mean()
    return surrogate + (value - surrogate).detach()


def imitation(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of two feature maps of one shape, as a share of the target's mean square."""
    output, target = output.float(), target.detach().float()
    return F.mse_loss(output, target) / target.square().mean().clamp_min(1e-12)


def feature_distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean of ``imitation`` over pairs of feature maps of a student and its teacher, each [N, C, H, W].

    The larger of two maps is pooled to the height and width of the smaller one, because the inputs of the networks may
    have different resolutions. Pairs with different numbers of channels are left out; 0 without any pair.
    """
    found = []
    for own, target in pairs:
        if own.shape[1] == target.shape[1]:
            size = (min(own.shape[2], target.shape[2]), min(own.shape[3], target.shape[3]))
            pooled = [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (own, target)]
            found.append(imitation(*pooled))
    return torch.stack(found).mean() if found else torch.zeros(())


Divergence = Literal["kl", "alpha"]  # the keys of DIVERGENCES, which a recipe may name
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl_divergence, "alpha": alpha_divergence}


def distil(
    outputs: Tensor, labels: Tensor, teacher: Tensor | None, *, share: float, smoothing: float, divergence: str
) -> Tensor:
    """Return the loss of one path of a step.

    outputs, teacher: class scores [N, classes]; labels: [N].

    1. Without a teacher: cross-entropy with label smoothing.
    2. With a teacher: ``share`` times the divergence from its outputs, plus (1 - ``share``) times the cross-entropy
       without smoothing.

    Raises:
        ValueError: the divergence is unknown.
    """
    if teacher is None:  # case 1
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)
    if divergence not in DIVERGENCES:
        raise ValueError(f"no divergence {divergence!r}; known: {', '.join(DIVERGENCES)}")
    soft = DIVERGENCES[divergence](outputs, teacher)  # case 2
    return share * soft + (1 - share) * F.cross_entropy(outputs, labels)


def _divergence(student: Tensor, target: Tensor, a: float, clip: float) -> tuple[Tensor, Tensor]:
    """Return D_a and its surrogate [N] from log-probabilities; only those of the student carry a gradient.

    With q the student's, p the teacher's probabilities, r = p / q and w = min(r^a, clip):
    D = sum q (w - 1) / (a (a - 1)) and G = -sum q rho log q with rho = w / a + 1 / (a (a - 1)).
    a = 1: D = sum p log r and rho = r. a = 0: D = -sum q log r and rho = log r - 1.
    """
    q, p, log_r = student.detach().exp(), target.exp(), target - student.detach()
    if a == 1.0:
        return (p * log_r).sum(1), -(p * student).sum(1)
    if a == 0.0:
        return -(q * log_r).sum(1), -(q * (log_r - 1) * student).sum(1)
    w, scale = (a * log_r).exp().clamp_max(clip), 1 / (a * (a - 1))
    return (q * (w - 1)).sum(1) * scale, -(q * (w / a + scale) * student).sum(1)
