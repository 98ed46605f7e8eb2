"""The benchmark of own photographs writes its folders once, trains both sides for as long, and continues."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas.benchmarks.own_images import command, folders
from hnas.recipes.run import RunOptions, run_recipe
from tests.hnas.recipes.test_run import recipe


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photographs that scikit-image could have, and the stamps of three classes."""
    rng = np.random.default_rng(0)
    data, stamps = tmp_path / "skimage" / "data", tmp_path / "stamps"
    for level, name in enumerate(("cat", "dog", "eel")):
        for file in (data / f"{name}.png", stamps / name / "1.png", stamps / name / "1_mirror.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((rng.random((60, 50, 3)) * 60 + 60 * level).astype(np.uint8)).save(file)
    (tmp_path / "skimage" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(folders, "EASY", ["cat", "dog", "eel"])
    monkeypatch.setattr(folders, "HARD", {"cat": "cat", "dog": "dog", "eel": "eel"})
    monkeypatch.setattr(folders, "IMAGES", 60)
    return stamps


def test_folders_are_the_same_every_time_and_written_once(tmp_path: Path, sources: Path) -> None:
    found = folders.write_folders(tmp_path / "a", sources)
    assert {kind: len(list(folder.rglob("*.png"))) for kind, folder in found.items()} == {"easy": 180, "hard": 180}
    first = tmp_path / "a" / "easy" / "cat" / "000.png"
    written = first.stat().st_mtime_ns
    folders.write_folders(tmp_path / "a", sources)
    folders.write_folders(tmp_path / "b", None)
    assert first.stat().st_mtime_ns == written
    assert first.read_bytes() == (tmp_path / "b" / "easy" / "cat" / "000.png").read_bytes()
    assert not (tmp_path / "b" / "hard").exists()
    with pytest.raises(ValueError, match="no photographs of cat, dog, eel for the folder hard"):
        folders.write_folders(tmp_path / "c", tmp_path / "nowhere")


def test_results_are_continued(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {**recipe().space, "channels": 3}
    small = recipe()
    small = type(small)("tiny", space, {"size": 12, "channels": 3}, small.train)
    monkeypatch.setattr("hnas.recipes.load", lambda _: small)
    out = tmp_path / "out"
    call = ["--out", str(out), "--minutes", "0.0001", "--starts", "scratch"]
    assert command.main(call) == 0
    (line,) = (out / "results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["key"] == "easy/scratch/0.0001/0"
    assert set(record["accuracy"]) == {"largest", "smallest", "plain CNN"}
    assert record["epochs"] == 0.25  # one step of four
    monkeypatch.setattr(command, "measure", None)
    monkeypatch.setenv("COLUMNS", "160")
    assert command.main(call) == 0
    assert "easy/scratch/0.0001/0" in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        run_recipe(small, out / "easy", out / "easy-scratch-0.0001-0", RunOptions())
