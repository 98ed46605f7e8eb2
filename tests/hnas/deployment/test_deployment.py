"""A deployment: its result, the content of its folder, resuming, and predicted latencies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hnas
from hnas import export
from hnas.cli import deploy_main
from hnas.deployment import bundle as bundles
from hnas.deployment import flow, folder, search
from hnas.deployment.options import SearchOptions
from hnas.deployment.plan import resolve
from hnas.deployment.reporting import write_report
from hnas.deployment.source import open_source
from hnas.export.bundle.bundle import read_bundle
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from tests.conftest import LIMIT_S
from tests.hnas import photos

ROOT = Path(__file__).resolve().parents[3]
EVALUATIONS = 6
pytestmark = pytest.mark.slow  # each deploys once or twice


@pytest.fixture
def options(trained: Path) -> dict[str, Any]:
    return {
        "target": "onnxruntime-cpu",
        "precision": "fp32",
        "budget": f"{EVALUATIONS}evals",
        "supernet": trained / "trained",
        "data": trained / "photos",
        "out": "run",
    }


def records(found: hnas.Deployment) -> dict[str, Any]:
    """All that two equal runs have in common: everything but clocks, what they say about noise, and folders."""
    said = found.to_json()
    said["notes"] = [note for note in said["notes"] if not note.startswith("latency of ")]
    for row in said["rows"]:
        row.pop("latency_ms", None)
        row.pop("speedup", None)
    return {key: value for key, value in said.items() if key not in ("bundle", "footnote")}


def searched(run: Path) -> dict[str, object]:
    """Return the entries of a run's journal that belong to its search."""
    return {k: v for k, v in photos.journal(run).items() if k.startswith(("cost/", "accuracy/"))}


# --- as a library -----------------------------------------------------------------------------------------------------


def test_deploy_returns_the_records_of_its_table_and_the_bundle(quick, options):
    stages: list[tuple[str, int, int]] = []
    found = hnas.deploy(**{**options, "precision": "auto"}, on=lambda *stage: stages.append(stage))
    assert isinstance(found, hnas.Deployment)
    assert [row.built.artifact.precision for row in found.result.rows] == ["fp32", "int8"]
    assert found.result.kept.verdict == "kept"
    assert found.result.arch in [candidate.arch for candidate in found.result.front]
    manifest = found.bundle.manifest
    assert found.bundle == read_bundle("run/bundle")
    assert manifest.arch == found.result.arch.to_json()
    assert manifest.precision == found.result.kept.built.artifact.precision
    assert manifest.labels == photos.CLASSES
    assert (manifest.latency.kind, manifest.latency.threads, manifest.latency.batch) == ("measured", 1, 1)
    assert manifest.speedup is not None
    assert manifest.speedup.kind == "measured"
    assert manifest.accuracy is not None
    assert manifest.accuracy.artifact == found.result.kept.built.accuracy["test"]
    assert manifest.data is not None
    assert sorted(manifest.data.digests) == ["calibration", "search", "test"]
    assert found.to_json() == json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert list(dict.fromkeys(stage.split()[0] for stage, *_ in stages)) == ["search", "build", "measure", "bundle"]
    assert ("search", EVALUATIONS, EVALUATIONS) in stages
    assert all(done <= total for _, done, total in stages)


def test_a_bundle_stands_alone(quick, options, tmp_path):
    hnas.deploy(**options)
    moved = tmp_path / "elsewhere"
    shutil.copytree("run/bundle", moved)
    shutil.rmtree("run")
    bundle = read_bundle(moved)
    baseline = bundle.baseline()
    assert baseline is not None
    assert baseline.precision == "fp32"
    assert bundle.artifact().digest != baseline.digest


def test_bounds_hold_for_the_artifact_that_is_kept(quick, options):
    free = hnas.deploy(**options)
    files = [free.result.baseline.built.artifact.size_bytes, free.result.kept.built.artifact.size_bytes]
    bound = sum(files) // 2
    found = hnas.deploy(**{**options, "out": "small"}, max_size=f"{bound}B")
    assert found.result.kept.built.artifact.size_bytes <= bound
    # Just above the smallest file of all, which the search's weights alone would never tell.
    tight = hnas.deploy(**{**options, "out": "tight"}, max_size=f"{min(files)}B")
    assert tight.result.kept.built.artifact.size_bytes <= min(files)


