"""The commands of `hnas-deploy` that run on a device: without torch, with help that imports nothing heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hnas import cli, hw_profiles, report
from hnas.export import backends
from tests.benchmarks import bundles
from tests.conftest import LIMIT_S

HEAVY = ("torch", "safetensors", "pymoo", "msgspec")
PROGRAM = """
import sys
for name in {blocked}:
    sys.modules[name] = None
from hnas.cli import deploy_main
try:
    code = deploy_main(sys.argv[1:])
except SystemExit as end:
    code = end.code
for name in {unwanted}:
    assert name not in sys.modules, f"{{name}} was imported"
sys.exit(code)
"""


def deploy(*arguments: object, unwanted: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`hnas-deploy` in a new process where the search side is not installed; ``unwanted`` must not be imported."""
    code = PROGRAM.format(blocked=HEAVY, unwanted=unwanted)
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command, env=wide, capture_output=True, text=True, timeout=LIMIT_S, check=False)


# --- help and slips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_and_usage_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = deploy(*arguments, unwanted=("numpy", "rich", "PIL", "hw_profiles", "export"))
    assert done.returncode == (0 if arguments else 2), done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS) or not arguments


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.deploy_main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: hnas-deploy {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("targets", "--colour"), "unrecognized arguments: --colour"),
        (("show",), "the following arguments are required: DIR"),
        (("show", "nowhere"), "no bundle at nowhere"),
        (("run", "nowhere", "--image", "x.png"), "no bundle at nowhere"),
        (("export", "--target", "toaster", "--model", "a:b"), "no device 'toaster'"),
        (("--target", "toaster"), "no device 'toaster'"),
        (("--target", "jetson", "--power", "60W"), "no power mode '60W' of jetson-orin-nano; known: 7W, 15W (default)"),
        (("--target", "pixel-8", "--power", "15W"), "pixel-8 has no power modes"),
        (("export", "--target", "jetson", "--power", "x", "--model", "a:b"), "no power mode 'x' of jetson-orin-nano"),
        (("targts",), "no command 'targts'; did you mean targets?"),
    ],
)
def test_a_slip_is_one_line_and_exit_code_2(arguments: tuple[str, ...], reason: str) -> None:
    done = deploy(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hnas-deploy")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_what_needs_torch_says_so() -> None:
    done = deploy("export", "--target", "onnxruntime-cpu", "--model", "a:b")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "torch is not installed; pip install 'hnas[" in done.stderr


# --- targets and doctor -----------------------------------------------------------------------------------------------


def test_targets_lists_every_device() -> None:
    done = deploy("targets", "--json", unwanted=("numpy", "rich"))
    assert done.returncode == 0, done.stderr
    rows = {row["target"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(hw_profiles.names())
    assert rows["jetson-orin-nano"]["latency"] == "predicted"
    assert "jetson" in rows["jetson-orin-nano"]["aliases"]
    assert rows["jetson-orin-nano"]["power_modes"] == ["7W", "15W", "25W", "MAXN_SUPER"]
    shown = deploy("targets")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in hw_profiles.names())


def test_doctor_says_what_runs_and_what_to_install() -> None:
    done = deploy("doctor", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(backends.names())
    assert (rows["reference"]["runs"], rows["reference"]["builds"]) == (False, False)
    assert set(rows["reference"]) == {"backend", "runs", "builds", "precisions", "versions", "install"}
    shown = deploy("doctor")
    assert shown.returncode == 0, shown.stderr
    assert "pip install 'hnas[search]'" in shown.stdout  # brackets are no markup


# --- show and run -----------------------------------------------------------------------------------------------------


def test_show_prints_the_card_or_the_manifest(bundle: Path) -> None:
    done = deploy("show", bundle)
    front, _, text = (bundle / "README.md").read_text().partition("---\n\n")  # the metadata is for the Hub
    assert front.startswith("---\n")
    assert (done.returncode, done.stdout) == (0, text), done.stderr
    found = deploy("show", bundle, "--json")
    assert json.loads(found.stdout) == json.loads((bundle / "manifest.json").read_text())


def test_show_layers_runs_the_bundle_and_says_what_did_not_fuse(bundle: Path) -> None:
    done = deploy("show", bundle, "--layers", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["backend"] == "onnxruntime"
    assert found["microseconds"] > 0
    assert {"name", "kind", "role", "precision", "microseconds"} <= set(found["layers"][0])
    shown = deploy("show", bundle, "--layers")
    assert shown.returncode == 0, shown.stderr
    assert "of them kernels" in shown.stdout
    assert all(line in shown.stdout for line in map(_without_shares, found["findings"]))


def _without_shares(line: str) -> str:
    return line.split(" (", maxsplit=1)[0]  # shares differ from run to run


def test_show_refuses_a_changed_byte(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = bundles.bundle(tmp_path, "tiny", heavy=None)
    with (path / "artifact" / "model.onnx").open("r+b") as file:
        file.write(b"\xff")
    done = deploy("show", path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was changed" in done.stderr


def test_run_classifies_an_image_as_the_artifact_does(bundle: Path, photo: Path) -> None:
    done = deploy("run", bundle, "--image", photo, "--top", 10, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(row["label"] for row in found) == list("0123456789")
    odds = [row["probability"] for row in found]
    assert odds == sorted(odds, reverse=True)
    assert sum(odds) == pytest.approx(1)
    import onnxruntime as ort

    session = ort.InferenceSession(str(bundle / "artifact" / "model.onnx"), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"x": bundles.PREPROCESSING(bundles.PREPROCESSING.read(photo)[None])})
    assert [int(row["label"]) for row in found] == np.argsort(-scores[0]).tolist()
    shown = deploy("run", bundle, "--image", photo)
    assert shown.returncode == 0, shown.stderr
    assert f"{odds[0]:.1%}" in shown.stdout


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_run_refuses_a_file_that_is_no_image(bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "photo.png"
    if content is not None:
        path.write_bytes(content)
    done = deploy("run", bundle, "--image", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert str(path) in done.stderr


@pytest.mark.parametrize(("claim", "reason"), [({"input": None}, "export.load"), ({"labels": ("a",)}, "names 1 class")])
def test_run_refuses_a_bundle_that_is_no_classifier_of_images(
    tmp_path: Path, photo: Path, claim: dict[str, object], reason: str
) -> None:
    pytest.importorskip("onnxruntime")
    path = bundles.bundle(tmp_path, "tiny", heavy=None, **claim)
    done = deploy("run", path, "--image", photo)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert reason in done.stderr


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_shows_accuracy_only_where_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "subnet": "net",
        "precision": "fp32",
        "accuracy_fp32": None,
        "accuracy": None,
        "sqnr_db": 120.0,
        "grade": "as float",
        "predicted_ms": {"value": 1.0, "low": 0.5, "high": 2.0},
        "size_bytes": 1000,
        "verdict": "kept",
    }
    found = {"target": "t", "name": "n", "rows": [row], "refused": [], "notes": ["note"], "footnote": "", "bundle": "b"}
    report.print_deployment(found)
    assert "120 dB, as float" in (out := capsys.readouterr().out)
    assert "\nnote\n" in out
    assert "top-1" not in out
    report.print_deployment({**found, "rows": [{**row, "accuracy_fp32": 0.912, "accuracy": 0.905}]}, wide=True)
    out = capsys.readouterr().out
    assert "91.20%" in out
    assert "90.50%" in out
