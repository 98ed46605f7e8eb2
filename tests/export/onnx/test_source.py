"""Test ONNX files as sources: artifacts compute the same as the file, and bad files are refused in one line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hnas import export
from hnas.export import backends
from hnas.export.compiling import pipeline
from hnas.export.compiling.compiler import Compiler
from hnas.export.compiling.conversion import convert
from hnas.export.compiling.originals import capture_network
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.graph.samples import noise
from hnas.export.onnx import file as onnx_file
from hnas.export.onnx.reader import _evaluator
from hnas.export.onnx.source import UNTOUCHED, Original, describe_origin
from hnas.export.proof.verification import check
from hnas.export.remote.quiet import quiet
from hnas.export.remote.worker import Worker
from tests.conftest import LIMIT_S, need
from tests.export import nets, onnx_files
from tests.export.onnx_files import images

onnx = pytest.importorskip("onnx")
helper = onnx.helper

DEVICES = {"onnxruntime-cpu": "onnxruntime", "openvino-cpu": "openvino", "jetson": "onnxruntime"}


HERE = export.CompileOptions(compiler=SimpleNamespace(convert=convert))  # in this process


def needed(device: str) -> None:
    need(DEVICES[device], backends.load(DEVICES[device]).missing())
    need("onnxruntime", backends.load("onnxruntime").missing())  # judges the rest


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    return onnx_files.save(onnx_files.convolution(), tmp_path / "hand.onnx")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the artifact computes what the file does -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module, list[tuple[Any, ...]]]:
    """Return a file with a convolution and attention as torch writes it, its module, and samples."""
    pytest.importorskip("onnxscript")
    net, inputs = nets.build("hybrid")
    path = tmp_path_factory.mktemp("files") / "hybrid.onnx"
    with quiet():
        made = torch.onnx.export(net.eval(), inputs, dynamo=True, opset_version=20, verbose=False, external_data=False)
    assert made is not None
    made.save(str(path))
    return path, net, images(16, *inputs[0].shape[1:])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("device", ["onnxruntime-cpu", "openvino-cpu"])
def test_from_the_file_as_from_the_module(tmp_path: Path, hybrid: Any, device: str, precision: str) -> None:
    needed(device)
    path, net, calls = hybrid
    options: dict[str, Any] = {"device": device, "precision": precision, "calibration": calls}
    artifact = export.compile(path, path=tmp_path / "file", **options)
    export.compile(net, calls[0], path=tmp_path / "module", **options)
    with torch.no_grad():
        expected = [(net(torch.from_numpy(x)).numpy(),) for (x,) in calls]
    seen = []
    for name in ("file", "module"):
        with Worker(tmp_path / name) as worker:
            seen.append(check(expected, worker.outputs(calls), precision))
    assert seen[0].passed
    assert seen[0].sqnr_db > seen[1].sqnr_db - 3  # torch-level passes are for speed
    assert artifact.notes["verification"]["n"] == 16
    assert left_behind(tmp_path) == ["file", "module"]
    if precision == "int8" and device == "openvino-cpu":
        table = artifact.notes["quantisation"]
        assert isinstance(table, dict)
        assert table["model_type"] == "transformer"  # attention is seen in the model, wherever it came from


def test_bf16_is_bf16(tmp_path: Path, by_hand: Path) -> None:
    needed("openvino-cpu")
    try:
        artifact = export.compile(by_hand, device="openvino-cpu", precision="bf16", path=tmp_path / "a")
    except export.Unavailable as error:
        pytest.skip(str(error))
    assert artifact.notes["verification"]["sqnr_db"] < 90


def test_the_notes_say_where_it_came_from(tmp_path: Path, by_hand: Path) -> None:
    needed("onnxruntime-cpu")
    artifact = export.compile(str(by_hand), device="onnxruntime-cpu", path=tmp_path / "a")
    source = artifact.notes["source"]
    assert isinstance(source, dict)
    assert (source["format"], source["file"], source["opset"]) == ("onnx", "hand.onnx", {"ai.onnx": 17})
    assert (source["producer"], source["changes"], source["passes"]) == ("by hand", [], UNTOUCHED)
    assert artifact.notes["passes"] == []
    assert (
        artifact.files["model.onnx"] == source["sha256"]
    )  # nothing had to be changed, so the bytes are the file's own
    assert "torch" not in artifact.versions
    assert [tensor.name for tensor in (*artifact.inputs, *artifact.outputs)] == ["x", "y"]
    said = f"made from hand.onnx (ONNX opset 17, by by hand); {UNTOUCHED}"
    assert describe_origin(source) == said
    assert said in export.layers(artifact, runs=1).findings
    assert describe_origin(None) == ""


def test_batches_are_split_and_examples_may_be_given(tmp_path: Path, by_hand: Path) -> None:
    needed("onnxruntime-cpu")
    (batch,) = zip(*images(16), strict=True)
    options: dict[str, Any] = {"precision": "int8", "calibration": [torch.from_numpy(np.concatenate(batch))]}
    artifact = export.compile(by_hand, images(1)[0], device="onnxruntime-cpu", path=tmp_path / "a", **options)
    assert artifact.notes["verification"]["n"] == 16


def test_no_torch_is_needed(tmp_path: Path, by_hand: Path) -> None:
    needed("onnxruntime-cpu")
    np.save(tmp_path / "x.npy", np.concatenate([x for (x,) in images()]))
    code = (
        "import sys, numpy; from hnas import export; x = numpy.load('x.npy'); sys.modules['torch'] = None\n"
        "export.compile('hand.onnx', device='onnxruntime-cpu', precision='int8', calibration=[x], path='a')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Artifact.read(tmp_path / "a").precision == "int8"


def test_one_reading_serves_many(tmp_path: Path, by_hand: Path) -> None:
    needed("onnxruntime-cpu")
    with Original(by_hand) as original:
        by_hand.unlink()  # everything is read
        for precision in ("fp32", "int8"):
            made: dict[str, Any] = {"precision": precision, "calibration": images(), "path": tmp_path / precision}
            export.compile(original, device="onnxruntime-cpu", **made)
        found = pipeline.verify(original, Artifact.read(tmp_path / "fp32"), images())
        assert found.passed
        assert found.n == 16


def test_a_compiler_of_its_own_writes_the_same_bytes_and_says_the_same(tmp_path: Path, by_hand: Path) -> None:
    needed("onnxruntime-cpu")
    lacking = onnx_files.model([helper.make_node("Det", ["x"], ["y"])], {"x": [1, 3, 3]}, {"y": [1]})
    onnx_files.save(lacking, tmp_path / "det.onnx")
    options: dict[str, Any] = {"device": "onnxruntime-cpu", "precision": "int8", "calibration": images()}
    here = export.compile(by_hand, path=tmp_path / "here", **options)
    with Compiler(timeout=LIMIT_S) as compiler:
        elsewhere = export.CompileOptions(compiler=compiler)
        there = export.compile(by_hand, path=tmp_path / "there", options=elsewhere, **options)
        if backends.load("openvino").missing() is None:
            for chosen in (export.CompileOptions(), elsewhere):
                with pytest.raises(
                    ExportError,
                    match=r"^openvino refuses Det-17 in node y of det.onnx: it has no such operator; supported by onnx",
                ):
                    export.compile(tmp_path / "det.onnx", device="openvino-cpu", path=tmp_path / "a", options=chosen)
    assert here.digest == there.digest


def test_an_operator_inside_a_branch_has_a_place(tmp_path: Path) -> None:
    needed("openvino-cpu")
    value = helper.make_tensor_value_info
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["x"], [name], name=f"the_{name}")], name, [], [value(name, 1, sizes)]
        )
        for name, kind, sizes in (("then", "Det", [1]), ("else", "ReduceSum", None))
    }
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["flag"], to=9),
        helper.make_node("If", ["flag"], ["y"], **branches),
    ]
    made = onnx_files.model(nodes, {"x": [1, 3, 3]}, {"y": [1]})
    path = onnx_files.save(made, tmp_path / "branch.onnx")
    with pytest.raises(ExportError, match=r"^openvino refuses Det-17 in node the_then of branch.onnx: "):
        export.compile(path, device="openvino-cpu", path=tmp_path / "a")


def test_an_artifact_of_another_file_does_not_pass(
    tmp_path: Path, by_hand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed("onnxruntime-cpu")
    other = onnx_files.save(onnx_files.convolution(fill=9.0), tmp_path / "other.onnx")
    monkeypatch.setattr(onnx_file, "write_onnx", lambda _program, path, *_, **__: shutil.copyfile(other, path))
    with pytest.raises(
        ExportError, match=r"^onnxruntime does not compute what hand.onnx does: fp32 fails on 5 samples"
    ):
        export.compile(by_hand, device="onnxruntime-cpu", path=tmp_path / "a", options=HERE)
    assert left_behind(tmp_path) == ["hand.onnx", "other.onnx"]


def test_a_file_that_ends_in_a_decision_is_judged_as_a_classifier(tmp_path: Path) -> None:
    """The agreement is judged; for other files the largest value of the output is no answer."""
    needed("onnxruntime-cpu")
    path = onnx_files.save(onnx_files.convolution(extra="Softmax"), tmp_path / "softmax.onnx")
    artifact = export.compile(path, device="onnxruntime-cpu", path=tmp_path / "a", options=HERE)
    assert artifact.notes["verification"]["agreement"] == 1.0
    for operators, decides in ((("LogSoftmax", "Identity"), True), (("Softmax", "Relu"), False)):
        path = onnx_files.save(onnx_files.chain(*operators), tmp_path / "chain.onnx")
        with capture_network(path, None, "onnxruntime") as captured:
            assert captured.classifies == decides


def test_a_hidden_nan_is_named_where_int8_fails_of_it(tmp_path: Path) -> None:
    """The file returns numbers, because it replaces NaN by zero; but NaN has no range."""
    needed("onnxruntime-cpu")
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["a"]),
        helper.make_node("Log", ["a"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "matrix"], ["b"]),
        helper.make_node("IsNaN", ["b"], ["bad"]),
        helper.make_node("Where", ["bad", "zero", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "matrix"], ["y"]),
    ]
    weights = [onnx_files.weight("matrix", 4, 4), onnx.numpy_helper.from_array(np.zeros(4, np.float32), "zero")]
    made = onnx_files.model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, weights)
    path = onnx_files.save(made, tmp_path / "nan.onnx")
    options: dict[str, Any] = {"precision": "int8", "calibration": images(8, 4), "path": tmp_path / "a"}
    with pytest.raises(ExportError, match=r"int8 fails on 8 samples: .*; hidden within nan.onnx is NaN"):
        export.compile(path, device="onnxruntime-cpu", **options)


def test_where_onnxruntime_is_not_installed_onnx_itself_judges(by_hand: Path) -> None:
    run, by = _evaluator(by_hand, ["y"])
    assert "reference evaluator" in by
    (x,) = images(1)[0]
    (y,) = run({"x": x})
    assert np.asarray(y).shape == (1, 4)


# --- devices --------------------------------------------------------------------------------------------------------


def test_what_a_device_cannot_run_is_named(tmp_path: Path) -> None:
    needed("jetson")
    path = onnx_files.save(onnx_files.chain("Det", sizes=(1, 3, 3)), tmp_path / "det.onnx")
    made = onnx.load(path)
    del made.graph.output[0].type.tensor_type.shape.dim[1:]
    onnx_files.save(made, path)
    with pytest.raises(ExportError, match=r"^TensorRT has no Det; choose a net without it$"):
        export.compile(path, device="jetson", path=tmp_path / "a")
    onnx_files.save(onnx_files.convolution(extra="com.microsoft:QuickGelu", domains=("com.microsoft",)), path)
    with pytest.raises(ExportError, match=r"^TensorRT has no com.microsoft.QuickGelu; choose a net without it$"):
        export.compile(path, device="jetson", path=tmp_path / "a")


def test_fp16_between_the_ends(tmp_path: Path, by_hand: Path) -> None:
    needed("jetson")
    artifact = export.compile(by_hand, device="jetson", precision="fp16", path=tmp_path / "a")
    graph = onnx.load(artifact.model).graph
    assert {weight.data_type for weight in graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert [tensor.dtype for tensor in (*artifact.inputs, *artifact.outputs)] == ["float32", "float32"]
    onnx_files.save(onnx_files.convolution(fill=1e6), by_hand)
    why = "all 2 layers overflow, or lose more than 40 dB (Conv_0: its values overflow fp16)"
    told = f"fp16 cannot hold this network: {why}; choose fp32"
    with pytest.raises(ExportError, match=f"^{re.escape(told)}$"):
        export.compile(by_hand, device="jetson", precision="fp16", path=tmp_path / "a")


def test_a_newer_opset_than_a_device_reads_is_taken_down(tmp_path: Path, hybrid: Any) -> None:
    needed("jetson")
    artifact = export.compile(hybrid[0], device="jetson", path=tmp_path / "a")
    assert onnx_file.read_opset(artifact.model) == 17
    build = artifact.notes["build"]
    assert isinstance(build, dict)
    assert build["opset"] == 17


def test_noise_is_like_the_examples() -> None:
    words = np.array([3, 4])
    floats = np.random.default_rng(0).normal(5.0, 2.0, 1000).astype(np.float32)
    first, second = noise((words, floats), 1)
    assert first is words
    assert second.dtype == np.float32
    assert abs(second.mean() - 5.0) < 0.3
    assert abs(second.std() - 2.0) < 0.3
    assert noise((np.float32(4.0)[None],), 2)[0].shape == (1,)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with quiet():
        yield