def test_the_reason_that_no_artifact_is_kept_is_said_and_nothing_stays(quick, options, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise ExportError("the worker died")

    monkeypatch.setattr(flow, "build_precision", broken)
    with pytest.raises(ExportError, match="the worker died"):
        hnas.deploy(**options)
    assert searched(quick / "run")  # that can be continued
    assert not (quick / "run" / "bundle").exists()


# --- to be continued --------------------------------------------------------------------------------------------------

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from pathlib import Path
from hnas.deployment import flow, search
from tests.hnas import photos

class Waiting(photos.Clockless):
    def __call__(self, arch):
        journal = Path("run/journal.jsonl")
        while journal.exists() and journal.read_bytes().count(b"\\n") >= {lines}:
            signal.pause()  # until the signal that ends the process
        return super().__call__(arch)

search.MeasuredLatency = Waiting
flow.PROCESSES, flow.BLOCKS = 1, 2
from hnas.cli import deploy_main
sys.exit(deploy_main(sys.argv[1:]))
"""


def begin(options: dict[str, Any], lines: int) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal starts it. It waits after ``lines`` of its journal."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(lines=lines), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_run_continues_to_what_an_uninterrupted_one_finds(quick, options):
    process = begin(options, 5)
    wait_for(Path("run/journal.jsonl"), 5, process)
    process.kill()
    process.communicate()
    assert not Path("run/bundle").exists()
    with Path("run/journal.jsonl").open("ab") as stream:
        stream.write(b'["cost/latency_ms/0123456789ab", {"val')  # the kill may cut a line
    before = searched(quick / "run")
    assert 0 < len(before) < 3 * EVALUATIONS
    continued = hnas.deploy(**options, resume=True)
    whole = hnas.deploy(**{**options, "out": "whole"})
    assert records(continued) == records(whole)
    assert searched(quick / "run") == searched(quick / "whole")
    assert list(searched(quick / "run"))[: len(before)] == list(before)
    assert continued.bundle.artifact().digest == whole.bundle.artifact().digest


def test_control_c_is_one_line_and_leaves_what_can_be_continued(quick, options):
    process = begin(options, 4)
    wait_for(Path("run/journal.jsonl"), 4, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (130, "")
    lines = [line for line in err.splitlines() if not re.fullmatch(r"\[.*\]", line)]  # stages
    assert lines == ["hnas-deploy: interrupted; the same command with --resume continues"]
    assert sorted(path.name for path in Path("run").iterdir()) == ["journal.jsonl", "plan.json"]
    assert hnas.deploy(**options, resume=True).result.kept.verdict == "kept"


def test_a_finished_run_answers_again_without_doing_anything_again(quick, options, monkeypatch):
    found = hnas.deploy(**options)
    write_report(found).write_text("as it was")
    monkeypatch.setattr(export, "compile", pytest.fail)
    monkeypatch.setattr(flow, "compare_many", pytest.fail)
    again = hnas.deploy(**options, resume=True)
    assert again.to_json() == found.to_json()
    assert again.bundle == found.bundle
    assert write_report(again).read_text() == "as it was"


def test_a_run_that_was_killed_while_building_builds_the_rest(quick, options, monkeypatch):
    monkeypatch.setattr(bundles, "write_bundle", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        hnas.deploy(**options)
    monkeypatch.undo()
    monkeypatch.chdir(quick)
    folders = sorted(Path("run/artifacts").glob("*/fp32"))
    assert len(folders) == 2
    digests = [Artifact.read(folder).digest for folder in folders]
    shutil.rmtree(folders[0])
    monkeypatch.setattr(search, "MeasuredLatency", photos.Clockless)
    found = hnas.deploy(**options, resume=True)
    assert [Artifact.read(folder).digest for folder in folders] == digests
    assert found.result.kept.verdict == "kept"


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_bundle_that_was_changed_is_not_reported_as_the_result(quick, options):
    hnas.deploy(**options)
    with Path("run/bundle/README.md").open("a") as stream:
        stream.write("faster!")
    with pytest.raises(ValueError, match=r"README\.md"):
        hnas.deploy(**options, resume=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed"),
        ({"budget": "7evals"}, "evaluations"),
        ({"precision": "int8"}, "precision, precisions"),
        ({"max_latency": "5ms"}, "max_latency_ms"),
        ({"target": "openvino-cpu"}, "device"),
    ],
)
def test_a_run_of_other_options_is_not_continued(quick, options, change: dict[str, Any], says: str):
    Path("run").mkdir()
    plan = resolve(SearchOptions(**options))
    source = open_source(plan.supernet, plan.data)
    Path("run/plan.json").write_text(json.dumps(folder.run_identity(plan, source)))
    with pytest.raises(ValueError, match=f"run holds a run with other {says}; choose another --out"):
        hnas.deploy(**{**options, **change}, resume=True)


def test_a_run_of_other_weights_or_images_is_not_continued_and_a_moved_one_is(quick, options, trained):
    hnas.deploy(**options)
    shutil.copytree(trained / "photos", "photos")
    shutil.copytree(trained / "trained", "trained")
    moved = {**options, "data": "photos", "supernet": "trained"}
    assert hnas.deploy(**moved, resume=True).bundle.path == Path("run/bundle")
    for file in sorted(Path("photos/dot").iterdir()):
        shutil.copy(next(Path("photos/bar").glob(f"*{file.suffix}")), file)
    with pytest.raises(ValueError, match="run holds a run with other data; choose another --out"):
        hnas.deploy(**moved, resume=True)
    shutil.copy("trained/supernet.safetensors", "copy")
    from safetensors.torch import load_file, save_file

    tensors = load_file("copy")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, "trained/supernet.safetensors")
    with pytest.raises(ValueError, match="run holds a run with other supernet; choose another --out"):
        hnas.deploy(**{**options, "supernet": "trained"}, resume=True)


def test_nothing_to_resume_is_refused(quick, options):
    with pytest.raises(FileNotFoundError, match="run holds no run to continue; leave out --resume"):
        hnas.deploy(**options, resume=True)
    assert photos.tree(quick) == set()


def test_runs_are_numbered_where_no_folder_is_named(quick, options):
    del options["out"]
    first, second = (hnas.deploy(**options, seed=seed).bundle.path for seed in (0, 1))
    assert (first, second) == (Path("runs/onnxruntime-cpu/bundle"), Path("runs/onnxruntime-cpu-2/bundle"))
    assert hnas.deploy(**options, seed=1, resume=True).bundle.path == second


# --- a device that is not here ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "expected"), [(None, "fp16"), ("int8", "int8"), ("fp32", "fp32")])
def test_what_is_predicted_says_so_everywhere(quick, options, capsys, precision: str | None, expected: str):
    words = [
        word
        for name, value in options.items()
        if name not in ("target", "precision")
        for word in (f"--{name}", str(value))
    ]
    code = deploy_main(["--target", "jetson", *words, *(("--precision", precision) if precision else ())])
    out, err = capsys.readouterr()
    assert code == 0
    assert [line for line in err.splitlines() if not re.fullmatch(r"\[.*\]", line)] == []
    assert "not run on a device here" in out
    assert "latency predicted from the profile" in out
    manifest = read_bundle("run/bundle").manifest
    assert (manifest.target, manifest.backend, manifest.precision) == ("jetson-orin-nano", "tensorrt", expected)
    assert (manifest.latency.kind, manifest.latency.n) == ("predicted", 0)
    assert manifest.latency.low < manifest.latency.value < manifest.latency.high
    assert manifest.speedup is not None
    assert manifest.speedup.kind == "predicted"
    assert manifest.build is not None
    said = json.dumps(manifest.build)
    for word in ("trtexec", "JetPack", "TensorRT", "opset"):
        assert word.lower() in said.lower(), manifest.build
    card = Path("run/bundle/README.md").read_text("utf-8")
    assert "latency, predicted" in card
    assert "latency, measured" not in card
    assert "speedup, measured" not in card


def test_a_bound_on_a_predicted_latency(quick, options):
    with pytest.raises(ExportError, match=r"the fastest takes .* ms \(asked: 1e-06\)"):
        hnas.deploy(**{**options, "target": "jetson", "precision": None}, max_latency="0.001us")
    assert not Path("run").exists()
