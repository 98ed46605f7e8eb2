"""A network grows during its training, within its limits, and a killed run continues."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hnas import recipes, spaces, tasks
from hnas.cli import train_main
from hnas.cost.flops import parameters
from hnas.growth.edits import TypeOpening, apply
from hnas.growth.loop import GrowthRules, chosen, grow, score, settle
from hnas.growth.network import GrowingNetwork
from hnas.recipes.run import RunOptions, run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.folder import load_supernet, save_supernet
from hnas.training.loop import Observer, Schedule
from tests.hnas import tiny


def study(nodes=(1, 2, 3), widths=(6, 8)) -> Study:
    task = tasks.load("series").open_task(
        None, source="lorenz", length=600, horizon=2, window=10, burn=3, batch_size=16
    )
    space = spaces.load("recurrent_cell")(**task.space_arguments, widths=list(widths), nodes=list(nodes))
    return Study(Supernet(space), task)


def schedule(steps: int) -> Schedule:
    return Schedule(((steps, 0.1),), decay=0.0, clip=1.0)


@pytest.mark.parametrize("mode", ["prune_last", "alternate"])
def test_a_cell_grows_and_one_member_is_left(mode):
    own, log, lines = study(), [], []
    before = own.accuracy(own.supernet.space.smallest)
    space = grow(own, GrowthRules(mode=mode), schedule(60), observer=Observer(on_message=lines.append), log=log)
    assert space.size == 1
    assert space.largest in own.supernet.space
    assert [proof["edit"]["edit"] for proof in log][:2] == ["open", "copy"]
    assert len(lines) == len(log) >= 3
    assert all(max(proof["train"], proof["evaluation"]) <= 1e-5 for proof in log)
    assert json.loads(json.dumps(log)) == log
    assert own.steps == 60
    assert own.accuracy(space.largest) > before


def test_a_limit_of_weights_holds():
    own = study()
    smallest = parameters(own.supernet.skeleton(own.supernet.space.smallest))
    log = []
    space = grow(own, GrowthRules(max_weights=smallest), schedule(10), log=log)
    assert log == []
    assert space.largest["nodes"] == 1
    with pytest.raises(ValueError, match="above the limit"):
        grow(study(), GrowthRules(max_weights=smallest - 1), schedule(10))


def test_a_limit_of_latency_holds():
    own, log = study(), []
    rules = GrowthRules(max_latency_ms=2.0, device="openvino-cpu")
    space = grow(own, rules, schedule(10), price=lambda arch: float(arch["nodes"]), log=log)
    assert space.largest["nodes"] == 2
    assert space.largest["width"] == 8


def test_without_a_plateau_nothing_grows():
    found = {}
    for enough in (0.0, 1.0):
        own, log = study(), []
        grow(own, GrowthRules(trigger="plateau", enough=enough, stages=3), schedule(30), log=log)
        found[enough] = [proof["stage"] for proof in log]
    assert len(found[0.0]) < len(found[1.0])
    assert 0 not in found[1.0]  # nothing is known before the first stage


def test_a_choice_of_branches_keeps_what_the_branch_adds():
    space = tiny.space()
    net = GrowingNetwork.begin(Supernet(space), space.smallest)
    with torch.no_grad():
        for parameter in net.supernet.union.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = (torch.randn(4, *space.example(net.arch)[0]),)
    slot, kind = "stages.0.blocks.0", "fusedconv"
    apply(net, TypeOpening(slot, kind), x)
    with torch.no_grad():
        net.mixing[slot].copy_(torch.tensor([{kind: 0.7}.get(k, 0.0) for k in types_of(net, slot)]))
    with torch.no_grad():
        before = net(*x)
    member = settle(net)
    assert member == chosen(net)
    assert member[f"{slot}.op"] == kind
    with torch.no_grad():
        torch.testing.assert_close(net.supernet(member, *x), before, rtol=1e-5, atol=1e-5)


def types_of(net, slot):
    return net.space.choices[f"{slot}.op"].options


def test_the_score_of_an_open_part_is_the_metric_of_its_outputs():
    own = study()
    net = GrowingNetwork.begin(own.supernet)
    raw, labels = own.task.held("search")
    with torch.no_grad():
        outputs = net(*own.task.inputs(raw, ()))
    assert score(own, net) == pytest.approx(own.task.metric(outputs, labels))


RECIPE = replace(
    recipes.load("lorenz"),
    space={"name": "recurrent_cell", "widths": [6, 8], "nodes": [1, 2, 3]},
    data={"task": "series", "source": "lorenz", "length": 600, "window": 10, "burn": 3, "horizon": 2},
    grow={"stages": 3, "finish": 0.3},
)


@pytest.mark.slow
def test_a_killed_growth_ends_with_the_same_weights(tmp_path):
    whole = run_recipe(RECIPE, None, tmp_path / "whole", RunOptions(epochs=20))

    def kill(done: int, steps: int, loss: float) -> None:
        if done == steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(RECIPE, None, tmp_path / "killed", RunOptions(epochs=20), on_step=kill)
    again = run_recipe(RECIPE, None, tmp_path / "killed", RunOptions(epochs=20, resume=True))
    assert again["growth"] == whole["growth"]
    assert again["accuracy"] == whole["accuracy"]
    first, second = (load_supernet(tmp_path / name)[0] for name in ("whole", "killed"))
    assert first.space.size == 1
    assert all(torch.equal(a, b) for a, b in zip(first.union.parameters(), second.union.parameters(), strict=True))


@pytest.mark.slow
def test_a_trained_network_grows_towards_a_budget(tmp_path, capsys):
    rules = {"stages": 1, "max_weights": 400}
    small = run_recipe(replace(RECIPE, grow=rules), None, tmp_path / "small", RunOptions(epochs=20))
    count = parameters_of(tmp_path / "small")
    out = str(tmp_path / "large")
    words = ["grow", "--supernet", str(tmp_path / "small"), "--epochs", "10", "--out", out, "--json"]
    assert train_main([*words, "--max-weights", "2000"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert count < parameters_of(tmp_path / "large") <= 2000
    assert record["growth"][0]["before"] == count
    assert record["accuracy"]["largest"] > small["accuracy"]["largest"] - 0.5


def parameters_of(folder) -> int:
    supernet, _ = load_supernet(folder)
    return parameters(supernet.skeleton(supernet.space.largest))


@pytest.mark.slow
def test_a_member_that_was_trained_alone_grows(tmp_path):
    record = run_recipe(replace(RECIPE, grow={}), None, tmp_path / "alone", RunOptions(epochs=5, alone="smallest"))
    assert "growth" not in record
    grown = RunOptions(epochs=10, grown_from=tmp_path / "alone")
    record = run_recipe(RECIPE, None, tmp_path / "grown", grown)
    assert len(record["growth"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-latency", "2ms"], "give both --target and --max-latency"),
        ([], "say how far to grow"),
        (["--max-weights", "9"], "no folder"),
        (["--target", "toaster", "--max-latency", "2ms"], "toaster"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, capsys, words, message):
    assert train_main(["grow", "--supernet", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("grow", "message"),
    [
        ({"stages": 0}, "grow.stages is 0"),
        ({"mode": "upwards"}, 'grow.mode is "upwards", expected "alternate" or "prune_last"'),
        ({"device": "openvino-cpu"}, "give .grow. both of max_latency_ms and device"),
        ({"edits": 3}, r"\[grow\] has no key 'edits'"),
    ],
)
def test_wrong_rules_are_one_line(grow, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_recipe(replace(RECIPE, grow=grow))
    assert "\n" not in str(caught.value)


def test_a_supernet_of_another_space_does_not_grow(tmp_path):
    space = spaces.load("recurrent_cell")(widths=[4], nodes=[1])
    save_supernet(Supernet(space), tmp_path / "other", {})
    with pytest.raises(ValueError, match="another space"):
        run_recipe(RECIPE, None, tmp_path / "out", RunOptions(grown_from=tmp_path / "other"))
