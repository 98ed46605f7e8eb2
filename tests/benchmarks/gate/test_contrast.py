"""``hnas-bench compare`` on any two of bundle, artifact folder and bare model file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate.contrast import Contrast
from hnas.benchmarks.gate.records import Ratio
from tests.benchmarks.bundles import bundle, network

pytest.importorskip("onnxruntime")

QUICK = ("--processes", "1", "--max-time", "1s")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contrast")


@pytest.fixture(scope="module")
def nets(root: Path) -> tuple[Path, Path]:
    return network(root / "one", 4, seed=1).path, network(root / "two", 4, seed=2).path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, words), *QUICK])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_an_artifact_equals_itself(nets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, nets[0], nets[0], "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["difference"]["max_error"] == 0.0
    assert record["ratio"]["low"] <= record["ratio"]["value"] <= record["ratio"]["high"]
    assert len(record["ratio"]["rounds"]) == 1
    assert record["a"]["median_ms"] > 0


def test_a_bundle_against_a_folder(steady: None, root: Path, nets: tuple[Path, Path], capsys: Any) -> None:
    code, out, _ = run(capsys, bundle(root, "bundle"), nets[1])
    assert code == 0
    assert re.search(r"^verdict +(b is faster|b is slower|no difference seen): speedup of b ", out, re.MULTILINE)
    assert "max error" in out


def test_a_bare_file_takes_the_inputs_of_the_other(steady: None, nets: tuple[Path, Path], capsys: Any) -> None:
    code, out, _ = run(capsys, nets[0], nets[0] / "model.onnx", "--json")
    assert code == 0
    assert json.loads(out)["difference"]["max_error"] == 0.0


def test_two_bare_files_need_a_shape(steady: None, nets: tuple[Path, Path], capsys: Any) -> None:
    files = nets[0] / "model.onnx", nets[1] / "model.onnx"
    code, _, err = run(capsys, *files)
    assert code == 2
    assert "--input-shape" in err
    assert run(capsys, *files, "--input-shape", "1x1x28x28")[0] == 0


def test_a_shape_that_does_not_fit_is_one_line(nets: tuple[Path, Path], capsys: Any) -> None:
    code, _, err = run(capsys, *nets, "--input-shape", "1x3x8x8")
    assert code in (1, 2)
    assert err.count("\n") == 1


def test_other_batches_cannot_be_compared(nets: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, nets[0], network(tmp_path / "pair", 4, batch=2).path)
    assert code == 2
    assert "1x1x28x28 float32" in err
    assert "2x1x28x28 float32" in err


def test_nets_of_other_sizes_are_timed_each_on_its_own(nets: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, nets[0], network(tmp_path / "small", 4, side=20).path)
    assert code == 0
    assert "1x1x20x20 float32" in out


def test_nothing_there_is_one_line(tmp_path: Path, nets: tuple[Path, Path], capsys: Any) -> None:
    code, _, err = run(capsys, nets[0], tmp_path / "nowhere")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.904, 1.034, "no difference seen"), (1.01, 1.2, "b is faster"), (0.8, 0.99, "b is slower")],
)
def test_the_interval_decides_what_is_said(low: float, high: float, says: str) -> None:
    ratio = Ratio((low * high) ** 0.5, low, high, 0.95, (((1.0, 1.0),),), 1)
    found = Contrast(None, None, ratio, None, 0, 1.0)  # the sides are not used
    assert found.line().startswith(f"{says}: speedup of b ")
    assert says.endswith(found.outcome)
