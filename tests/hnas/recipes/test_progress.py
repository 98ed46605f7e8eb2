"""The log of a training: files that are whole at any time, and event files for TensorBoard."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from hnas.recipes.progress import Progress
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas import tiny
from tests.hostile.builders import fifo, sparse


def test_the_log_is_replaced_and_never_half_written(tmp_path: Path) -> None:
    progress = Progress(Study(Supernet(tiny.space()), tiny.task()), 2, 1, tmp_path)
    progress(1, 1.0)
    files = [tmp_path / name for name in ("training.jsonl", "training.csv")]
    before = [file.read_text() for file in files]
    for file in files:
        os.link(file, file.with_name(f"{file.name}.link"))
    progress(2, 1.0)
    assert [file.with_name(f"{file.name}.link").read_text() for file in files] == before
    assert [len(file.read_text().splitlines()) for file in files] == [2, 3]


def test_epochs_that_are_repeated_after_a_kill_are_logged_once(tmp_path: Path) -> None:
    study = Study(Supernet(tiny.space()), tiny.task())
    first = Progress(study, 6, 2, tmp_path)
    for done in (1, 2, 3, 4):
        first(done, 1.0)
    (tmp_path / "training.jsonl").write_text((tmp_path / "training.jsonl").read_text() + '{"epoch": 3, "st')
    second = Progress(study, 6, 2, tmp_path)
    for done in (3, 4, 5, 6):
        second(done, 0.5)
    records = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [(each["step"], each["loss"]) for each in records] == [(2, 1.0), (4, 0.5), (6, 0.5)]
    assert [each["seconds"] for each in records] == sorted(each["seconds"] for each in records)


def test_a_log_that_is_no_log_is_refused_or_left_out(tmp_path: Path) -> None:
    study, log = Study(Supernet(tiny.space()), tiny.task()), tmp_path / "training.jsonl"
    whole = '{"epoch": 1, "step": 2, "loss": 1.0, "smallest": 0.5, "largest": 0.5, "seconds": 1.0}\n'
    for broken in ('"2"', "1e999", "[" * 100_000, "\ud800", "null"):
        log.write_bytes((whole + whole.replace("2", broken)).encode("utf-8", "surrogatepass"))
        assert [each["step"] for each in Progress(study, 6, 2, tmp_path).records] == [2]
    sparse(log)
    with pytest.raises(ValueError, match=r"training.jsonl has .* bytes, at most .* are read"):
        Progress(study, 6, 2, tmp_path)
    fifo(log)
    with pytest.raises(ValueError, match=r"training.jsonl is not a plain file"):
        Progress(study, 6, 2, tmp_path)


def test_event_files_have_the_figures_of_each_epoch(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    progress = Progress(Study(Supernet(tiny.space()), tiny.task()), 4, 2, tmp_path, tensorboard=True)
    for done in (1, 2, 3, 4):
        progress(done, 1 / done)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [record["step"] for record in progress.records] == [2, 4]
    for key in ("loss", "smallest", "largest"):
        seen = [(event.step, event.value) for event in events.Scalars(key)]
        assert seen == [(record["step"], pytest.approx(record[key])) for record in progress.records]


def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(RuntimeError, match=r"tensorboard is not installed; pip install 'hnas\[tensorboard\]'"):
        Progress(Study(Supernet(tiny.space()), tiny.task()), 2, 1, tmp_path, tensorboard=True)
