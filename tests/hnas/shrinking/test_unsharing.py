"""Un-sharing: a split changes no subnet, copies train independently, and the budget holds."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch

from hnas import spaces
from hnas.sampling import draws as paths
from hnas.shrinking import loop as shrinking
from hnas.shrinking import unsharing
from hnas.shrinking.edits import Edit, replay
from hnas.space import Arch, Space
from hnas.strategies import spos
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule, train
from hnas.training.step import SubnetPath
from tests.hnas import tiny
from tests.hnas.planted import digits, noise, turned

BRANCH, CONTEXT = "blocks.2.conv3", "blocks.1.op"


def few(space: Space) -> Space:
    """Return a small part of the space."""
    return paths.keep_types(space, dict.fromkeys(space.slots, ("identity", "conv1", "conv3")))


def outputs(supernet: Supernet, archs: list[Arch]) -> list[torch.Tensor]:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return [supernet(arch, x) for arch in archs]


def members(space: Space, **chosen: str) -> list[Arch]:
    fixed = {name.replace("_", ".") + ".op": option for name, option in chosen.items()}
    return [Arch({**space.sample(Random(seed)), **fixed}) for seed in range(6)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(a, b, strict=True)]


def test_a_split_changes_no_subnet():
    supernet = turned(digits()).supernet
    archs = [arch for kind in ("dw5", "conv3", "identity") for arch in members(supernet.space, blocks_1=kind)]
    before = outputs(supernet, archs)
    supernet.split(BRANCH, CONTEXT, ("identity", "dw5", "conv3"))
    assert all(same(outputs(supernet, archs), before))


def test_a_copy_is_chosen_by_the_context_and_by_nothing_else():
    supernet = turned(digits()).supernet
    supernet.split(BRANCH, CONTEXT, ("conv3", "dw5"))
    archs = {kind: members(supernet.space, blocks_1=kind, blocks_2="conv3") for kind in ("conv3", "dw5", "conv1")}
    before = {kind: outputs(supernet, found) for kind, found in archs.items()}
    noise(supernet.union.get_submodule("copies"), 1.0)
    supernet.changed()
    assert not any(same(outputs(supernet, archs["dw5"]), before["dw5"]))
    assert all(same(outputs(supernet, archs["conv3"]), before["conv3"])), "the first keeps the original"
    assert all(same(outputs(supernet, archs["conv1"]), before["conv1"])), "so do those that are not listed"


def test_copies_train_apart_and_extract():
    space = digits()
    supernet = Supernet(space)
    supernet.split(BRANCH, CONTEXT, ("conv3", "dw5"))
    arch = space.arch(dict.fromkeys(space.largest, "conv3") | {"blocks.1.op": "dw5"})
    train(supernet, tiny.task(), lambda *_: (SubnetPath(arch),), Schedule(((2, 0.1),)))
    first = Supernet(space)
    copied = supernet.union.get_submodule("copies").state_dict()
    assert any(name.endswith("out.weight") for name in copied)
    original, fresh = (net.union.get_submodule(BRANCH).state_dict() for net in (supernet, first))
    assert all(torch.equal(original[name], fresh[name]) for name in fresh), "the other context was not trained"
    moved = [not torch.equal(w, fresh[name.partition(".")[2]]) for name, w in copied.items() if "running" not in name]
    assert any(moved)
    study = Study(supernet, tiny.task())
    net = supernet.extract(arch, study.calibrate(arch))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(net(x), supernet(arch, x, stats=study.calibrate(arch)))


def test_the_weights_that_a_copy_began_with_are_its_parents():
    study = turned(digits())
    arch = members(study.supernet.space, blocks_1="dw5", blocks_2="conv3")[0]
    before = study.weights(arch, "initial")
    study.supernet.split(BRANCH, CONTEXT, ("conv3", "dw5"))
    assert all(torch.equal(w, before[name]) for name, w in study.weights(arch, "initial").items())
    copies = [name for name, _ in study.supernet.union.named_parameters() if name.startswith("copies.")]
    assert copies
    assert {study.supernet.origin(name) for name in copies} == {
        f"{BRANCH}.{name}" for name, _ in study.supernet.union.get_submodule(BRANCH).named_parameters()
    }


def test_a_relaxed_context_keeps_the_original():
    supernet = turned(digits()).supernet
    supernet.split(BRANCH, CONTEXT, ("conv3", "dw5"))
    arch = Arch({**supernet.space.largest, CONTEXT: ("dw5", "conv3")})
    assert not any(name.startswith("copies") for name in where_names(supernet, arch))
    plain = Arch({**supernet.space.largest, CONTEXT: "dw5"})
    assert any(name.startswith("copies") for name in where_names(supernet, plain))


def where_names(supernet: Supernet, arch: Arch) -> set[str]:
    names = {id(p): name for name, p in supernet.union.named_parameters()}
    return {names[id(p)] for p, _ in supernet.where(arch).values()}


def test_an_absent_context_keeps_the_original():
    space = tiny.space(depths=((1, 2), (2, 3)))
    supernet = Supernet(space)
    supernet.split("stages.1.blocks.0.mbconv", "stages.0.blocks.1.op", ("mbconv", "convnext"))
    shallow = next(a for a in (space.sample(Random(k)) for k in range(99)) if "stages.0.blocks.1.op" not in a)
    assert not any(name.startswith("copies") for name in where_names(supernet, shallow))


@pytest.mark.parametrize(
    ("branch", "context", "options", "message"),
    [
        ("blocks.2.conv9", CONTEXT, ("conv3", "dw5"), "it is not a branch with weights in the space 'tabular_digits'"),
        (BRANCH, "blocks.9.op", ("conv3", "dw5"), "that is not a choice of the space"),
        (BRANCH, CONTEXT, ("conv3", "dw7"), "'dw7' is not among its options identity, conv1"),
        (BRANCH, CONTEXT, ("conv3", "conv3"), "1 options give no copy; give two or more"),
        ("blocks.0.conv3", CONTEXT, ("conv3", "dw5"), "it is split already"),
        ("blocks.0", CONTEXT, ("conv3", "dw5"), "it is split already"),
    ],
)
def test_a_split_that_could_not_mean_anything_is_one_line(branch, context, options, message):
    supernet = Supernet(digits())
    supernet.split("blocks.0.conv3", CONTEXT, ("conv3", "dw5"))
    before = [name for name, _ in supernet.union.named_parameters()]
    with pytest.raises(ValueError, match=message) as caught:
        supernet.split(branch, context, options)
    assert "\n" not in str(caught.value)
    assert [name for name, _ in supernet.union.named_parameters()] == before


# --- what is split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [digits, tiny.space])
def test_the_sharing_degree_is_a_count_of_members(make):
    space = make() if make is digits else tiny.space(resolutions=(8,), widths=((8,), (16,)), kernels=(3,), heads=(1,))
    slot = space.slots[-1]
    degrees = [unsharing.sharing_degree(space, f"{slot}.op", option) for option in space.choices[f"{slot}.op"].options]
    assert all(degrees)
    drawn = [space.sample(Random(seed)) for seed in range(2000)] if make is digits else []
    for option, found in zip(space.choices[f"{slot}.op"].options, degrees, strict=True) if drawn else ():
        assert found == 125
        assert sum(a[f"{slot}.op"] == option for a in drawn) / 2000 == pytest.approx(found / space.size, abs=0.05)
    lone = space.without(f"{slot}.op", space.choices[f"{slot}.op"].options[0])
    assert sum(degrees[1:]) == sum(
        unsharing.sharing_degree(lone, f"{slot}.op", o) for o in lone.choices[f"{slot}.op"].options
    )
    absent = space.size - sum(degrees)
    assert absent == 0 if make is digits else absent > 0


def test_conflict_is_nothing_where_nothing_differs_and_more_where_contexts_pull_apart():
    study = turned(digits())
    space = study.supernet.space
    for kind in ("conv1", "dw5"):  # these contexts add nothing, so what follows sees the same input
        for p in study.supernet.union.get_submodule(f"blocks.1.{kind}.out").parameters():
            p.data.zero_()
    alike = space.without(CONTEXT, "conv3").without(CONTEXT, "avg3")
    assert unsharing.gradient_conflict(study, alike, "blocks.2.op", "conv3", CONTEXT) == pytest.approx(0.0, abs=1e-4)
    assert unsharing.gradient_conflict(study, space, "blocks.2.op", "conv3", CONTEXT) > 0.01
    assert all(p.grad is None for p in study.supernet.union.parameters())


def test_the_budget_holds_and_every_drop_pays():
    study = turned(digits())
    space = few(study.supernet.space)
    original = sum(p.numel() for p in study.supernet.union.parameters())
    assert unsharing.unshare(study, study.supernet.space, p_max=1.0) == (), "nothing has been dropped yet"
    edits = unsharing.unshare(study, space, p_max=1.0, draws=1)
    sizes = {name: p.numel() for name, p in study.supernet.union.named_parameters()}
    living = sum(sizes[name] for name in shrinking.reachable_weights(study.supernet, space))
    assert {edit.branch for edit in edits} == set(study.supernet.splits)
    assert edits
    assert living <= original < sum(sizes.values()), "copies live in the place of what was dropped"


def test_what_is_most_shared_and_torn_goes_first():
    study = turned(digits())
    space = few(study.supernet.space)
    found = unsharing.propose_splits(study, space, draws=1)
    assert [p.worth for p in found] == sorted((p.worth for p in found), reverse=True)
    assert {p.context for p in found} == {"blocks.0.op", "blocks.1.op", "blocks.2.op"}
    assert not any(p.branch.endswith("identity") for p in found)
    first = unsharing.unshare(study, space, p_max=99, draws=1)
    assert [edit.branch for edit in first] == [p.branch for p in found if p.worth > 0]
    assert all(p.branch not in study.supernet.splits for p in unsharing.propose_splits(study, space, draws=1))


def test_a_budget_of_nothing_is_one_line():
    study = turned(digits())
    with pytest.raises(
        ValueError, match="p_max=0 is not a budget; give a factor of the supernet's parameters"
    ) as caught:
        unsharing.unshare(study, study.supernet.space, p_max=0)
    assert "\n" not in str(caught.value)


def test_the_log_splits_another_supernet_alike():
    study = turned(digits())
    edits = unsharing.unshare(study, few(study.supernet.space), p_max=1.5, draws=1)
    again = [Edit.from_json(json.loads(json.dumps(edit.to_json()))) for edit in edits]
    other = Supernet(digits())
    assert replay(again, digits(), supernet=other).to_json() == digits().to_json()
    assert other.splits == study.supernet.splits
    assert [n for n, _ in other.union.named_parameters()] == [n for n, _ in study.supernet.union.named_parameters()]


def test_a_split_supernet_is_trained_resumed_and_not_mixed_up(tmp_path):
    """A replay must split before it loads a checkpoint."""

    def after(folder, split: bool) -> Study:
        study = Study(Supernet(digits()), tiny.task(), folder=folder)
        study.train(spos.pick, Schedule(((1, 0.1),)))
        if split:
            study.supernet.split(BRANCH, CONTEXT, ("conv3", "dw5"))
        study.train(spos.pick, Schedule(((2, 0.1),)))
        return study

    first = after(tmp_path, split=True).supernet.union.state_dict()
    again = after(tmp_path, split=True).supernet.union.state_dict()
    assert all(torch.equal(w, again[name]) for name, w in first.items())
    with pytest.raises(ValueError, match="holds other tensors than this space has"):
        after(tmp_path, split=False)


def test_spaces_with_cells_split_all_copies_of_an_edge_together():
    space = spaces.load("nasbench201")()
    supernet = Supernet(space)
    supernet.split("edges.1_3.nor_conv_3x3", "edges.0_1.op", ("nor_conv_3x3", "skip_connect"))
    arch = Arch({f"{slot}.op": "nor_conv_3x3" for slot in space.slots} | {"edges.0_1.op": "skip_connect"})
    copies = {name for name in where_names(supernet, arch) if name.startswith("copies.")}
    assert {supernet.origin(name).split(".")[3] for name in copies} == {"0", "1", "2"}
