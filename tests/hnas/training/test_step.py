"""One step: projected gradients, the input of batch norms, and steps that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random

import pytest
import torch
from torch import Tensor, nn

from hnas import spaces
from hnas.ops.mbconv import MBConv
from hnas.sampling import draws as paths
from hnas.shrinking.evidence import one_shot_accuracy
from hnas.space import Arch, Space
from hnas.strategies import sandwich
from hnas.study import Study
from hnas.supernet import Supernet, norms
from hnas.training import checkpoint as checkpoints
from hnas.training.checkpoint import TrainingState
from hnas.training.loop import Observer, Schedule, train
from hnas.training.optimiser import MaskedSGD, project_gradients
from hnas.training.probes import first_not_finite
from hnas.training.step import SubnetPath, compute_gradients
from tests.hnas import tiny
from tests.hnas.strategies.test_strategies import filled

SPACE = tiny.space()
SLOT = "stages.1.blocks.1"


def member(kind: str) -> Arch:
    """Return the largest member with this type in ``SLOT`` and convnext in the other slots."""
    return paths.relax(SPACE, SPACE.largest, {**dict.fromkeys(SPACE.slots, ("convnext",)), SLOT: (kind,)})


# --- projection (NASViT) ----------------------------------------------------------------------------------------------


def projected(student: list[float] | None, teacher: list[float]) -> list[float]:
    """Return the projected gradient of one parameter."""
    parameter = nn.Parameter(torch.zeros(len(teacher)))
    parameter.grad = None if student is None else torch.tensor(student)
    project_gradients({parameter: torch.tensor(teacher)})
    found: list[float] = parameter.grad.tolist()
    return found


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        ([1.0, 2.0], [3.0, -1.0], [4.0, 1.0]),  # <g_S, g_T> = 1: no conflict, the sum
        ([1.0, 0.0], [0.0, 5.0], [1.0, 5.0]),  # orthogonal: the sum
        ([-1.0, 1.0], [1.0, 0.0], [-0.5, 1.5]),  # -1 of |g_S|^2 = 2: g_S times 1.5
        ([-2.0, 0.0], [1.0, 1.0], [-2.0, 1.0]),  # -2 of 4: what of the teacher's lay along the student's is gone
        ([-0.1, 0.0], [1.0, 0.0], [0.7, 0.0]),  # -0.1 of 0.01 would be 11 times: bounded by 1 + 2
        ([0.0, 0.0], [1.0, 2.0], [1.0, 2.0]),  # a student without a gradient
        (None, [1.0, 2.0], [1.0, 2.0]),  # a parameter that no student used
    ],
)
def test_projection_is_the_papers_formula(student, teacher, wanted):
    assert projected(student, teacher) == pytest.approx(wanted, abs=1e-4)


def test_what_the_bound_does_not_hold_back_never_works_against_the_students():
    generator = torch.Generator().manual_seed(0)
    against = 0
    for _ in range(200):
        student, teacher = (torch.randn(5, generator=generator) for _ in range(2))
        both = torch.tensor(projected(student.tolist(), teacher.tolist()))
        conflict = -float(student @ teacher) / float(student @ student)
        against += conflict > 0
        if conflict <= 2:
            assert float(both @ student) > 0
        if conflict <= 0:
            torch.testing.assert_close(both, student + teacher)
    assert 50 < against < 150


def test_projection_is_by_parameter_and_leaves_alone_what_the_teacher_does_not_use():
    alone, shared = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    alone.grad, shared.grad = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
    project_gradients({shared: torch.tensor([1.0, 1.0])})
    assert alone.grad.tolist() == [-1.0, 0.0]
    assert shared.grad.tolist() == [2.0, 1.0]


def test_a_step_projects_the_sum_of_its_students():
    """Compute the teacher's and the students' gradients separately; combine them by the formula."""
    steps = [SubnetPath(SPACE.largest, teaches=True), SubnetPath(member("mbconv")), SubnetPath(SPACE.smallest)]

    def found(*given: SubnetPath, combine: str = "sum", distil: float = 0.0) -> dict[str, Tensor]:
        supernet = filled(SPACE)
        optimiser = MaskedSGD(dict(supernet.union.named_parameters()))
        state, task = TrainingState(supernet, optimiser, {}), tiny.task(distil=distil, smoothing=0.0)
        compute_gradients(state, task, task.batch(0), given, combine, "fp32")
        return {name: p.grad for name, p in supernet.union.named_parameters() if p.grad is not None}

    teacher, students = found(steps[0]), found(*(SubnetPath(step.arch) for step in steps[1:]))
    both, conflicts = found(*steps, combine="project"), 0
    for name, gradient in both.items():
        own, first = (of.get(name, torch.zeros_like(gradient)) for of in (students, teacher))
        scale = (-(own * first).sum() / (own.square().sum() + 1e-6)).clamp(0, 2)
        conflicts += bool(scale > 0)
        wanted = first + own * (1 + scale)
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)
    assert conflicts
    assert any(not torch.allclose(both[name], gradient) for name, gradient in found(*steps).items())


# --- distillation of features -----------------------------------------------------------------------------------------


def test_a_student_learns_from_the_stages_of_the_path_that_teaches():
    """The part of the loss does not depend on the labels, reaches no teacher, and is 0 for the teacher's own arch."""
    at = member("mbconv")  # of the widths of the largest

    def found(*given: SubnetPath, shuffle: bool = False) -> dict[str, Tensor]:
        supernet = filled(SPACE)
        state = TrainingState(supernet, MaskedSGD(dict(supernet.union.named_parameters())), {})
        task = tiny.task(distil=0.0, smoothing=0.0)
        raw, labels = task.batch(0)
        compute_gradients(state, task, (raw, labels.flip(0) if shuffle else labels), given, "sum", "fp32")
        return {name: p.grad for name, p in supernet.union.named_parameters() if p.grad is not None}

    def part(arch: Arch, *, shuffle: bool = False) -> dict[str, Tensor]:
        first = SubnetPath(SPACE.largest, teaches=True)
        more = found(first, SubnetPath(arch, features=2.0), shuffle=shuffle)
        less = found(first, SubnetPath(arch), shuffle=shuffle)
        return {name: more[name] - less[name] for name in more}

    student = part(at)
    touched = {name for name, gradient in student.items() if float(gradient.abs().max()) > 1e-5}
    assert any(name.startswith("stages.0") for name in touched)
    assert not any(name.startswith(("head", "classifier")) for name in touched)  # they come after the stages
    for name, gradient in part(at, shuffle=True).items():
        torch.testing.assert_close(gradient, student[name], rtol=1e-3, atol=1e-5)
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in part(SPACE.largest).values())


