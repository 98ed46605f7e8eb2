"""A saved supernet loads with equal bits; one line says what is wrong with a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hnas.files import read_json, read_tensors, write_json, write_tensors
from hnas.strategies import alone, sandwich
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.folder import load_supernet, save_supernet
from hnas.training.loop import Schedule, train
from tests.hnas import tiny
from tests.hnas.training.test_training import equal, one_line


@pytest.mark.parametrize("lone", [False, True], ids=["supernet", "alone"])
def test_a_saved_supernet_loads_with_equal_bits(tmp_path, lone):
    space = tiny.space().alone(tiny.space().largest) if lone else tiny.space().without("resolution", 8)
    supernet = Supernet(space, seed=3)
    train(supernet, tiny.task(), (alone if lone else sandwich).pick, Schedule(((1, 0.1),)))
    save_supernet(supernet, tmp_path, {"steps": 1})
    again, record = load_supernet(tmp_path)
    assert equal(supernet, again)
    assert record["steps"] == 1
    assert again.space.to_json() == space.to_json()
    task = tiny.task()
    outputs = [Study(net, task).outputs(space.largest, "search")[0] for net in (supernet, again)]
    assert torch.equal(*outputs)


def spoil(folder: Path, how: str) -> None:
    file, record = folder / "supernet.safetensors", folder / "supernet.json"
    tensors, metadata = read_tensors(file)
    first = next(iter(tensors))
    if how == "truncated weights":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "no weights":
        file.unlink()
    elif how == "truncated record":
        record.write_text(record.read_text()[:-20])
    elif how == "deep record":
        record.write_text("[" * 100_000)
    elif how == "foreign record":
        record.write_text("[1]")
    elif how == "another schema":
        write_json(record, {**read_json(record), "schema": 2})
    elif how == "nan":
        tensors[first].view(-1)[0] = float("nan")
        write_tensors(file, tensors, metadata)
    elif how == "shape":
        write_tensors(file, {**tensors, first: tensors[first][:1]}, metadata)
    elif how == "missing":
        write_tensors(file, {name: t for name, t in tensors.items() if name != first}, metadata)
    elif how == "unknown":
        write_tensors(file, {**tensors, "stray": torch.zeros(1)}, metadata)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated weights", "is not a complete safetensors file"),
        ("no weights", "no file "),
        ("truncated record", "cannot be read as JSON"),
        ("deep record", "cannot be read as JSON: nested too deeply"),
        ("foreign record", "contains a JSON list, expected an object"),
        ("another schema", "is not a supernet record of schema 1"),
        ("nan", "holds NaN or infinite weights"),
        ("shape", "should be .*, found .*; it is another space's supernet"),
        ("missing", "found nothing; it is another space's supernet"),
        ("unknown", "stray is not a parameter of the space 'hybrid_vision'"),
    ],
)
def test_a_spoilt_folder_is_one_line(tmp_path, how, message):
    save_supernet(Supernet(tiny.space()), tmp_path, {})
    spoil(tmp_path, how)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_supernet(tmp_path)
    assert one_line(caught)


def test_a_folder_that_is_not_there_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="--supernet takes what hnas-train --out wrote"):
        load_supernet(tmp_path / "nowhere")
