"""``hnas-bench check`` on real bundles: every verdict, every exit code, and no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate import accuracy, check, session
from hnas.data import images
from hnas.export.bundle.bundle import read_bundle
from hnas.export.bundle.manifest import Accuracy, Machine, Manifest, Speedup
from hnas.export.device.artifact import Artifact
from hnas.export.proof import load
from hnas.export.proof.load import Reading
from tests.benchmarks.bundles import IMAGES, PREPROCESSING, bundle, hits, network

pytest.importorskip("onnxruntime")

AWAY = replace(Machine.here(), cpu="another CPU")
PREDICTED = Speedup(3.0, 2.0, 4.0, "largest subnet, fp32", "predicted")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def good(root: Path) -> Path:
    return bundle(root, "good")


def manifest_of(path: Path) -> Manifest:
    return read_bundle(path).manifest


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


@pytest.mark.slow
def test_a_true_claim_holds_by_the_clock(good: Path, root: Path) -> None:
    """The only test that measures time: it checks the record, not the durations."""
    options = check.CheckOptions(data=root / "data", processes=2, max_time=10.0)
    doing: list[str] = []
    report = check.check_claim(good, options, lambda text, fraction: doing.append(text))
    noise, speed = report.evidence.noise, report.evidence.speed
    assert noise is not None
    assert speed is not None
    assert noise.low <= noise.value <= noise.high
    assert speed.value > 1.0
    assert 1 <= speed.processes == noise.processes <= 2
    assert report.evidence.accuracy.n in (accuracy.CHUNK, IMAGES)  # a busy machine may have no time for the rest
    assert doing[0] == "timing, process 1 of 2"
    json.dumps(report.to_json(), allow_nan=False)


def test_holds(good: Path, root: Path, steady: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "check", good, "--data", root / "data", "--junit", tmp_path / "deep" / "unit.xml")
    assert (code, err) == (0, "")
    assert "threshold  2.52x, from the claim" in out
    assert "verdict    holds (exit code 0" in out
    suite = ElementTree.parse(tmp_path / "deep" / "unit.xml").getroot()
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "2",
        "failures": "0",
        "skipped": "0",
    }
    assert [case.get("name") for case in suite.iter("testcase")] == ["speedup", "accuracy"]


def test_the_load_of_the_machine_is_stated(good: Path, steady: None, capsys: Any, monkeypatch: Any) -> None:
    readings = iter([Reading(0.0, 0.0, 0.0), Reading(10.0, 25.0, 20.0)])
    monkeypatch.setattr(load, "read_counters", lambda: next(readings))
    _, out, _ = run(capsys, "check", good)
    assert re.search(r"^load +other programs used 0\.5 of \d+ cores$", out, re.MULTILINE)


def test_fails_when_more_is_asked(good: Path, root: Path, steady: None, capsys: Any, tmp_path: Path) -> None:
    unit = tmp_path / "unit.xml"
    code, out, _ = run(capsys, "check", good, "--data", root / "data", "--min-speedup", 1e6, "--junit", unit)
    assert code == 1
    assert "threshold  1000000.00x, --min-speedup" in out
    (failure,) = ElementTree.parse(unit).getroot().iter("failure")
    assert "below 1000000.00x" in str(failure.get("message"))


def test_fails_when_the_artifact_is_less_accurate(root: Path, steady: None, capsys: Any) -> None:
    boast = Accuracy("top-1", IMAGES, "test", 0.99, 0.99, (0.98, 1.0))
    code, out, _ = run(capsys, "check", bundle(root, "boast", accuracy=boast), "--data", root / "data")
    assert code == 1
    assert "accuracy   fails" in out
    assert "speedup    holds" in out


def test_fails_when_one_image_less_is_right_than_claimed(root: Path, good: Path, steady: None, capsys: Any) -> None:
    true = manifest_of(good).accuracy
    assert true is not None
    more = (round(true.artifact * IMAGES) + 1) / IMAGES
    slight = bundle(root, "slight", accuracy=replace(true, artifact=more, interval=(0.0, 1.0)))
    code, out, _ = run(capsys, "check", slight, "--data", root / "data")
    assert code == 1
    assert "file, images, CPU and runtime are the claim's, so at most 0 may be lost" in out


def test_the_hits_are_those_of_another_count(good: Path, root: Path, steady: None, capsys: Any) -> None:
    _, out, _ = run(capsys, "check", good, "--data", root / "data", "--json")
    record = json.loads(out)
    artifact = Artifact.read(good / "artifact")
    assert record["evidence"]["accuracy"]["value"] == hits(artifact, images.load_split(root / "data", "test"))
    assert record["artifact_digest"] == artifact.digest
    assert record["evidence"]["noise"]["processes"] == 5
    assert (record["outcome"], record["exit_code"]) == ("holds", 0)


@pytest.mark.parametrize("batch", [1, 7])
def test_hits_of_any_batch(root: Path, good: Path, tmp_path: Path, batch: int) -> None:
    data = images.load_split(root / "data", "test")
    found = accuracy.find_samples(manifest_of(good), root / "data")
    assert isinstance(found, accuracy.LabelledSamples)
    artifact = network(tmp_path / "net", 4, batch=batch)
    clock = session.Clock(60.0)
    seen = accuracy.count_hits(artifact, "onnxruntime", found, IMAGES, clock, lambda doing, fraction: None)
    assert (seen.value, seen.n) == (hits(network(tmp_path / "one", 4), data), IMAGES)


def test_an_artifact_without_a_batch_is_not_counted(good: Path) -> None:
    artifact, clock = Artifact.read(good / "artifact"), session.Clock(60.0)
    found = accuracy.LabelledSamples(np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.int64), PREPROCESSING)
    for shape in ((), (0, 1, 28, 28), (2000, 1, 28, 28)):
        odd = replace(artifact, inputs=(replace(artifact.inputs[0], shape=shape),))
        seen = accuracy.count_hits(odd, "onnxruntime", found, 2, clock, lambda doing, fraction: None)
        assert (seen.value, seen.reason) == (None, "the artifact reads no batch of 1 to 1024 images")


def test_counting_stops_with_the_clock(root: Path, good: Path) -> None:
    found = accuracy.find_samples(manifest_of(good), root / "data")
    over = session.Clock(-1.0)
    artifact = Artifact.read(good / "artifact")
    seen = accuracy.count_hits(artifact, "onnxruntime", found, IMAGES, over, lambda doing, fraction: None)
    assert (seen.n, seen.planned) == (accuracy.CHUNK, IMAGES)


def test_inconclusive_on_another_cpu_unless_here(root: Path, steady: None, capsys: Any) -> None:
    away = bundle(root, "away", machine=AWAY)
    code, out, _ = run(capsys, "check", away, "--data", root / "data")
    assert code == 4
    assert "claimed on 'another CPU, " in out
    assert run(capsys, "check", away, "--data", root / "data", "--here")[0] == 0


def test_a_prediction_is_inconclusive_and_its_accuracy_still_counted(root: Path, capsys: Any) -> None:
    path = bundle(root, "jetson", backend="tensorrt", speedup=PREDICTED, target="jetson")
    code, out, err = run(capsys, "check", path, "--data", root / "data")
    assert (code, err) == (4, "")
    assert "predicted for jetson" in out
    assert "accuracy   holds" in out


def test_no_images_is_said_and_the_speed_judged(good: Path, steady: None, capsys: Any) -> None:
    code, out, _ = run(capsys, "check", good)
    assert code == 0
    assert "accuracy   not checked: the" in out
    assert "--data DIR" in out


def test_other_images_prove_nothing(good: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for stem, shape in (("images-idx3", (IMAGES, 28, 28)), ("labels-idx1", (IMAGES,))):
        images.write_idx(tmp_path / "other" / f"t10k-{stem}-ubyte.gz", np.ones(shape, np.uint8))
    assert "are not the claim's" in str(accuracy.find_samples(manifest_of(good), tmp_path / "other"))


def test_no_baseline(root: Path, steady: None, capsys: Any) -> None:
    code, out, _ = run(capsys, "check", bundle(root, "alone", heavy=None), "--data", root / "data")
    assert code == 4
    assert "no baseline" in out


def test_broken_bundles_are_one_line(root: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "check", tmp_path / "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    path = bundle(root, "broken")
    with (path / "artifact" / "model.onnx").open("ab") as file:
        file.write(b"x")
    code, out, err = run(capsys, "check", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "model.onnx" in err
    code, _, err = run(capsys, "check", path / "artifact")
    assert (code, err.count("\n")) == (2, 1)


def test_an_error_is_a_junit_file_too(root: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    unit = tmp_path / "unit.xml"
    code, _, err = run(capsys, "check", tmp_path / "nowhere", "--junit", unit)
    (error,) = ElementTree.parse(unit).getroot().iter("error")
    assert (code, error.get("type")) == (2, "exit code 2")
    assert str(error.get("message")) in err
    monkeypatch.setattr(check, "claim_of", lambda _: {}["claim"])
    code, _, err = run(capsys, "check", bundle(root, "faulty"), "--junit", unit)
    (error,) = ElementTree.parse(unit).getroot().iter("error")
    assert (code, error.get("type"), err.count("\n")) == (70, "exit code 70", 1)
    assert "internal error, please report it" in err
    # The path is a folder, so no JUnit file can be written; the line on stderr remains.
    assert run(capsys, "check", tmp_path / "nowhere", "--junit", tmp_path)[0] == 2


def test_an_artifact_that_reads_other_images_is_not_counted(good: Path, root: Path, tmp_path: Path) -> None:
    found = accuracy.find_samples(manifest_of(good), root / "data")
    for changes in ({"side": 20}, {"batch": 2, "side": 20}):
        clock, odd = session.Clock(60.0), network(tmp_path / str(changes["side"] * len(changes)), 4, **changes)
        seen = accuracy.count_hits(odd, "onnxruntime", found, IMAGES, clock, lambda doing, fraction: None)
        assert seen.value is None
        assert seen.reason == "the artifact reads [1, 20, 20], its preprocessing makes [1, 28, 28]"


@pytest.mark.parametrize("outputs", [(), ((10,),), ((2, 10),), ((1, 0),), ((1, 10, 1),)])
def test_an_artifact_without_scores_is_not_counted(good: Path, outputs: tuple[tuple[int, ...], ...]) -> None:
    artifact = Artifact.read(good / "artifact")
    found = accuracy.LabelledSamples(np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.int64), PREPROCESSING)
    odd = replace(artifact, outputs=tuple(replace(artifact.outputs[0], shape=shape) for shape in outputs))
    seen = accuracy.count_hits(odd, "onnxruntime", found, 2, session.Clock(60.0), lambda doing, fraction: None)
    assert seen.value is None
    assert "no scores [1, classes]" in seen.reason


def test_wrong_data_is_one_line(good: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "check", good, "--data", tmp_path / "nowhere")
    assert (code, err.count("\n")) == (2, 1)


def test_a_missing_runtime_is_3_and_says_how_to_install_it(good: Path, monkeypatch: Any, capsys: Any) -> None:
    from hnas.export.backends.onnxruntime import convert as onnxruntime

    monkeypatch.setattr(onnxruntime, "missing", lambda: "onnxruntime is not installed; pip install 'hnas[onnxruntime]'")
    code, _, err = run(capsys, "check", good)
    assert code == 3
    assert "pip install" in err


BLOCKED = """
import sys
sys.modules["torch"] = None
from hnas.benchmarks.cli import main
code = main(sys.argv[1:])
assert sys.modules["torch"] is None
sys.exit(code)
"""


def test_runs_without_torch(good: Path, root: Path) -> None:
    words = ["check", str(good), "--data", str(root / "data"), "--processes", "1", "--max-time", "1s", "--json"]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *words], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 4), done.stderr
    assert done.stderr == ""
    record = json.loads(done.stdout)
    assert record["evidence"]["speed"]["processes"] == 1
    assert record["evidence"]["accuracy"]["n"] >= min(accuracy.CHUNK, IMAGES)