def test_features_without_stages_are_one_line():
    """Name the option and the space; a network without stages was an AttributeError of torch."""
    space = spaces.load("mobilenetv3")(classes=4, resolution=16)
    with pytest.raises(ValueError, match=r"'features' needs a network with stages, and the space 'mobilenetv3' has no"):
        train(Supernet(space), tiny.task(), partial(sandwich.pick, paths=0, features=1.0), Schedule(((1, 0.1),)))


@pytest.mark.parametrize("slot", [None, SLOT])
def test_features_without_a_teacher_before_them_are_one_line(slot: str | None):
    """They were ignored."""
    student, teacher = (SubnetPath(member("mbconv"), features=2.0), SubnetPath(SPACE.largest, teaches=True))
    imitates = [] if slot is None else [SubnetPath(member("mbconv"), imitates=slot)]
    for given in ([student], [student, teacher]):
        with pytest.raises(
            ValueError, match=r"a path has the option 'features' = 2, and none that teaches comes befor"
        ):
            train(filled(SPACE), tiny.task(), lambda *_, given=given: given, Schedule(((1, 0.1),)))
    train(filled(SPACE), tiny.task(), lambda *_: [teacher, *imitates, student], Schedule(((1, 0.1),)))


# --- norms of branches ------------------------------------------------------------------------------------------------


@contextmanager
def moments(net: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Return mean and variance of the input of every batch norm of ``net``."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str) -> Callable[..., None]:
        return lambda _, args: seen.update({name: torch.var_mean(args[0].detach(), (0, 2, 3))})

    hooks = [norm.register_forward_pre_hook(look(name)) for name, norm in norms(net).items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def test_the_norms_of_a_branch_see_its_own_data_and_a_norm_behind_the_junction_sees_all():
    """Two types are active in one slot; the weights of one of them change."""
    supernet, pair = filled(SPACE), ("convnext", "mbconv")
    arch = paths.relax(SPACE, member("mbconv"), {SLOT: pair})
    x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))

    def read() -> dict[str, tuple[Tensor, Tensor]]:
        with moments(supernet.skeleton(arch)) as seen, torch.no_grad():
            supernet(arch, x, gates=paths.even_gates(SPACE, arch))
        return dict(seen)

    before = read()
    for kind, other in (pair, pair[::-1]):
        with torch.no_grad():
            for parameter in supernet.union.get_submodule(f"{SLOT}.{other}").parameters():
                parameter.mul_(1.5).add_(0.1)
        after = read()
        own = [name for name in before if name.startswith(f"{SLOT}.{kind}.")]
        differ = {name for name in before if not all(map(torch.equal, before[name], after[name]))}
        assert own
        assert not differ & set(own)
        assert f"{SLOT}.{other}.out" in differ
        assert {name for name in before if name.startswith("stages.1.blocks.2.") or name == "head.norm"} <= differ
        before = after


def test_training_a_branch_moves_no_scale_or_shift_of_anothers_norms():
    supernet = filled(SPACE)
    before = {name: p.detach().clone() for name, p in supernet.union.named_parameters()}
    train(supernet, tiny.task(), lambda *_: (SubnetPath(member("mbconv")),), Schedule(((3, 0.1),)))
    moved = {name for name, p in supernet.union.named_parameters() if not torch.equal(p, before[name])}
    assert f"{SLOT}.mbconv.out.weight" in moved
    assert not any(name.startswith(f"{SLOT}.convnext.") for name in moved)
    assert "head.norm.weight" in moved


