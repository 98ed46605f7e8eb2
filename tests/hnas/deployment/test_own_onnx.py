"""`hnas-deploy export FILE.onnx`: an ONNX file becomes a verified, measured bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hnas import cli
from hnas.cost.onnx_graph import kernels
from hnas.deployment import flow
from hnas.deployment.loading import read_calibration
from hnas.deployment.own import _count_kernels, open_network
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.onnx import file as onnx_file
from hnas.export.onnx.source import UNTOUCHED
from tests.conftest import need
from tests.export import nets, onnx_files

pytest.importorskip("onnx")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`hnas-deploy` in a folder with net.onnx, open.onnx and real.npz; (exit code, standard output, standard error)."""
    need("onnxruntime", backends.load("onnxruntime").missing())
    onnx_files.save(onnx_files.convolution(), tmp_path / "net.onnx")
    onnx_files.save(onnx_files.convolution("N"), tmp_path / "open.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "real.npz", x=rng.standard_normal((60, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.deploy_main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_one_command_makes_a_verified_measured_bundle(run: Run, tmp_path: Path) -> None:
    options = ("--target", "onnxruntime-cpu", "--precision", "int8", "--calibration", "real.npz")
    code, out, err = run("export", "net.onnx", *options, "--out", "made", "--json")
    assert code == 0, err
    found = json.loads(out)
    said = f"made from net.onnx (ONNX opset 17, by by hand); {UNTOUCHED}"
    assert [(row["subnet"], row["precision"], row["verdict"]) for row in found["rows"]] == [
        ("net", "fp32", "baseline"),
        ("net", "int8", "kept"),
    ]
    assert said in found["notes"]
    assert found["rows"][1]["speedup"]["kind"] == "measured"
    manifest = read_bundle(tmp_path / "made" / "bundle").manifest
    assert manifest.source is not None
    assert (manifest.source["format"], manifest.seeds, manifest.verification.n) == ("onnx", {"inputs": 0}, 60)
    assert (
        manifest.reproduce == "hnas-deploy export --model net.onnx --target onnxruntime-cpu "
        "--calibration real.npz --precision int8"
    )
    assert "torch" not in manifest.versions
    assert said in run("show", "made/bundle")[1]
    code, out, err = run("verify", "made/bundle", "--model", "net.onnx", "--calibration", "real.npz")
    assert (code, out.count("holds on 60 samples")) == (0, 2), err
    shutil.copy(onnx_files.save(onnx_files.convolution(fill=9.0), tmp_path / "other.onnx"), "net.onnx")
    assert run("verify", "made/bundle", "--model", "net.onnx")[0] == 1
    code, _, err = run("verify", "made/bundle", "--model", "net.onnx", "--reduce")
    assert (code, err.count("\n")) == (2, 1)
    assert "--reduce cuts torch graphs, which an ONNX file has not" in err


def test_a_device_elsewhere_is_predicted(run: Run, tmp_path: Path) -> None:
    code, out, err = run("export", "--model", "open.onnx", "--input", "2x3x8x8", "--target", "jetson", "--out", "made")
    assert code == 0, err
    assert "not run on a device here" in out
    manifest = read_bundle(tmp_path / "made" / "bundle").manifest
    assert (manifest.target, manifest.precision, manifest.latency.kind) == ("jetson-orin-nano", "fp16", "predicted")
    assert manifest.input is not None
    assert manifest.input.shape == (2, 3, 8, 8)


def test_a_bundle_of_open_sizes_and_whole_numbers_is_verified(run: Run) -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    made = onnx_files.model(nodes, {"x": ["N", 4]}, {"y": ["N", 4, 3]}, [onnx_files.weight("table", 9, 3)])
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx_files.save(made, Path("words.onnx"))
    options = ("--target", "onnxruntime-cpu", "--precision", "fp32", "--input", "1x4", "--out", "made")
    code, _, err = run("export", "words.onnx", *options)
    assert code == 0, err
    code, out, err = run("verify", "made/bundle", "--model", "words.onnx")
    assert (code, out.count("holds on 32 samples")) == (0, 1), err


@pytest.mark.parametrize("name", nets.SHAPES)
def test_the_kernels_of_a_file_are_those_of_the_module(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    program = fuse(capture(*nets.build(name)))
    onnx_file.write_program(program, tmp_path / "net.onnx", *program.signature)
    counted = kernels(tmp_path / "net.onnx")
    net, inputs = nets.build(name)
    traced = _count_kernels(net, tuple(value.numpy() for value in inputs))
    assert sum(each.flops for each in counted) == sum(each.flops for each in traced)
    moved = sum(each.elements for each in traced)
    assert abs(sum(each.elements for each in counted) - moved) < 0.1 * moved


def test_a_recurrent_layer_counts_every_step(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)]
    weights = [onnx_files.weight("w", 1, 16, 3), onnx_files.weight("r", 1, 16, 4)]
    made = onnx_files.model(nodes, {"x": [5, 2, 3]}, {"y": [5, 1, 2, 4]}, weights)
    (found,) = kernels(onnx_files.save(made, tmp_path / "lstm.onnx"))
    assert found.flops == 2 * 5 * 2 * 16 * (3 + 4)


def test_an_output_is_not_the_value_that_fills_it(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    half, sizes = (numpy_helper.from_array(np.array(values), "s") for values in (np.float32([0.5]), [64, 32]))
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["filled"], value=half),
        helper.make_node("MatMul", ["x", "filled"], ["y"]),
    ]
    made = onnx_files.model(nodes, {"x": [2, 64]}, {"y": [2, 32]}, [sizes])
    (found,) = kernels(onnx_files.save(made, tmp_path / "filled.onnx"))
    assert (found.flops, found.elements) == (2 * 2 * 64 * 32, 2 * 64 + 64 * 32 + 2 * 32)


