"""Test the architecture parameters of a recipe: costs in the loss, the limit of identities, and the log."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from hnas import spaces, strategies
from hnas.cost import Cost, Price
from hnas.cost.counts import counted
from hnas.hw_profiles import Device
from hnas.journal import Journal
from hnas.recipes import load
from hnas.recipes.parts import make_space, open_task_of
from hnas.recipes.progress import Progress
from hnas.recipes.run import RunOptions, run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.recipes.searching import Measuring, SkipWatch, make_pick
from hnas.sampling.draws import keep_types, slot_types
from hnas.sampling.expected import type_costs
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas import tiny
from tests.hnas.recipes.test_run_differentiable import recipe, run

SPACE = spaces.load("tabular_digits")()
KINDS = ("identity", "conv1", "avg3", "dw5", "conv3")


def likely(*kinds: str | None) -> dict[str, nn.Parameter]:
    """Return logits that prefer one type in each slot; None: none."""
    rows = [[float(kind == each) for each in KINDS] for kind in kinds]
    return {slot: nn.Parameter(torch.tensor(row)) for slot, row in zip(SPACE.slots, rows, strict=True)}


def watched(logits: dict[str, nn.Parameter], most: int | None = None) -> list[str]:
    """Return what a watch says in four epochs of two steps."""
    said: list[str] = []
    watch = SkipWatch(Study(Supernet(SPACE), tiny.task()), logits, most, 8, 2, said.append)
    for done in range(1, 9):
        watch(done)
    return said


# --- the guard --------------------------------------------------------------------------------------------------------


def test_skip_collapse_is_said_once_with_its_epoch_and_what_to_do():
    collapsed = likely("identity", "identity", "identity", "conv3")
    (line,) = watched(collapsed)
    assert line.startswith("epoch 1: the identity is the most likely type of 3 of 4 slots (skip collapse); search for ")
    assert line.endswith("--max-skips N")
    assert watched(likely("identity", "identity", "dw5", "conv3")) == []
    (line,) = watched(likely("identity", "identity", "dw5", "conv3"), most=1)
    assert line.startswith("epoch 1: the identity is the most likely type of 2 of 4 slots, the derived network has")
    assert watched(collapsed, most=3) == []


def test_types_that_are_equally_likely_are_no_collapse():
    assert watched(likely(None, None, None, None), most=0) == []


def test_only_slots_that_offer_an_identity_are_places_for_one():
    less = keep_types(SPACE, dict.fromkeys(SPACE.slots[:3], ("conv1", "conv3")))
    study, said = Study(Supernet(less), tiny.task()), list[str]()
    logits = {slot: nn.Parameter(torch.tensor([1.0, 0.0])) for slot in less.slots[:3]}
    logits[less.slots[3]] = nn.Parameter(torch.tensor([1.0, 0, 0, 0, 0]))
    watch = SkipWatch(study, logits, None, 2, 2, said.append)
    assert watch.count_types() == {"conv1": 3, "identity": 1}
    watch(2)
    assert "1 of 1 slots" in said[0]


# --- the log ----------------------------------------------------------------------------------------------------------


def test_every_epoch_logs_the_types_of_the_most_likely_network(tmp_path):
    study = Study(Supernet(SPACE), tiny.task())
    logits = likely("identity", "conv3", None, "conv3")
    said: list[str] = []
    watch = SkipWatch(study, logits, None, 2, 1)
    study.accuracy = lambda *_: 0.5
    progress = Progress(study, 2, 1, tmp_path, said.append, watch)
    progress(1, 1.0)
    logits[SPACE.slots[2]].data[0] = 2.0
    progress(2, 1.0)
    records = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [each["types"] for each in records] == [{"conv3": 2, "identity": 1}, {"conv3": 2, "identity": 2}]
    assert [each["skips"] for each in records] == [1, 2]
    rows = list(csv.DictReader((tmp_path / "training.csv").read_text().splitlines()))
    assert [(row["types"], row["skips"]) for row in rows] == [
        ("conv3 2, identity 1", "1"),
        ("conv3 2, identity 2", "2"),
    ]
    assert "of the search images, conv3 2, identity 1, " in said[0]


def test_a_log_of_an_earlier_version_is_continued(tmp_path):
    old = {"epoch": 1.0, "step": 1, "loss": 1.0, "smallest": 0.5, "largest": 0.5, "seconds": 1.0}
    (tmp_path / "training.jsonl").write_text(json.dumps(old) + "\n")
    study = Study(Supernet(SPACE), tiny.task())
    study.accuracy = lambda *_: 0.5
    Progress(study, 2, 1, tmp_path, None, SkipWatch(study, likely(*KINDS[:4]), None, 2, 1))(2, 1.0)
    records = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert records[0] == old
    assert records[1]["skips"] == 1
    assert [row["skips"] for row in csv.DictReader((tmp_path / "training.csv").read_text().splitlines())] == ["", "1"]


def test_a_search_in_stages_logs_the_types_of_the_space_that_is_left(tmp_path):
    rest = 'restarts = [[0.5, 0.05], [0.5, 0.05]]\n[shrink]\nmethod = "pdarts"'
    file = recipe(tmp_path, "pdarts", rest=rest)
    record = run(file, tmp_path / "out", report=True)
    log = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    final = [max(own, key=lambda kind, own=own: own[kind]) for own in record["logits"].values()]
    assert log[-1]["types"] == {kind: final.count(kind) for kind in sorted(set(final))}
    assert all(sum(each["types"].values()) == 3 for each in log)


# --- identities of the derived network --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["darts", "gdas", "msgdas", "proxylessnas"])
def test_the_derived_network_has_at_most_as_many_identities_as_the_recipe_allows(strategy, tmp_path, monkeypatch):
    """The search begins with logits that have collapsed: the identity is the most likely type of every slot."""

    def collapsed(space: Space) -> dict[str, nn.Parameter]:
        return {
            s: nn.Parameter(torch.tensor([3.0 * (k == "skip_connect") for k in slot_types(space, s)]))
            for s in space.slots
        }

    monkeypatch.setattr(strategies.load(strategy), "extra", collapsed)
    file = recipe(tmp_path, strategy, rest="max_skips = 1", epochs="0.05")
    record = run(file, tmp_path / "out")
    assert [max(own, key=lambda k, own=own: own[k]) for own in record["logits"].values()] == ["skip_connect"] * 3
    assert list(record["derived"].values()).count("skip_connect") == 1


def test_a_strategy_without_a_derived_network_allows_no_identities(tmp_path):
    file = recipe(tmp_path, "spos", rest="max_skips = 1", options="{}")
    with pytest.raises(ValueError, match=r"'spos' derives no network; leave train.max_skips out"):
        decode_recipe(load(str(file)))


# --- the cost in the loss ---------------------------------------------------------------------------------------------


def table_of(file: Path, measuring: Measuring | None = None):
    """Return the table of costs that a recipe gives its strategy, and the supernet."""
    found = load(str(file))
    experiment = decode_recipe(found)
    task = open_task_of(experiment, None)
    supernet = Supernet(make_space(found, task))
    pick, _ = make_pick(experiment, supernet, task, measuring)
    return pick.keywords["latency"], supernet


@pytest.mark.parametrize(("cost", "strategy"), [("weights", "gdas"), ("macs", "proxylessnas"), ("memory", "msgdas")])
def test_a_counted_cost_needs_no_device(cost, strategy, tmp_path):
    table, supernet = table_of(recipe(tmp_path, strategy, options=f'{{ cost = "{cost}" }}'))
    count = counted(supernet.space, supernet.skeleton)[cost]
    assert table == type_costs(supernet.space, lambda arch: count(arch).value)


def test_a_window_limits_the_cost_from_both_sides(tmp_path):
    file = recipe(tmp_path, options='{ cost = "macs", limit = [0.04, 0.1], warmup = 0.0 }', epochs="0.05")
    assert decode_recipe(load(str(file))).options["limit"] == (0.04, 0.1)
    assert run(file, tmp_path / "out")["derived"]


@pytest.mark.parametrize(("limit", "window"), [("1e-9", "[0, 1e-09]"), ("[1000.0, 2000.0]", "[1000, 2000]")])
@pytest.mark.parametrize("cost", ["weights", "macs", "memory"])
def test_a_limit_that_no_network_keeps_is_one_line_before_the_search(cost, limit, window, tmp_path):
    file = recipe(tmp_path, options=f'{{ cost = "{cost}", limit = {limit} }}')
    said = rf"^train\.options\.limit: .* inside {re.escape(window)} (million )?(weights|MACs|MB);"
    with pytest.raises(ValueError, match=said):
        run(file, tmp_path / "out")


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("1e-9", r"cheapest types .*, above \[0, 1e-09\] ms; raise the limit$"),
        ("[1e3, 2e3]", r"dearest .*, below .*; lower the limit$"),
    ],
)
def test_a_limit_of_latency_that_no_network_keeps_is_one_line_before_the_search(limit, said, tmp_path):
    file = recipe(tmp_path, options=f'{{ latency = "openvino-cpu", limit = {limit} }}')
    with pytest.raises(ValueError, match=rf"^train\.options\.limit: the {said}"):
        run(file, tmp_path / "out")


def test_measured_latencies_are_those_of_whoever_measures_and_a_resumed_run_reads_them(tmp_path):
    asked: list[Arch] = []
    said: list[str] = []

    @contextmanager
    def measure(study: Study, device: Device) -> Iterator[Cost]:
        assert device.name == "openvino-cpu"

        def price(arch: Arch) -> Price:
            asked.append(arch)
            value = 1.0 + 0.1 * list(arch.values()).count("nor_conv_3x3")
            return Price(value, "ms", value, value, "measured")

        yield price

    file = recipe(tmp_path, options='{ latency = "openvino-cpu", measured = true }')
    for _ in range(2):
        with closing(Journal(tmp_path / "journal.jsonl")) as journal:
            table, _ = table_of(file, Measuring(measure, journal, said.append))
        for own in table.types.values():
            assert own == pytest.approx({**dict.fromkeys(own, 0.0), "nor_conv_3x3": 0.1})
    assert len(asked) == len(set(asked)) == 1 + 3 * 4, "each member once, though two runs asked"
    assert said[0] == "measuring the latency of 13 networks on openvino-cpu"
    predicted, _ = table_of(file)
    assert predicted.base != table.base, "steps are timed with predictions"
    with pytest.raises(ValueError, match=r"^this call of run_recipe cannot measure latencies; train with hnas-train"):
        run_recipe(load(str(file)), None, tmp_path / "out", RunOptions())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ('{ cost = "flops" }', 'train.options.cost is "flops", expected "latency" or "macs" or "memory" or "weights"'),
        ('{ cost = "macs", latency = "pixel-8" }', "names a device; give one of them"),
        ('{ cost = "latency" }', 'the cost "latency" needs a device'),
        ('{ latency = "pixel-8", measured = true }', "needs a device of this machine"),
        ("{ limit = 2.0 }", "train.options.limit limits no cost"),
        (
            '{ cost = "macs", limit = [2.0, 1.0] }',
            r"limit: the window of the cost is \[2, 1\]; give the lower end first",
        ),
        ('{ cost = "macs", limit = "low" }', r'limit is "low", expected a finite number above 0 or \[low, high\]'),
        ('{ cost = "macs", limit = [0.0, 0.0] }', r"the window of the cost is \[0, 0\]"),
        ('{ cost = "macs", limit = [1.0] }', r"limit is \[1\.0\], expected"),
    ],
)
def test_a_cost_that_cannot_be_in_the_loss_is_one_line(options, line, tmp_path):
    with pytest.raises(ValueError, match=line) as found:
        decode_recipe(load(str(recipe(tmp_path, options=options))))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ("", r"the strategy 'pdarts' drops types in stages; give \[shrink\] method = \"pdarts\", and a cycle for each"),
        (
            'restarts = [[1, 0.1]]\n[shrink]\nmethod = "pdarts"',
            r"\[shrink\] needs 3 cycles, one for each stage, and \[train\] has 2; give train\.restarts 2 cycles of",
        ),
        ('[shrink]\nevidence = "magnitude"\ndrop = 3', r"needs 2 cycles, .*; give train\.restarts 1 cycles of"),
        ('[shrink]\nmethod = "pdarts"\nkeep = []', r"needs 2 cycles, .*; give train\.restarts 1 cycles of"),
    ],
)
def test_pdarts_without_its_stages_is_one_line(rest, line, tmp_path):
    with pytest.raises(ValueError, match=line) as found:
        decode_recipe(load(str(recipe(tmp_path, "pdarts", rest=rest))))
    assert "\n" not in str(found.value)
    stages = 'restarts = [[1, 0.1]]\n[shrink]\nmethod = "pdarts"\nkeep = [0.5]'
    decode_recipe(load(str(recipe(tmp_path, "pdarts", rest=stages))))
    decode_recipe(
        load(str(recipe(tmp_path, "pdarts", rest='restarts = [[1, 0.1]]\n[shrink]\nevidence = "magnitude"\ndrop = 3')))
    )


def test_shrinking_with_one_cycle_drops_nothing_and_is_refused(tmp_path):
    rest = '[shrink]\nevidence = "magnitude"\ndrop = 3'
    with pytest.raises(ValueError, match=r"needs 2 cycles, .*\[train\] has 1; give train\.restarts 1 cycles of"):
        decode_recipe(load(str(recipe(tmp_path, rest=rest))))


def test_more_exclusive_sub_graphs_than_shrinking_may_leave_types_are_one_line(tmp_path):
    shrink = 'restarts = [[1, 0.1]]\n[shrink]\nevidence = "magnitude"\ndrop = 3\n'
    file = recipe(tmp_path, options="{ paths = 3 }", rest=shrink)
    with pytest.raises(ValueError, match=r"paths is 3, and \[shrink\] may leave fewer types in a slot; give paths = 2"):
        decode_recipe(load(str(file)))
    decode_recipe(load(str(recipe(tmp_path, options="{ paths = 3 }", rest=shrink + "keep = 3"))))
    decode_recipe(load(str(recipe(tmp_path, rest=shrink))))
