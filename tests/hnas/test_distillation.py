"""Compare the divergences between student and teacher with their definitions and with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hnas.distillation import (
    DIVERGENCES,
    _divergence,
    alpha_divergence,
    distil,
    feature_distance,
    imitation,
    kl_divergence,
)
from tests.hnas import tiny

CLIP = 1e9  # no value reaches it


def scores(seed: int, n: int = 6, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definition(student: Tensor, teacher: Tensor, a: float) -> Tensor:
    """Return D_a(p || q) of every example, unclipped: (sum p^a q^(1-a) - 1) / (a (a - 1)), and its limits."""
    q, p = student.softmax(1), teacher.softmax(1)
    if a == 1.0:
        return (p * (p / q).log()).sum(1)
    if a == 0.0:
        return (q * (q / p).log()).sum(1)
    return ((p**a * q ** (1 - a)).sum(1) - 1) / (a * (a - 1))


def gradient(value: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, of)
    return found


@pytest.mark.parametrize("a", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_value_and_surrogate_are_those_of_the_definition(a):
    student, teacher = scores(0).requires_grad_(), scores(1)
    value, surrogate = _divergence(student.log_softmax(1), teacher.log_softmax(1), a, CLIP)
    wanted = definition(student, teacher, a)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(gradient(surrogate.sum(), student), gradient(wanted.sum(), student))


def test_every_example_pays_the_larger_of_the_two():
    student, teacher = scores(0).requires_grad_(), scores(1)
    both = torch.stack([definition(student, teacher, a) for a in (-1.0, 1.0)])
    assert 0 < int((both[0] > both[1]).sum()) < len(student)  # both sides occur
    wanted = both.max(0).values.mean()
    loss = alpha_divergence(student, teacher, clip=CLIP)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient(loss, student), gradient(wanted, student))


def test_alpha_punishes_a_student_that_believes_what_its_teacher_excludes_more_than_kl_does():
    teacher = torch.tensor([[0.499, 0.5, 0.001]]).log()
    student = torch.tensor([[0.35, 0.35, 0.3]]).log()
    assert alpha_divergence(student, teacher) > 1.3 * kl_divergence(student, teacher)
    missing = torch.tensor([[0.05, 0.949, 0.001]]).log()  # with the arguments exchanged both agree, because alpha is 1
    torch.testing.assert_close(alpha_divergence(missing, teacher), kl_divergence(missing, teacher))


def test_alpha_stays_finite_and_bounded_where_answers_are_extreme():
    student, teacher = scores(0, spread=200.0).float().requires_grad_(), scores(1, spread=200.0).float()
    loss = alpha_divergence(student, teacher)
    assert torch.isfinite(loss)
    assert gradient(loss, student).abs().max() <= 2 * 5.0  # the clip bounds rho


def test_no_distance_from_itself_and_no_gradient_to_the_teacher():
    same = scores(3)
    for divergence in DIVERGENCES.values():
        student = same.clone().requires_grad_()
        loss = divergence(student, same)
        assert loss.detach().abs() < 1e-12
        assert gradient(loss, student).abs().max() < 1e-12
    teacher = scores(1).requires_grad_()
    assert not alpha_divergence(same, teacher).requires_grad


def test_the_mix_has_the_labels_at_one_end_and_the_teacher_at_the_other():
    outputs, teacher, labels = scores(0), scores(1), torch.tensor([0, 1, 2, 3, 4, 0])

    def mixed(share: float, divergence: str = "kl") -> Tensor:
        return distil(outputs, labels, teacher, share=share, smoothing=0.1, divergence=divergence)

    plain = F.cross_entropy(outputs, labels)
    for name, divergence in DIVERGENCES.items():
        torch.testing.assert_close(mixed(0.0, name), plain)
        torch.testing.assert_close(mixed(1.0, name), divergence(outputs, teacher))
        torch.testing.assert_close(mixed(0.5, name), (plain + divergence(outputs, teacher)) / 2)
    alone = distil(outputs, labels, None, share=0.5, smoothing=0.1, divergence="kl")
    torch.testing.assert_close(alone, F.cross_entropy(outputs, labels, label_smoothing=0.1))


def test_a_task_takes_the_divergence_by_name():
    outputs, teacher, labels = scores(0)[:, :4], scores(1)[:, :4], torch.tensor([0, 1, 2, 3, 0, 1])
    losses = {name: tiny.task(distil=1.0, divergence=name).loss(outputs, labels, teacher) for name in DIVERGENCES}
    torch.testing.assert_close(losses["kl"], kl_divergence(outputs, teacher))
    torch.testing.assert_close(losses["alpha"], alpha_divergence(outputs, teacher))
    with pytest.raises(ValueError, match="no divergence 'js'; known: kl, alpha"):
        tiny.task(divergence="js")


def test_features_are_compared_at_the_smaller_size_where_their_channels_agree():
    own, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    pooled = F.avg_pool2d(target, 2)
    alone = feature_distance([(own, target), (torch.randn(2, 5, 4, 4), target)])
    torch.testing.assert_close(alone, imitation(own, pooled))
    torch.testing.assert_close(feature_distance([(target, own)]), imitation(pooled, own))
    assert float(feature_distance([(target, target)]).detach()) == 0
    assert float(feature_distance([(torch.randn(2, 5, 4, 4), target)])) == 0
    (reached,) = torch.autograd.grad(alone, own, retain_graph=True)
    assert float(reached.abs().sum()) > 0
    assert torch.autograd.grad(alone, target, allow_unused=True) == (None,)