def test_arrays_come_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    file = tmp_path / "real.npz"
    np.savez(file, b=np.zeros((4, 2), np.float32), a=np.zeros((4, 3), np.float32))
    examples = (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32))
    found = read_calibration(file, examples, ("a", "b"))
    assert [[array.shape for array in sample] for sample in found] == [[(1, 3), (1, 2)]] * 4
    with pytest.raises(ValueError, match=r"holds float32\[4, 2\], float32\[4, 3\]; the network takes"):
        read_calibration(file, examples, ("first", "second"))


BAD = {
    "open sizes": (("open.onnx",), "with dynamic sizes; give example inputs that fix them (--input 1x3x224x224"),
    "other sizes": (("net.onnx", "--input", "1x3x9x9"), "net.onnx takes x float32[1, 3, 8, 8]; the example inputs are"),
    "absent": (("none.onnx",), "no ONNX file at none.onnx"),
    "no file": (("cut.onnx",), "cut.onnx is not an ONNX file, or is truncated (3 bytes)"),
    "no network": ((), "give one network: FILE.onnx or PACKAGE.MODULE:CALLABLE"),
    "two networks": (("net.onnx", "--model", "net.onnx"), "give one network"),
    "another backend": (("net.onnx", "--target", "tflite-cpu"), "tflite-cpu runs tflite, which takes no ONNX file"),
    "mixed": (("net.onnx", "--precision", "mixed"), "mixed precision chooses blocks of a torch graph"),
    "int8 of noise": (("net.onnx", "--precision", "int8"), "int8 needs real inputs; give them with --calibration"),
    "wrong images": (("net.onnx", "--calibration", "wrong.npy"), "the network takes float32[N, 3, 8, 8]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, case: str) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"cut")
    np.save(tmp_path / "wrong.npy", np.zeros((4, 3, 9, 9), np.float32))
    arguments, reason = BAD[case]
    target = () if "--target" in arguments else ("--target", "onnxruntime-cpu")
    code, out, err = run("export", *arguments, *target, "--out", "made")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert reason in err
    assert not Path("made").exists()


def test_a_file_is_open_for_as_long_as_it_is_needed(run: Run, tmp_path: Path) -> None:
    with open_network("net.onnx", None) as network:
        assert not network.editable
        assert (network.name, network.input_names, network.example[0].shape) == ("net", ("x",), (1, 3, 8, 8))
        copy = Path(network.module.source.path)
        assert copy.is_file()
    assert not copy.exists()