# --- an operation that is not finite ----------------------------------------------------------------------------------


class Run:
    """A training in which mbconv returns NaN in some steps; keeps messages, and weights after each good step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: range, steps: int, kind: str = "mbconv") -> None:
        self.said: list[str] = []
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.when_said: list[dict[str, Tensor]] = []
        self.supernet, self.step = Supernet(SPACE), -1
        forward = MBConv.forward

        def spoilt(op: MBConv, x: Tensor) -> Tensor:
            return forward(op, x) * (float("nan") if self.step in broken else 1.0)

        monkeypatch.setattr(MBConv, "forward", spoilt)

        def pick(space: Space, rng: Random, progress: float) -> tuple[SubnetPath, ...]:
            self.step = round(progress * steps)
            return (SubnetPath(member(kind)),)

        self.begin = self.weights()
        train(
            self.supernet,
            tiny.task(),
            pick,
            Schedule(((steps, 0.05),)),
            observer=Observer(
                lambda done, _: self.kept.update({done: self.weights()}),
                lambda line: (self.said.append(line), self.when_said.append(self.weights())),
            ),
        )

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.supernet.union.named_parameters()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, two[name]) for name, weight in one.items())


NAMED = f"the loss is nan; the first output that is not finite is that of {SLOT}.mbconv"


def test_an_operation_that_puts_out_nan_is_named_and_its_step_skipped_without_loss(monkeypatch):
    run = Run(monkeypatch, range(2, 4), 6)
    assert run.said == [f"step {step} skipped: {NAMED}" for step in (2, 3)]
    assert sorted(run.kept) == [1, 2, 5, 6]
    assert all(same(weights, run.kept[2]) for weights in run.when_said)
    assert not same(run.kept[5], run.kept[2])
    assert all(bool(torch.isfinite(weight).all()) for weight in run.kept[6].values())


def test_three_such_steps_bring_the_last_good_state_back_and_the_next_one_goes_on(monkeypatch):
    monkeypatch.setattr(checkpoints, "GOOD", 10)
    run = Run(monkeypatch, range(12, 15), 17)
    assert run.said[-1] == f"after step 14 the last good state is restored: {NAMED}"
    assert len(run.said) == 3
    assert same(run.when_said[1], run.kept[12])
    assert same(run.when_said[2], run.kept[10]), "the one that was kept after ten steps"
    assert not same(run.kept[16], run.kept[10])
    assert sorted(run.kept) == [*range(1, 13), 16, 17]


def test_a_path_around_the_operation_is_trained_as_ever(monkeypatch):
    run = Run(monkeypatch, range(100), 4, kind="convnext")
    assert run.said == []
    assert sorted(run.kept) == [1, 2, 3, 4]


def test_an_operation_that_puts_out_nan_answers_nothing_right_and_is_the_first_to_go(monkeypatch):
    forward = MBConv.forward
    monkeypatch.setattr(MBConv, "forward", lambda op, x: forward(op, x) * float("nan"))
    study = Study(filled(SPACE), tiny.task())
    assert study.accuracy(member("mbconv")) == 0.0
    assert study.accuracy(member("convnext")) > 0.0
    rest = {slot: [k for k in paths.slot_types(SPACE, slot) if k != "mbconv"] for slot in SPACE.slots if slot != SLOT}
    worth = one_shot_accuracy.scores(study, paths.keep_types(SPACE, rest), samples=4)
    assert [place for place, score in worth.items() if score == 0.0] == [(f"{SLOT}.op", "mbconv")]


def test_the_innermost_module_is_named_and_none_where_all_is_finite():
    supernet, arch = filled(SPACE), member("mbconv")
    x = torch.zeros(2, 1, 12, 12)
    for value, wanted in ((float("inf"), [f"{SLOT}.mbconv.depthwise.conv"]), (1.0, [])):
        with torch.no_grad():
            supernet.union.get_submodule(SLOT).mbconv.depthwise.conv.weight.fill_(value)
        with first_not_finite(supernet.skeleton(arch)) as found, torch.no_grad():
            supernet(arch, x)
        assert found == wanted
    assert not any(module._forward_hooks for module in supernet.skeleton(arch).modules())


def test_a_gradient_that_is_not_finite_names_the_weight_where_it_begins():
    net = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2), "third": nn.Linear(2, 2)})
    optimiser = MaskedSGD(dict(net.named_parameters()))
    for name, parameter in net.named_parameters():
        parameter.grad = torch.full_like(parameter, 1.0 if name.startswith("third") else float("nan"))
    with pytest.raises(RuntimeError, match=r"the norm of the gradients is nan, from that of second\.bias"):
        optimiser.step(0.1, [{name: (p, None) for name, p in net.named_parameters()}])
