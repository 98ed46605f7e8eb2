"""The digits as a task, and the table of the architectures that were trained on them."""

from __future__ import annotations

import builtins
import itertools
import json
from collections import Counter

import pytest
import torch

from hnas.cost.flops import macs, parameters
from hnas.spaces import tabular_digits as tabular
from hnas.strategies import alone
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule, train

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install 'hnas[papers]'")

from hnas.benchmarks.papers import digits_table, lone_table
from hnas.tasks.classification import PackageMissing
from hnas.tasks.digits import SIZES
from hnas.tasks.digits import open_task as digits


@pytest.fixture(scope="module")
def task():
    return digits(batch_size=32)


# --- the task ---------------------------------------------------------------------------------------------------------


def test_every_image_is_in_exactly_one_split(task):
    assert {split: len(data) for split, data in task.splits.items()} == SIZES
    assert sum(SIZES.values()) == 1797
    seen = Counter(image.tobytes() for data in task.splits.values() for image in data.images)
    from sklearn.datasets import load_digits

    assert len(seen) == len({image.tobytes() for image in load_digits().images})
    assert all(set(data.labels) == set(range(10)) for data in task.splits.values())


def test_the_splits_are_the_same_every_time_and_known_by_their_digests(task):
    assert digits(seed=3).to_json() == task.to_json()
    assert task.to_json()["digests"]["test"].startswith("a007d124f066")


def test_a_batch_depends_on_the_step_and_the_seed_alone(task):
    images, labels = task.batch(5)
    again, same = digits(batch_size=32).batch(5)
    assert (images == again).all()
    assert torch.equal(labels, same)
    assert not torch.equal(labels, digits(batch_size=32, seed=1).batch(5)[1])
    assert images.shape == (32, 8, 8, 1)


def test_inputs_are_normalised_and_of_the_size_that_is_asked_for(task):
    raw, _ = task.held("test")
    (x,) = task.inputs(raw, [(1, 8, 8)])
    assert x.shape == (500, 1, 8, 8)
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05
    assert task.inputs(raw[:2], [(1, 12, 12)])[0].shape == (2, 1, 12, 12)


def test_a_network_learns_them(task):
    lone = tabular.tabular_digits().alone(tabular.arch_of(["conv3"] * 4))
    study = Study(Supernet(lone, 0), digits(batch_size=64, smoothing=0.0))
    train(study.supernet, study.task, alone.pick, Schedule(((40, 0.4),)))
    assert study.accuracy(lone.largest, "test") > 0.5


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name="sklearn")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        PackageMissing, match=r"^scikit-learn is not installed; pip install 'hnas\[papers\]'$"
    ) as caught:
        digits()
    assert caught.value.code == 3


# --- the command that makes the table ---------------------------------------------------------------------------------


def command(folder, *more):
    return [
        *("--out", str(folder / "table.json"), "--parts", str(folder / "parts"), "--jobs", "1"),
        *("--sample", "2", "--seeds", "2", "--steps", "2", "--device", "none", *more),
    ]


def test_the_command_writes_a_table_and_repeats_no_training(tmp_path, monkeypatch, capsys):
    assert digits_table.main(command(tmp_path)) == 0
    text = (tmp_path / "table.json").read_text()
    rows = tabular.read_table(tmp_path / "table.json")
    assert len(rows) == 2
    space = tabular.tabular_digits()
    for arch, row in rows.items():
        assert arch in space
        assert len(row.test) == len(row.search) == 2
        assert row.accuracy == pytest.approx(sum(row.test) / 2)
        assert row.latency_ms is None
    record = json.loads(text)
    assert record["training"]["steps"] == 2
    assert record["noise"].keys() == {"spread", "seed", "ratio", "ceiling"}

    (tmp_path / "table.json").unlink()
    monkeypatch.setattr(lone_table, "train", lambda *_, **__: pytest.fail("trained again"))
    assert digits_table.main(command(tmp_path)) == 0
    assert (tmp_path / "table.json").read_text() == text
    capsys.readouterr()


