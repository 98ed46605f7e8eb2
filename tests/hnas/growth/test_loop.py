"""A network grows during its training, within its limits, and a killed run continues."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hnas import recipes, spaces, tasks
from hnas.cli import train_main
from hnas.cli.growing import _recipe_to_grow
from hnas.cost.flops import parameters
from hnas.data.images import Preprocessing
from hnas.growth.edits import TypeOpening, apply
from hnas.growth.loop import KINDS, GrowthRules, _divided, _Limits, chosen, grow, score, settle
from hnas.growth.network import GrowingNetwork
from hnas.recipes.run import RunOptions, run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.recipes.shrinking import predicted_costs
from hnas.recipes.start import read_grown
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification
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
    assert len(lines) == len(log) + 1 >= 4
    assert lines[-1] == f"the grown network has {parameters(own.supernet.skeleton(space.largest))} weights"
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
    with pytest.raises(ValueError, match=rf"above the limit: it has {smallest} weights .at most {smallest - 1}.; give"):
        grow(study(), GrowthRules(max_weights=smallest - 1), schedule(10))


def test_a_limit_of_latency_needs_a_price():
    """Without one the limit was dropped."""
    with pytest.raises(ValueError, match="give price, which predicts it"):
        grow(study(), GrowthRules(max_latency_ms=2.0, device="openvino-cpu"), schedule(10))


def test_a_limit_of_latency_holds():
    own, log = study(), []
    rules = GrowthRules(max_latency_ms=2.0, device="openvino-cpu")
    space = grow(own, rules, schedule(10), price=lambda arch: float(arch["nodes"]), log=log)
    assert space.largest["nodes"] == 2
    assert space.largest["width"] == 8


def test_a_limit_holds_for_the_member_that_is_left():
    """Planted: training makes the costly option the largest, after the edit that opened it was admitted."""
    space = tiny.space()
    net = GrowingNetwork.begin(Supernet(space), space.smallest)
    x = (torch.randn(4, *space.example(net.arch)[0]),)
    slots = ["stages.0.blocks.0", "stages.1.blocks.0"]
    first = [str(net.arch[f"{slot}.op"]) for slot in slots]
    costly = [
        next(kind for kind in types_of(net, s) if kind not in (k, "identity"))
        for s, k in zip(slots, first, strict=True)
    ]
    price = dict(zip(zip(slots, costly, strict=True), (3.0, 2.0), strict=True))  # others cost 1 ms
    rules = GrowthRules(max_latency_ms=3.0, device="openvino-cpu")
    limits = _Limits(rules, lambda arch: sum(price.get((slot, str(arch[f"{slot}.op"])), 1.0) for slot in slots))
    for slot, kind in zip(slots, costly, strict=True):
        assert apply(net, TypeOpening(slot, kind), x, accept=limits) is not None
    with torch.no_grad():
        for slot, kind in zip(slots, costly, strict=True):
            net.mixing[slot][types_of(net, slot).index(kind)] = 2.0
    assert [chosen(net)[f"{slot}.op"] for slot in slots] == costly  # 5 ms
    member = limits.choose(net)
    assert [member[f"{slot}.op"] for slot in slots] == [first[0], costly[1]]  # 3 ms
    assert settle(net, member) == member


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
LORENZ = tasks.load("series").open_task(None, source="lorenz", length=600)


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
    assert record["accuracy"]["largest"] > small["accuracy"]["largest"]


@pytest.mark.slow
def test_a_trained_supernet_grows_towards_a_latency(tmp_path, capsys):
    run_recipe(replace(RECIPE, grow={}), None, tmp_path / "net", RunOptions(epochs=5))
    supernet, _ = load_supernet(tmp_path / "net")
    cost = predicted_costs(supernet, "raspberry-pi-5")["latency_ms"]
    least, most = (cost(arch).value for arch in (supernet.space.smallest, supernet.space.largest))
    assert least < most
    words = ["grow", "--supernet", str(tmp_path / "net"), "--target", "raspberry-pi-5", "--epochs", "5", "--json"]
    limits, found = {"low": round((least + most) / 2, 5), "high": round(2 * most, 5)}, {}
    for name, limit in limits.items():
        out = tmp_path / name
        assert train_main([*words, "--max-latency", f"{limit}ms", "--out", str(out)]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["growth"]
        assert f"ms on raspberry-pi-5 (at most {limit:.4g})" in said.err
        found[name] = cost(load_supernet(out)[0].space.largest).value
    assert least < found["low"] <= limits["low"] < found["high"]
    assert train_main([*words, "--max-latency", f"{least / 2:.5f}ms", "--out", str(tmp_path / "none")]) == 2
    assert "the network to grow from is above the limit: it has 1" in capsys.readouterr().err


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


def test_the_help_of_training_names_growth(capsys):
    with pytest.raises(SystemExit):
        train_main(["--help"])
    assert "hnas-train grow --help" in " ".join(capsys.readouterr().out.split())


def test_growth_after_any_training_is_one_cycle_of_a_single_path():
    train = {**RECIPE.train, "strategy": "sandwich", "combine": "project", "restarts": [[100, 0.01]]}
    known = replace(RECIPE, train=train, grow={"stages": 1})
    found = _recipe_to_grow(known, {"max_weights": 9})
    assert found.grow == {"stages": 1, "max_weights": 9}
    made = decode_recipe(found).train
    assert (made.strategy, made.combine, made.restarts) == ("spos", "sum", ())
    assert (made.epochs, made.clip) == (500, 1.0)
    assert (made.optimiser, made.rate) == ("adam", pytest.approx(0.002))


def test_images_that_grow_keep_the_mean_and_deviation_of_the_pretrained_weights(tmp_path):
    parts = {split: tiny.data(8, k) for k, split in enumerate(("train", "calibration", "search", "test"))}
    task = Classification(parts, Preprocessing((12, 12), (12, 12), (0.5,), (0.2,)), batch_size=4)
    trained = replace(task, preprocessing=replace(task.preprocessing, mean=(0.4,), std=(0.1,)))
    save_supernet(Supernet(tiny.space()), tmp_path / "net", {"task": trained.to_json()})
    _, member, found = read_grown(tmp_path / "net", tiny.space(), task, 0)
    assert member == tiny.space().smallest
    assert found == trained


def test_the_manual_lists_the_kinds_of_edits_that_a_training_makes():
    """It listed kernels, expansions and heads too, which no training opens."""
    page = Path(__file__).parents[3] / "docs" / "methods" / "growth.md"
    table = page.read_text().partition("| kind |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(KINDS)


@pytest.mark.parametrize(
    ("steps", "stages", "finish", "divided"),
    [
        (10, 4, 0.3, [1, 1, 1, 4, 3]),
        (20, 3, 0.4, [4, 4, 4, 8]),
        (3, 10**6, 0.3, [1, 1, 1]),  # these were a million steps
        (6, 2, 1.0, [1, 1, 4]),
        (6, 2, 0.0, [2, 3, 1]),
        (1, 4, 0.3, [1]),
    ],
)
def test_the_stages_have_the_steps_of_the_schedule(steps, stages, finish, divided):
    found = _divided(schedule(steps), GrowthRules(stages=stages, finish=finish))
    assert [each.steps for each in found] == divided
    assert sum(divided) == steps
