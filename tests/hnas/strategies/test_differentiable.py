"""DARTS, GDAS, P-DARTS and MSG-DAS: what a step trains, what it keeps in memory, and what a search ends in."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnas import spaces, strategies
from hnas.benchmarks.papers.saved import saved_bytes
from hnas.journal import Journal
from hnas.ops.skip import DropBlock
from hnas.sampling import draws
from hnas.sampling.derive import derive
from hnas.sampling.expected import CostTable
from hnas.shrinking.edits import Edit
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Space
from hnas.strategies import gdas, msgdas, pdarts
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, keep_for_alpha
from hnas.training import checkpoint as checkpoints
from hnas.training.checkpoint import AdamOptions
from hnas.training.loop import CheckpointOptions, Observer, Schedule, TrainingOptions, train
from hnas.training.step import SubnetPath
from tests.hnas import tiny
from tests.hnas.strategies.test_proxylessnas import KINDS, SLOT, OneHot, contest
from tests.hnas.training.test_training import equal

FAMILY = ("darts", "gdas", "msgdas", "pdarts")
CELLS = spaces.load("nasbench201")(classes=4, resolution=12, width=4, nodes=3)
EAGER = {"warmup": 0.0}


class Contest(OneHot):
    """A task in which a type with a larger weight is better; it has images for the logits."""

    splits = ("train", "alpha", "calibration")


def task(alpha: float = 0.5) -> Classification:
    return tiny.task(splits=keep_for_alpha(tiny.task().splits, alpha))


def searched(name: str, space: Space = CELLS, steps: int = 6, **options: Any) -> tuple[Supernet, dict[str, Tensor]]:
    """Train a supernet and its logits by a strategy."""
    strategy, supernet = strategies.load(name), Supernet(space)
    extra = strategy.extra(space)
    pick = partial(strategy.pick, extra=extra, **EAGER)
    train(supernet, task(), pick, Schedule(((steps, 0.05),)), extra=extra, **options)
    return supernet, extra


@pytest.fixture(autouse=True)
def _task_of_splits(monkeypatch):
    """``tiny.task`` takes splits of a test."""
    made = tiny.task

    def with_splits(**changes: Any) -> Classification:
        splits = changes.pop("splits", None)
        whole = made(**changes)
        return whole if splits is None else Classification(splits, whole.preprocessing, 16, flip=False, shift=1)

    monkeypatch.setattr(tiny, "task", with_splits)


# --- what a step trains -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_the_logits_move_towards_the_better_type_and_the_weights_stay(name):
    given = {"poor": -1.0, "fair": 0.5, "good": 2.0}
    supernet, known = contest(given), strategies.load(name)
    extra, seen = known.extra(supernet.space), Contest()
    pick = partial(known.pick, extra=extra, **EAGER)
    still = Schedule(((60, 0.0),), decay=0.0)
    train(supernet, seen, pick, still, TrainingOptions(adam=AdamOptions(0.05)), extra=extra)
    assert derive(supernet.space, extra) == Arch({f"{SLOT}.op": "good"})
    assert extra[SLOT].softmax(0)[2] > 0.6
    assert [p.item() for p in supernet.union.parameters()] == list(given.values())
    assert set(seen.asked) == {"alpha"}, "no other held-out images"


@pytest.mark.parametrize("name", FAMILY)
def test_the_logits_rest_in_the_warm_up(name):
    supernet = contest(dict.fromkeys(KINDS, 0.5))
    strategy = strategies.load(name)
    extra = strategy.extra(supernet.space)
    train(supernet, Contest(), partial(strategy.pick, extra=extra, warmup=1.0), Schedule(((6, 0.1),)), extra=extra)
    assert not extra[SLOT].any()


def test_a_teacher_without_gradients_teaches_and_is_not_trained():
    """Only the types of the sub-graphs move, though the teacher runs all of them; with guidance they move elsewhere."""
    weights = {}
    for guidance in (False, True):
        supernet = Supernet(CELLS)
        before = {name: p.detach().clone() for name, p in supernet.union.named_parameters()}
        steps: list[tuple[SubnetPath, ...]] = []

        def pick(space: Space, rng: Random, progress: float, guidance: bool = guidance, steps: Any = steps) -> Any:
            steps.append(msgdas.pick(space, rng, progress, paths=1, drop=0.0, guidance=guidance))
            return steps[-1]

        train(supernet, tiny.task(), pick, Schedule(((1, 0.1),), warmup=0.0))
        used = {name for path in steps[0] if path.trains for name in supernet.view(path.arch)}
        moved = {n for n, p in supernet.union.named_parameters() if not torch.equal(p, before[n])}
        assert moved <= used
        weights[guidance] = supernet
    assert not equal(weights[False], weights[True])


def test_the_teacher_runs_without_a_graph_and_the_sub_graphs_with_one(monkeypatch):
    """The mask of a step would hide gradients of the teacher; the memory of its graph would be paid all the same."""
    graphs: list[bool] = []
    loss = Classification.loss

    def seen(self: Classification, outputs: Tensor, *rest: Any) -> Tensor:
        graphs.append(outputs.requires_grad)
        return loss(self, outputs, *rest)

    monkeypatch.setattr(Classification, "loss", seen)
    extra = msgdas.extra(CELLS)
    pick = partial(msgdas.pick, extra=extra, paths=2, guidance=True, **EAGER)
    train(Supernet(CELLS), task(), pick, Schedule(((1, 0.1),)), extra=extra)
    assert graphs == [False, True, True, True, True], "teacher, two that train weights, two that train alpha"


@pytest.mark.parametrize("name", FAMILY)
def test_the_decay_of_adam_pulls_the_logits_to_zero(name):
    """All types put out zero, so that the loss has no gradient of its own."""
    left = {}
    for decay in (0.0, 0.1):
        supernet, strategy = contest(dict.fromkeys(KINDS, 0.0)), strategies.load(name)
        extra = strategy.extra(supernet.space)
        extra[SLOT].data = torch.tensor([1.0, -1.0, 0.5])
        adam = TrainingOptions(adam=AdamOptions(0.01, decay))
        pick = partial(strategy.pick, extra=extra, **EAGER)
        train(supernet, Contest(), pick, Schedule(((10, 0.0),), decay=0.0), adam, extra=extra)
        left[decay] = extra[SLOT].detach()
    assert left[0.0].tolist() == [1.0, -1.0, 0.5]
    assert left[0.1].tolist() == pytest.approx([0.9, -0.9, 0.4], abs=0.01), "ten steps of 0.01, towards zero"


def test_the_sub_graphs_of_a_step_are_judged_by_the_same_images_in_one_update():
    supernet, seen = contest({"poor": -1.0, "fair": 0.5, "good": 2.0}), Contest()
    extra = msgdas.extra(supernet.space)
    pick = partial(msgdas.pick, extra=extra, paths=3, **EAGER)
    train(supernet, seen, pick, Schedule(((4, 0.0),)), extra=extra)
    assert len(seen.asked) == 4, "one draw of images in a step"
    held = [images for images in seen.seen if images[0] >= 100]
    assert held == [images for images in held[::3] for _ in range(3)]


# --- memory -----------------------------------------------------------------------------------------------------------


def saved(pick: Any, space: Space) -> int:
    return saved_bytes(Supernet(space), tiny.task(), pick(space, Random(0), 0.5))


def test_several_sub_graphs_with_guidance_keep_the_activations_of_one_path():
    """A gate keeps the output of its branch for its own gradient; frozen weights need fewer inputs in return."""
    same = draws.keep_types(CELLS, dict.fromkeys(CELLS.slots, ("nor_conv_1x1", "nor_conv_3x3")))
    extra = msgdas.extra(same)
    one = saved(lambda *_: (SubnetPath(same.largest),), same)
    gated = saved(partial(gdas.pick, extra=extra, **EAGER), same)
    ours = saved(partial(msgdas.pick, extra=extra, paths=2, drop=0.0, guidance=True, **EAGER), same)
    mixture = saved(partial(strategies.load("darts").pick, extra=extra, **EAGER), same)
    assert ours == gated <= 1.15 * one
    assert mixture > 1.6 * gated


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_rate_of_drops_falls_linearly_then_from_its_start_exponentially():
    rates = [msgdas.drop_rate(k / 10, 0.2, 0.4) for k in range(10)]
    assert rates[:3] == [0.4, 0.2, 0.4]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.4 / 10
    assert msgdas.drop_rate(0.5, 1.0, 0.4) == 0.2


def test_gdas_is_one_sub_graph_without_guidance_or_drops():
    extra = gdas.extra(CELLS)
    one = gdas.pick(CELLS, Random(2), 0.5, extra)
    two = msgdas.pick(CELLS, Random(2), 0.5, extra, paths=1, drop=0.0)
    assert [(path.arch, path.split, path.drop) for path in one] == [(path.arch, path.split, path.drop) for path in two]
    assert all(torch.equal(one[1].gates[slot], two[1].gates[slot]) for slot in CELLS.slots)


def test_more_sub_graphs_than_types_and_a_drop_of_everything_are_one_line():
    line = r"^6 exclusive sub-graphs need 6 types in every slot with a choice; 'edges.0_1' has 5; give fewer paths$"
    with pytest.raises(ValueError, match=line):
        msgdas.pick(CELLS, Random(0), paths=6)
    less = draws.keep_types(CELLS, {"edges.0_2": ("none", "skip_connect"), "edges.1_2": ("none",)})
    with pytest.raises(ValueError, match=r"^3 exclusive sub-graphs need 3 types .*; 'edges\.0_2' has 2; give fewer"):
        msgdas.pick(less, Random(0), paths=3)
    assert len(msgdas.pick(less, Random(0), paths=2)) == 2, "a slot with one type is the same in all sub-graphs"
    with pytest.raises(ValueError, match=r"^the drop rate is 1\.0; it is from 0 to below 1$"):
        msgdas.pick(CELLS, Random(0), drop=1.0)


@pytest.mark.parametrize("name", [*FAMILY, "proxylessnas"])
def test_the_cost_in_the_loss_is_a_hinge_at_the_limit(name):
    strategy = strategies.load(name)
    extra = strategy.extra(CELLS)
    costs = {slot: dict(zip(draws.slot_types(CELLS, slot), range(5), strict=True)) for slot in CELLS.slots}
    table = CostTable(1.0, costs)
    for limit, wanted in ((7.5, 0.0), (3.5, 1.0), (None, 7.0)):
        step = strategy.pick(CELLS, Random(0), 0.9, extra, latency=table, limit=limit, weight=1.0)
        found = [path.penalty for path in step if path.penalty is not None]
        assert [value.item() for value in found] == [pytest.approx(wanted)], "1 + 3 slots of mean 2, once a step"


def test_the_gate_of_a_single_branch_scales_it_and_gets_its_gradient():
    supernet = Supernet(CELLS)
    kinds = dict.fromkeys(CELLS.slots, ("nor_conv_3x3",))
    arch = draws.relax(CELLS, CELLS.largest, kinds, single=True)
    x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    gates = {slot: torch.ones(1, requires_grad=True) for slot in CELLS.slots}
    outputs = supernet(arch, x, gates=gates)
    assert torch.equal(outputs, supernet(draws.relax(CELLS, CELLS.largest, kinds), x))
    outputs.square().sum().backward()
    assert all(float(gate.grad.abs()) > 0 for gate in gates.values())


# --- a whole search ---------------------------------------------------------------------------------------------------


def test_pdarts_keeps_the_most_likely_types_of_every_slot_and_starts_alpha_again(tmp_path):
    study = Study(Supernet(CELLS), task(), folder=tmp_path)
    extra, log = pdarts.extra(CELLS), list[Edit]()
    with torch.no_grad():
        for logits in extra.values():
            logits.copy_(torch.tensor([-3.0, 1.0, -2.0, 2.0, 3.0]))
    training = StageTraining([Schedule(((2, 0.05),))] * 3, partial(pdarts.pick, extra=extra), extra)
    left = pdarts.shrink(study, CELLS, training=training, log=log)
    kept = [len(left.choices[f"{slot}.op"].options) for slot in left.slots]
    assert kept == [2] * 3, "5 types, then ceil(5 * 5/8) = 4, then ceil(5 * 3/8) = 2"
    assert {edit.stage for edit in log} == {0, 1}
    first = {edit.option for edit in log if edit.stage == 0}
    assert first == {"none"}
    assert all(float(logits.detach().abs().max()) < 0.1 for logits in extra.values())
    assert study.trained == 3


def test_a_dropped_block_is_the_same_for_a_seed_and_differs_between_steps():
    drops = [msgdas.pick(CELLS, Random(seed), 0.5)[1].drop for seed in (1, 1, 2)]
    assert drops[0] == drops[1] != drops[2]
    assert isinstance(drops[0], DropBlock)


@pytest.mark.parametrize("name", ["darts", "gdas", "msgdas"])
def test_a_run_that_is_interrupted_resumes_to_the_same_weights_and_logits(name, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", -1.0)

    def die(done: int, loss: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    kept = CheckpointOptions(tmp_path / "c.safetensors")
    with pytest.raises(KeyboardInterrupt):
        searched(name, checkpoint=kept, observer=Observer(die))
    whole = searched(name)
    again = searched(name, checkpoint=CheckpointOptions(tmp_path / "c.safetensors", resume=True))
    assert equal(again[0], whole[0])
    assert all(torch.equal(again[1][slot], whole[1][slot]) for slot in CELLS.slots)
    assert any(bool(logits.any()) for logits in whole[1].values())


def test_pdarts_that_is_interrupted_in_its_second_stage_resumes_to_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", -1.0)

    def stages(folder: Path, last: int | None = None) -> tuple[Supernet, dict[str, nn.Parameter], Space]:
        """Train three stages of three steps; die after ``last`` of all steps."""
        done: list[int] = []

        def follow(*_: Any) -> None:
            done.append(1)
            if len(done) == last:
                raise KeyboardInterrupt

        folder.mkdir(exist_ok=True)
        with closing(Journal(folder / "journal.jsonl")) as journal:
            study = Study(Supernet(CELLS), task(), {}, journal, folder=folder)
            extra = pdarts.extra(CELLS)
            pick = partial(pdarts.pick, extra=extra, **EAGER)
            training = StageTraining([Schedule(((3, 0.05),))] * 3, pick, extra, Observer(follow))
            left = pdarts.shrink(study, CELLS, training=training)
        return study.supernet, extra, left

    with pytest.raises(KeyboardInterrupt):
        stages(tmp_path / "killed", 5)
    again, whole = stages(tmp_path / "killed"), stages(tmp_path / "whole")
    assert equal(again[0], whole[0])
    assert again[2].choices == whole[2].choices
    assert all(torch.equal(again[1][slot], whole[1][slot]) for slot in CELLS.slots)
    assert any(bool(logits.any()) for logits in whole[1].values())


def test_in_slots_with_skip_nothing_is_added_to_what_the_gates_weigh():
    """The identity competes: with its gate closed no input reaches the output, and with it alone nothing else."""
    space = tiny.space(types=("skip", "convnext", "mbconv"))
    slot = next(s for s in space.slots if "skip" in draws.slot_types(space, s))
    kinds = draws.slot_types(space, slot)
    supernet, seen = Supernet(space), dict[str, Tensor]()
    arch = draws.relax(space, space.largest, {slot: kinds})

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(x=inputs[0].detach(), y=output)

    handle = supernet.skeleton(arch).get_submodule(slot).register_forward_hook(keep)
    images = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    alone = torch.tensor([float(kind == "skip") for kind in kinds], requires_grad=True)
    supernet(arch, images, gates={slot: alone}).square().sum().backward()
    assert torch.equal(seen["y"], seen["x"])
    assert float(alone.grad[kinds.index("skip")].abs()) > 0, "the identity has a gradient of its own"
    supernet(arch, images, gates={slot: torch.zeros(len(kinds))})
    assert not seen["y"].any(), "with all gates closed no input passes"
    handle.remove()
    assert draws.relax(space, space.largest, {slot: ("skip",)}) in space


def test_a_task_without_images_for_the_logits_is_one_line():
    strategy, supernet = strategies.load("darts"), Supernet(CELLS)
    extra: dict[str, nn.Parameter] = strategy.extra(CELLS)
    with pytest.raises(ValueError, match=r"^the task has no images 'alpha'; known: train, calibration, search, test"):
        train(supernet, tiny.task(), partial(strategy.pick, extra=extra, **EAGER), Schedule(((2, 0.1),)), extra=extra)
