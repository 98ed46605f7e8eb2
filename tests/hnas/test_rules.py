"""Check the eight rules that make the training path and the deployment path one function."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from hnas import study as study_module
from hnas.files import read_tensors, write_tensors
from hnas.ops.slot import Slot
from hnas.space import Arch, Space
from hnas.strategies import sandwich
from hnas.study import Study
from hnas.supernet import Stats, Supernet, norms
from hnas.training.folder import save_supernet
from hnas.training.loop import Schedule, train
from hnas.training.optimiser import MaskedAdam, MaskedSGD
from tests.hnas import tiny


class Own(nn.Module):
    """A module with a weight of any shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(np.prod(shape))).reshape(shape))


class Other(Own):
    """The same weight under another type."""


class LastTaps(Own):
    """A causal kernel: a smaller one keeps the last taps."""

    def subweight(self, name: str, full: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        assert name == "weight"
        return tuple(slice(m - n, m) for m, n in zip(full, shape, strict=True))


class Tied(nn.Module):
    """One linear layer under two names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def view(union: nn.Module, member: nn.Module) -> dict[str, Tensor]:
    space, arch = tiny.pair(nn.ModuleDict({"m": union}), nn.ModuleDict({"m": member}))
    return Supernet(space).view(arch)


def relaxed(space: Space) -> tuple[Arch, str]:
    """Return an architecture whose first slot runs two gated types."""
    slot, types = "stages.0.blocks.0", ("mbconv", "fusedconv")
    sizes = {n: c.options[-1] for n, c in space.choices.items() if n.startswith(tuple(f"{slot}.{t}." for t in types))}
    return Arch({**space.largest, **sizes, f"{slot}.op": types}), slot


@pytest.fixture
def study() -> Study:
    return Study(Supernet(tiny.space()), tiny.task())


def weights(supernet: Supernet) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in supernet.union.named_parameters()}


@pytest.mark.parametrize(
    ("union", "member", "message"),
    [
        (Own(4), nn.ModuleDict({"n": Own(4)}), "m.n.weight is not a parameter of the supernet"),
        (Own(4), Other(4), "m.weight belongs to a Own in the supernet, to a Other here"),
        (Own(4, 4), Own(4), "does not fit"),
        (Own(4), Own(5), r"has shape \(4,\) in the supernet; \(5,\) does not fit"),
    ],
    ids=["name", "type", "ndim", "size"],
)
def test_rule_1_a_view_needs_name_type_ndim_and_size(union, member, message):
    with pytest.raises(ValueError, match=message):
        view(union, member)


def test_rule_1_a_branch_lives_under_its_own_name_even_where_it_stands_alone():
    space = tiny.space()
    supernet = Supernet(space)
    for seed in range(5):
        arch = space.sample(Random(seed))
        for name in (n for n in arch if n.endswith(".op")):
            slot = name.removesuffix("op")
            inside = {n.removeprefix(slot).split(".")[0] for n in supernet.view(arch) if n.startswith(slot)}
            assert inside == {arch[name]} - {"identity"}


def test_rule_2_slices_are_leading_and_kernels_are_cut_from_the_centre():
    linear, small = nn.Linear(6, 5), nn.Linear(4, 3)
    assert torch.equal(view(linear, small)["m.weight"], linear.weight[:3, :4])
    conv = nn.Conv2d(6, 5, 7)
    assert torch.equal(view(conv, nn.Conv2d(4, 3, 3))["m.weight"], conv.weight[:3, :4, 2:5, 2:5])
    line = nn.Conv1d(6, 5, 5)
    assert torch.equal(view(line, nn.Conv1d(4, 3, 3))["m.weight"], line.weight[:3, :4, 1:4])


def test_rule_2_a_module_may_cut_its_own_weights():
    assert view(LastTaps(5), LastTaps(2))["m.weight"].tolist() == [3.0, 4.0]


def test_rule_2_a_view_aliases_the_shared_storage(study):
    supernet, arch = study.supernet, study.supernet.space.smallest
    for name, part in supernet.view(arch).items():
        assert part.untyped_storage().data_ptr() == supernet.where(arch)[name][0].untyped_storage().data_ptr()


def test_rule_3_moments_are_pooled_exactly(study, monkeypatch):
    monkeypatch.setattr(study_module, "CHUNK", 7)  # 64 images: nine chunks and one of a single image
    arch, seen = study.supernet.space.largest, {}
    for name, norm in norms(study.supernet.skeleton(arch)).items():
        norm.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0].double()))
    stats = study.calibrate(arch)
    assert stats.images == 64
    for name, read in seen.items():
        values = np.moveaxis(torch.cat(read).numpy(), 1, 0).reshape(read[0].shape[1], -1)
        np.testing.assert_allclose(stats.moments[f"{name}.running_mean"], values.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats.moments[f"{name}.running_var"], values.var(1, ddof=1), rtol=1e-5, atol=1e-9)
    assert seen.keys() == norms(study.supernet.skeleton(arch)).keys()


def test_rule_3_moments_are_cached_until_the_weights_change(study):
    arch = study.supernet.space.smallest
    before = study.calibrate(arch)
    assert study.calibrate(arch) is before
    study.train(sandwich.pick, Schedule(((1, 0.1),)))
    after = study.calibrate(arch)
    assert after is not before
    assert not torch.equal(after.moments["stem.norm.running_mean"], before.moments["stem.norm.running_mean"])


def test_rule_3_nothing_is_written_to_the_supernet_and_stats_are_immutable(study):
    before = {name: t.clone() for name, t in study.supernet.state_dict().items()}
    stats = study.calibrate(study.supernet.space.largest)
    study.supernet(study.supernet.space.largest, torch.randn(4, 1, 12, 12))
    after = study.supernet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(TypeError):
        stats.moments["stem.norm.running_mean"] = torch.zeros(8)


@pytest.mark.parametrize("stats", [None, Stats({}, 0), "another"])
def test_rule_3_extracting_and_evaluating_need_the_architectures_own_moments(study, stats):
    space = study.supernet.space
    given = study.calibrate(space.smallest) if stats == "another" else stats
    with pytest.raises(ValueError, match=r"needs its own calibrated moments.*Study.calibrate"):
        study.supernet.extract(space.largest, given)
    if given is not None:
        with pytest.raises(ValueError, match="needs its own calibrated moments"):
            study.supernet(space.largest, torch.randn(1, 1, 12, 12), stats=given)


@pytest.mark.parametrize("where", ["union", "member"])
def test_rule_3_a_non_persistent_buffer_is_refused(where):
    plain, transient = Own(2), Own(2)
    transient.register_buffer("mask", torch.ones(2), persistent=False)
    union, member = (transient, plain) if where == "union" else (plain, transient)
    with pytest.raises(ValueError, match=r"m.mask is a non-persistent buffer"):
        view(union, member)


def test_rule_4_junctions():
    x = torch.randn(2, 4, 3, 3)
    a, b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    assert torch.equal(Slot({}, residual=True)(x), x)  # case 1
    assert torch.equal(Slot({"a": a}, residual=True)(x), x + a(x))  # case 2
    both = 2**0.5 * (a(x) + b(x)) / 2
    torch.testing.assert_close(Slot({"a": a, "b": b}, residual=True)(x), x + both)  # case 3
    assert torch.equal(Slot({"a": a}, residual=False)(x), a(x))  # case 4
    torch.testing.assert_close(Slot({"a": a, "b": b}, residual=False)(x), both)
    with pytest.raises(ValueError, match="needs a branch"):
        Slot({}, residual=False)
    gated = Slot({"a": a, "b": b}, residual=True, gated=True)  # case 5
    gated.gates = nn.Parameter(torch.tensor([0.25, 2.0]))
    torch.testing.assert_close(gated(x), x + 0.25 * a(x) + 2 * b(x))


def test_rule_4_a_mean_of_several_branches_has_the_spread_of_one():
    torch.manual_seed(0)
    x = torch.randn(64, 8, 8, 8)
    branches = {str(k): nn.Conv2d(8, 8, 1) for k in range(16)}
    for conv in branches.values():
        nn.init.orthogonal_(conv.weight)
        nn.init.zeros_(conv.bias)
    with torch.no_grad():
        spread = Slot(branches, residual=False)(x).std() / branches["0"](x).std()
    assert 0.85 < float(spread) < 1.15


def test_rule_5_gates_get_gradients_through_the_view(study):
    supernet = study.supernet
    arch, slot = relaxed(supernet.space)
    gates = torch.tensor([0.5, 0.5], requires_grad=True)
    supernet(arch, torch.randn(4, 1, 12, 12), gates={slot: gates}).square().sum().backward()
    assert gates.grad is not None
    assert gates.grad.abs().min() > 0


def test_rule_5_gates_are_passed_for_relaxed_slots_and_no_other(study):
    supernet, x = study.supernet, torch.randn(4, 1, 12, 12)
    arch, slot = relaxed(supernet.space)
    with pytest.raises(ValueError, match=f"relaxed: {slot}.gates; got: none"):
        supernet(arch, x)
    with pytest.raises(ValueError, match=r"relaxed: none; got: stages.0.blocks.0.gates"):
        supernet(supernet.space.largest, x, gates={slot: torch.ones(2)})
    with pytest.raises(ValueError, match="choose one branch before extracting"):
        supernet.extract(arch, Stats({}, 0))


@pytest.mark.parametrize("kind", [MaskedSGD, MaskedAdam])
def test_rule_6_what_a_step_did_not_use_does_not_move(study, kind):
    supernet, task = study.supernet, tiny.task()
    train(supernet, task, sandwich.pick, Schedule(((2, 0.5),), decay=0.1))  # every weight has seen a gradient
    optimiser = kind(dict(supernet.union.named_parameters()), momentum=0.9, decay=0.1)
    for name, moment in optimiser.moments.items():
        moment.uniform_(generator=torch.Generator().manual_seed(len(name)))
    arch = supernet.space.smallest
    before, moments = weights(supernet), {name: m.clone() for name, m in optimiser.moments.items()}
    used = supernet.where(arch)
    for step in range(3):
        raw, labels = task.batch(step)
        task.loss(supernet(arch, *task.inputs(raw, supernet.space.example(arch))), labels).backward()
        optimiser.step(0.1, [used])
    moved = 0
    for name, now in weights(supernet).items():
        mask = torch.zeros_like(now, dtype=torch.bool)
        if name in used:
            mask[used[name][1] or ...] = True
            moved += int(not torch.equal(now[mask], before[name][mask]))
        assert torch.equal(now[~mask], before[name][~mask]), name
        for buffer in (buffer for buffer in moments if buffer.partition("/")[0] == name):
            assert torch.equal(optimiser.moments[buffer][~mask], moments[buffer][~mask]), buffer
    assert moved == len(used)
    assert any(name not in used for name in before), "a branch that no path ran"


def test_rule_7_files_hold_contiguous_clones(tmp_path: Path):
    full = torch.arange(24.0).reshape(4, 6)
    parts = {"part": full[:2, 1:4], "turned": full.T, "full": full}
    write_tensors(tmp_path / "t.safetensors", parts, {"k": "v"})
    again, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"k": "v"}
    assert all(torch.equal(again[name], parts[name]) for name in parts)
    assert [f.name for f in tmp_path.iterdir()] == ["t.safetensors"]


def test_rule_7_tied_weights_keep_both_names(tmp_path: Path):
    space, arch = tiny.pair(Tied(4), Tied(3))
    supernet = Supernet(space)
    assert set(supernet.view(arch)) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    save_supernet(supernet, tmp_path, {})
    with safe_open(tmp_path / "supernet.safetensors", "pt") as reader:
        assert set(reader.keys()) == set(supernet.view(arch))
    x = torch.randn(2, 3)
    part = supernet.union.first.weight[:3, :3], supernet.union.first.bias[:3]
    expected = nn.functional.linear(nn.functional.linear(x, *part), *part)
    assert torch.equal(supernet(arch, x), expected)
    optimiser, before = MaskedSGD(dict(supernet.union.named_parameters())), part[0].detach().clone()
    supernet(arch, x).square().sum().backward()
    grad = supernet.union.first.weight.grad[:3, :3].clone()
    optimiser.decay = 0.0
    optimiser.step(0.1, [supernet.where(arch)])
    torch.testing.assert_close(part[0], before - 0.1 * 1.9 * grad)


def test_rule_7_the_mode_of_a_cached_skeleton_is_set_by_each_call(study):
    supernet, arch, x = study.supernet, study.supernet.space.largest, torch.randn(4, 1, 12, 12)
    stats = study.calibrate(arch)
    trained, evaluated = supernet(arch, x), supernet(arch, x, stats=stats)
    assert not torch.equal(trained, evaluated)
    assert torch.equal(supernet(arch, x), trained)
    assert torch.equal(supernet(arch, x, stats=stats), evaluated)


def test_rule_7_skeletons_are_bounded_and_on_meta():
    space = tiny.space()
    supernet = Supernet(space, skeletons=3)
    for seed in range(8):
        assert all(p.is_meta for p in supernet.skeleton(space.sample(Random(seed))).parameters())
    assert len(supernet._skeletons) == 3


def test_rule_8_a_union_has_every_type_and_an_architecture_one():
    space = tiny.space()
    supernet = Supernet(space)
    nets = {True: supernet.union, False: supernet.skeleton(space.smallest)}
    for whole, net in nets.items():
        for name, slot in net.named_modules():
            if isinstance(slot, Slot):
                legal = set(space.choices[f"{name}.op"].options) - {"identity"}
                expected = legal if whole else {space.smallest[f"{name}.op"]} - {"identity"}
                assert {n for n, _ in slot.named_children()} == expected
                assert len({type(branch) for branch in slot.children()}) == len(expected)
