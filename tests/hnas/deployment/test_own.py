"""`hnas-deploy export`: a user's own network becomes a verified, measured bundle, or one line gives the reason."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hnas import cli, export
from hnas.deployment import flow, own
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle
from hnas.export.bundle.card import model_card
from tests.conftest import need

NETS = """
import torch
from torch import nn

class One(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.facts, self.scale = nn.Conv2d(3, 8, 3), nn.Linear(5, 8), torch.full((8,), 2.0)

    def forward(self, x, y):
        both = self.image(x).mean((2, 3)) + self.facts(y) * self.scale
        return both, torch.relu(both[:, :4])

instance, text = One(), "text"

def one():
    print("noise on standard output")
    return One()

def two():
    return Two(), (torch.randn(2, 3, 12, 12), torch.randn(2, 5))

def broken():
    net = One()
    net.head.weight.data[0, 0] = float("nan")
    return net

def asks(needed):
    return One()

def raises():
    raise RuntimeError("first line\\nsecond line")

def leaves():
    raise SystemExit(7)

def number():
    return 3

def words():
    return One(), ["a", "b"]

def waves():
    return One(), torch.zeros(1, 3, 12, 12, dtype=torch.complex64)
"""
IMAGE = ("--input", "1x3x12x12")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`hnas-deploy export` in a folder with the module nets.py; (exit code, standard output, standard error)."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "lacks.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("nets", "fails", "lacks"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.deploy_main(["export", *arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            sys.modules.pop("nets", None)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def images(count: int = 60, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, *(shape or (3, 12, 12)))).astype(np.float32)


# --- what it makes ----------------------------------------------------------------------------------------------------


def test_the_bundle_holds_the_network_and_its_fp32_baseline(run: Run, tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    np.save("real.npy", images())
    arguments = ("--model", "nets:one", "--target", "onnxruntime-cpu", *IMAGE, "--calibration", "real.npy")
    code, out, _ = run(*arguments, "--precision", "int8", "--out", "made", "--json")
    assert code == 0
    found = json.loads(out)  # the network's own print went elsewhere
    assert [(row["precision"], row["verdict"]) for row in found["rows"]] == [("fp32", "baseline"), ("int8", "kept")]
    assert found["rows"][1]["speedup"]["kind"] == "measured"
    assert "measured in interleaved blocks over 1 processes" in found["footnote"]
    bundle = read_bundle(tmp_path / "made" / "bundle")
    manifest = bundle.manifest
    assert (manifest.arch, manifest.space, manifest.labels, manifest.accuracy) == (None, None, (), None)
    assert manifest.input is not None
    assert (manifest.input.shape, manifest.input.preprocessing) == ((1, 3, 12, 12), None)
    assert manifest.verification.n == 60
    assert manifest.verification.agreement is None  # nobody said that the outputs are scores of classes
    assert manifest.latency.kind == "measured"
    assert manifest.speedup is not None
    assert manifest.speedup.against == own.AGAINST
    assert manifest.reproduce == f"hnas-deploy export {' '.join(arguments)} --precision int8"
    baseline = bundle.baseline()
    assert baseline is not None
    assert baseline.precision == "fp32"
    assert export.load(bundle.artifact())(images(1))[0].shape == (1, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fails.py", "lacks.py", "made", "nets.py", "real.npy"]


def test_a_file_of_the_user_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "export.py").write_text("raise RuntimeError('not ours')")
    command = "import sys; from hnas.cli import deploy_main; sys.exit(deploy_main(sys.argv[1:]))"
    options = ("--model", "mine:net", "--target", "onnxruntime-cpu", *IMAGE)
    done = subprocess.run(
        [sys.executable, "-P", "-c", command, "export", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(export.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    need("onnxruntime", backends.load("onnxruntime").missing())
    assert done.stderr == "hnas-deploy: mine has no 'net'; --model takes package.module:callable\n"
    assert done.returncode == 2


def test_auto_says_that_int8_was_left_out_without_calibration(run: Run, tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    code, out, err = run("--model", "nets:instance", "--target", "onnxruntime-cpu", *IMAGE, "--out", "made")
    assert code == 0, err
    assert "int8: no artifact: no real inputs were given; add --calibration FILE" in out
    assert "SQNR, grade" in out
    assert "top-1" not in out
    manifest = read_bundle(tmp_path / "made" / "bundle").manifest
    assert manifest.precision == "fp32"
    assert (manifest.speedup, manifest.baseline) == (None, None)  # it would be compared with itself


def test_a_device_elsewhere_is_predicted_with_several_inputs_and_outputs(run: Run, tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    pytest.importorskip("onnxscript")
    np.savez("real.npz", first=images(20), second=images(20, 5))
    common = ("--model", "nets:two", "--target", "jetson", "--calibration", "real.npz")
    code, out, err = run(*common, "--precision", "fp16", "--out", "made")
    assert code == 0, err
    assert "not run on a device here" in out
    assert "predicted" in out
    bundle = read_bundle(tmp_path / "made" / "bundle")
    manifest = bundle.manifest
    assert (manifest.target, manifest.precision, manifest.input) == ("jetson-orin-nano", "fp16", None)
    assert (manifest.latency.kind, manifest.latency.batch, manifest.latency.n) == ("predicted", 2, 0)
    assert manifest.speedup is not None
    assert manifest.speedup.kind == "predicted"
    assert manifest.build is not None
    assert len(bundle.artifact().inputs) == len(bundle.artifact().outputs) == 2


def test_a_precision_that_fails_its_verification_is_left_out_with_its_reason(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    np.save("real.npy", images())
    compiled = export.compile

    def failing(*values: object, **options: object) -> object:
        if options["precision"] == "int8":
            raise export.ExportError("int8 does not compute what One does")
        return compiled(*values, **options)

    monkeypatch.setattr(export, "compile", failing)
    common = ("--model", "nets:one", "--target", "onnxruntime-cpu", *IMAGE, "--calibration", "real.npy")
    code, out, _ = run(*common, "--out", "made")
    assert code == 0
    assert "int8: no artifact: int8 does not compute what One does" in out
    code, _, err = run(*common, "--precision", "int8", "--out", "other")
    assert code == 1
    stages = ["[build One fp32]", "[build One int8]"]
    assert err.splitlines() == ["noise on standard output", *stages, "hnas-deploy: int8 does not compute what One does"]
    assert not Path("other").exists()


def test_weights_alone_in_int8_need_no_calibration(run: Run, tmp_path: Path) -> None:
    need("openvino", backends.load("openvino").missing())
    common = ("--model", "nets:one", "--target", "openvino-cpu", *IMAGE)
    code, out, err = run(*common, "--precision", "w8", "--out", "made", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [(row["precision"], row["verdict"]) for row in found["rows"]] == [("fp32", "baseline"), ("w8", "kept")]
    notes = [note for note in found["notes"] if not note.startswith("latency of ")]  # noise, as it happens
    assert [note.partition(" holds on ")[0] for note in notes] == ["verified: w8"]
    manifest = read_bundle(tmp_path / "made" / "bundle").manifest
    assert (manifest.precision, manifest.verification.precision) == ("w8", "w8")
    code, _, err = run(*common, "--precision", "mixed", "--out", "other")
    assert code == 2
    assert "int8 needs real inputs; give them with --calibration FILE" in err


@pytest.mark.slow
def test_blocks_go_to_float_where_no_rung_makes_int8_verify(run: Run, tmp_path: Path) -> None:
    need("tflite", backends.load("tflite").missing())
    (tmp_path / "nets.py").write_text("from tests.hnas.deployment.test_mixing import Planted\n")
    np.save("real.npy", images(64, 3, 16, 16))
    common = ("--model", "nets:Planted", "--target", "tflite-cpu", "--input", "1x3x16x16", "--calibration", "real.npy")
    code, out, err = run(*common, "--precision", "int8", "--out", "made")
    assert code == 0, err
    assert "int8: no artifact: tflite does not compute what Planted does" in out
    manifest = read_bundle(tmp_path / "made" / "bundle").manifest
    assert (manifest.name, manifest.precision) == ("Planted-tflite-cpu-mixed", "int8")
    assert manifest.mixed is not None
    assert (manifest.mixed.why, manifest.mixed.outcome) == ("int8 alone does not verify", "kept")
    assert "blocks.1.second" in manifest.mixed.blocks_in_float
    assert manifest.mixed.line() in out
    assert f"- {manifest.mixed.line()}" in model_card(manifest)  # what hnas-deploy show prints


# --- what it refuses --------------------------------------------------------------------------------------------------

BAD = {
    "unknown target": (("--model", "nets:one", *IMAGE, "--target", "toaster"), "no device 'toaster'"),
    "unknown precision": (("--model", "nets:one", *IMAGE, "--precision", "int3"), "no precision 'int3'"),
    "precision not offered": (("--model", "nets:one", *IMAGE, "--precision", "fp16"), "has no fp16; offered: fp32"),
    "int8 without calibration": (("--model", "nets:one", *IMAGE, "--precision", "int8"), "--calibration FILE"),
    "no colon": (("--model", "nets", *IMAGE), "write package.module:callable"),
    "module not found": (("--model", "nowhere.nets:one", *IMAGE), "no module 'nowhere.nets'"),
    "module raises": (("--model", "fails:one", *IMAGE), "fails cannot be imported: ZeroDivisionError"),
    "module needs another": (("--model", "lacks:one", *IMAGE), "lacks needs not_installed_anywhere"),
    "callable not found": (("--model", "nets:three", *IMAGE), "nets has no 'three'"),
    "not a callable": (("--model", "nets:text", *IMAGE), "nets holds str, not a callable, as 'text'"),
    "callable with arguments": (("--model", "nets:asks", *IMAGE), "nets:asks cannot be called without arguments"),
    "callable raises": (("--model", "nets:raises", *IMAGE), "RuntimeError: first line"),
    "callable exits": (("--model", "nets:leaves", *IMAGE), "SystemExit: 7"),
    "returns a number": (("--model", "nets:number", *IMAGE), "returned int; expected an nn.Module"),
    "returns words as inputs": (("--model", "nets:words"), "returned list of str, str as example inputs"),
    "returns complex inputs": (("--model", "nets:waves"), "example inputs of complex64"),
    "missing input": (("--model", "nets:one"), "--input 1x3x224x224"),
    "unreadable shape": (("--model", "nets:one", "--input", "1x3x0x12"), "--input '1x3x0x12' is not understood"),
    "wrong shape": (("--model", "nets:one", "--input", "1x4x12x12"), "One does not take the example inputs"),
    "a size of no integer": (("--model", "nets:one", "--input", "9" * 30), "does not fit in memory"),
    "a size of no memory": (("--model", "nets:one", "--input", "1x999999999999999"), "does not fit in memory"),
    "an empty name": (("--model", ""), "an argument is empty; leave it out or give a value"),
    "too many inputs": (("--model", "nets:one", *IMAGE, *IMAGE), "One does not take the example inputs"),
    "NaN weights": (("--model", "nets:broken", *IMAGE), "parameter head.weight holds NaN"),
    "threads": (("--model", "nets:one", *IMAGE, "--threads", "0"), "threads is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, case: str) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    arguments, reason = BAD[case]
    target = () if "--target" in arguments else ("--target", "onnxruntime-cpu")
    code, out, err = run(*arguments, *target, "--out", "made")
    lines = [line for line in err.splitlines() if line != "noise on standard output"]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert reason in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fails.py", "lacks.py", "nets.py"]


@pytest.mark.parametrize("out", ["taken", "nets.py", "nets.py/below", "/proc/hnas"])
def test_an_output_that_is_taken_or_cannot_be_written_is_refused_before_any_work(
    run: Run, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    Path("taken").mkdir()
    Path("taken/file").touch()
    monkeypatch.setattr(own, "open_network", lambda *_: pytest.fail("the work had begun"))
    code, _, err = run("--model", "nets:one", "--target", "onnxruntime-cpu", *IMAGE, "--out", out)
    assert code == 2
    assert err.count("\n") == 1
    assert "choose another --out" in err


def test_a_limit_that_is_none_is_one_line(run: Run) -> None:
    code, _, err = run("--model", "nets:one", "--target", "onnxruntime-cpu", *IMAGE, "--limit", "25", "--out", "made")
    assert (code, err.count("\n")) == (2, 1)
    assert "limit is '25', expected dB, a share, or both, such as '25dB|97%'" in err