def test_a_part_is_not_taken_for_one_of_other_settings(tmp_path, monkeypatch, capsys):
    assert digits_table.main(command(tmp_path)) == 0
    trained = []
    monkeypatch.setattr(lone_table, "train", lambda *args, **_: trained.append(args))
    assert digits_table.main(command(tmp_path, "--steps", "3")) == 0
    assert len(trained) == 4
    capsys.readouterr()


def test_an_unknown_device_is_said_before_anything_is_trained(tmp_path, capsys):
    assert digits_table.main(command(tmp_path, "--device", "toaster")) == 2
    assert capsys.readouterr().err.startswith("hnas.benchmarks.papers.digits_table: no device 'toaster'")
    assert not list((tmp_path / "parts").iterdir())


@pytest.mark.slow
def test_latency_is_measured_beside_the_largest(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(lone_table, "BLOCKS", 2)
    assert digits_table.main(command(tmp_path, "--device", "onnxruntime-cpu")) == 0
    assert all(row.latency_ms > 0 for row in tabular.read_table(tmp_path / "table.json").values())
    latency = tabular.read_record(tmp_path / "table.json")["latency"]
    assert (latency["kind"], latency["threads"], latency["batch"]) == ("measured", 1, 1)
    capsys.readouterr()


def test_architectures_that_are_one_network_are_trained_once(tmp_path, monkeypatch, capsys):
    """The positions of identities do not change a network; all rows with the same other types have equal figures."""
    different = {digits_table.network_of(types) for types in itertools.product(tabular.TYPES, repeat=4)}
    assert len(different) == sum(4**k for k in range(5)) == 341
    same = [("identity", "avg3", "identity", "conv1"), ("avg3", "conv1", "identity", "identity")]
    assert len({digits_table.network_of(types) for types in same}) == 1
    space, x = tabular.tabular_digits(), torch.randn(2, 1, 8, 8)
    first, second = (Supernet(space.alone(tabular.arch_of(types)), 0) for types in same)
    assert torch.equal(first(first.space.largest, x), second(second.space.largest, x))

    monkeypatch.setattr(lone_table, "product", lambda *_, **__: iter(same))
    assert digits_table.main(command(tmp_path)) == 0
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert len({row.test for row in tabular.read_table(tmp_path / "table.json").values()}) == 1
    capsys.readouterr()


def test_the_noise_is_that_of_known_numbers():
    rows = [{"test": [a + d for d in (-0.01, 0.01, -0.01, 0.01)]} for a in (0.1, 0.4, 0.7)]
    quiet = lone_table.noise_of_table(rows)
    assert quiet["spread"] == pytest.approx(0.3)
    assert quiet["seed"] == pytest.approx(0.01 * (4 / 3) ** 0.5, abs=1e-4)
    assert quiet["ceiling"] == 1.0


# --- the shipped table ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    try:
        return tabular.read_table()
    except FileNotFoundError:
        pytest.skip("the table is not there yet; python -m hnas.benchmarks.papers.digits_table makes it")


def test_every_architecture_is_in_the_shipped_table(shipped):
    space = tabular.tabular_digits()
    assert len(shipped) == space.size == 625
    assert all(arch in space for arch in shipped)
    assert min(min(len(row.test), len(row.search)) for row in shipped.values()) >= 4


def test_the_shipped_costs_are_those_of_the_networks(shipped):
    space = tabular.tabular_digits()
    for arch in list(shipped)[::60]:
        with torch.device("meta"):
            net = space.build(arch)
        assert (parameters(net), macs(net, *space.example(arch))) == (shipped[arch].params, shipped[arch].macs)


def test_the_shipped_table_is_of_these_images_and_knows_its_order(shipped, task):
    record = tabular.read_record()
    assert record["task"]["digests"] == task.to_json()["digests"]
    assert record["space"] == tabular.tabular_digits().to_json()
    assert record["noise"]["ratio"] >= 5
    assert record["noise"] == lone_table.noise_of_table(record["archs"])


def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path):
    (tmp_path / "other.json").write_text('{"archs": [{"types": ["conv3"]}]}')
    with pytest.raises(ValueError, match=r"other.json is not a table of tabular_digits; make it again"):
        tabular.read_table(tmp_path / "other.json")
