"""Test that a size of an ONNX file can stay open, and that one that the file cannot change is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas import export
from hnas.export import backends
from hnas.export.device.dynamic import DynamicSize
from hnas.export.onnx.opening import _free_reshapes
from hnas.export.onnx.source import Original
from tests.conftest import need
from tests.export.onnx_files import convolution, images, model, save, weight

onnx = pytest.importorskip("onnx")
helper = onnx.helper

RANGE = {"x": {0: "batch=1..6"}}


@pytest.fixture(autouse=True)
def _needed() -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())  # runs the file


def flattening(shape: list[int], batch: int | str = 1) -> Any:
    """Return ReLU, a reshape to ``shape``, and a classifier on [batch, 2, 3]."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["y"]),
    ]
    sizes = onnx.numpy_helper.from_array(np.array(shape, np.int64), "shape")
    return model(nodes, {"x": [batch, 2, 3]}, {"y": [batch, 4]}, [sizes, weight("matrix", 6, 4)])


def judged(path: Path, artifact: Any, count: int) -> None:
    """Compare the artifact with the file row by row, with a batch of ``count``."""
    rows = np.random.default_rng(1).normal(size=(count, *artifact.inputs[0].shape[1:])).astype(np.float32)
    with Original(path, rows[:1]) as original:
        expected = np.concatenate([original.outputs([(row[None],)])[0][0] for row in rows])
    (got,) = export.load(artifact)(x=rows)
    noise = float(np.square(got - expected).mean() / np.square(expected).mean())
    assert noise < (1e-9 if artifact.precision == "fp32" else 1e-2)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_size_in_the_range_runs(tmp_path: Path, backend: str, batch: Any, precision: str) -> None:
    need(backend, backends.load(backend).missing())
    path = save(convolution(batch), tmp_path / "net.onnx")
    options = export.CompileOptions(dynamic=RANGE)
    more: dict[str, Any] = {"calibration": images(32)} if precision == "int8" else {}
    artifact = export.compile(
        path, device=f"{backend}-cpu", precision=precision, path=tmp_path / "a", options=options, **more
    )
    assert artifact.inputs[0].shape == (1, 3, 8, 8)
    assert DynamicSize.of(artifact) == DynamicSize("batch", 1, 6, (0,), (0,))
    assert artifact.notes["sizes"] == [1, 3, 6]
    for count in (1, 4, 6):
        judged(path, artifact, count)
    with pytest.raises(ValueError, match="the inputs have a batch of 7, the artifact takes a batch of 1 to 6"):
        export.load(artifact)(np.zeros((7, 3, 8, 8), np.float32))


@pytest.mark.parametrize("shape", [[1, -1], [1, 6], [-1, 6], [0, 6]])
def test_reshapes_to_fixed_sizes_are_freed(tmp_path: Path, shape: list[int]) -> None:
    path = save(flattening(shape), tmp_path / "net.onnx")
    options = export.CompileOptions(dynamic=RANGE)
    artifact = export.compile(path, device="onnxruntime-cpu", path=tmp_path / "a", options=options)
    judged(path, artifact, 5)
    changes = artifact.notes["source"]["changes"]
    assert ("its reshapes take any batch" in changes) == (shape[0] == 1)


def test_a_reshape_of_sizes_that_no_inference_knows_stays() -> None:
    """An unknown size is 0 in the records, and 0 in a reshape would copy the size of its input."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Reshape", ["places", "shape"], ["y"]),
        helper.make_node("Reshape", ["x", "known"], ["z"]),
    ]
    sizes = [
        onnx.numpy_helper.from_array(np.array(shape, np.int64), name)
        for name, shape in (("shape", [2, -1, 1]), ("known", [1, -1]))
    ]
    made = model(nodes, {"x": [1, 6]}, {"y": [2, "found", 1], "z": [1, 6]}, sizes)
    made.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    ends = onnx.GraphProto(input=made.graph.input, output=made.graph.output)
    assert _free_reshapes(made, ends) == 1
    assert [node.input[1] for node in made.graph.node[1:]] == ["shape", "z_open_sizes"]


def test_an_opened_batch_that_changes_the_values_a_little_is_refused(tmp_path: Path) -> None:
    """The mean over the batch moves each row by 1 %: 40 dB, far below what float32 differs from float32."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["mean", "share"], ["part"]),
        helper.make_node("Add", ["x", "part"], ["y"]),
    ]
    share = onnx.numpy_helper.from_array(np.array(0.01, np.float32), "share")
    path = save(model(nodes, {"x": [1, 3]}, {"y": [1, 3]}, [share]), tmp_path / "net.onnx")
    with (
        pytest.raises(ValueError, match="with a batch of 2 it does not compute what it does with 1"),
        Original(path, dynamic={"x": {0: "batch"}}),
    ):
        pass


def test_a_file_that_says_so_keeps_its_size_and_its_bytes(tmp_path: Path) -> None:
    path = save(flattening([-1, 6], "batch"), tmp_path / "net.onnx")
    options = export.CompileOptions(dynamic={"x": {0: "batch"}})
    artifact = export.compile(path, device="onnxruntime-cpu", path=tmp_path / "a", options=options)
    assert artifact.model.read_bytes() == path.read_bytes()
    assert artifact.notes["source"]["changes"] == []
    judged(path, artifact, 5)


def test_tensorrt_gets_a_profile(tmp_path: Path) -> None:
    path = save(convolution("N"), tmp_path / "net.onnx")
    options = export.CompileOptions(dynamic=RANGE)
    artifact = export.compile(path, device="jetson", path=tmp_path / "a", options=options)
    assert "--minShapes=x:1x3x8x8 --optShapes=x:1x3x8x8 --maxShapes=x:6x3x8x8" in artifact.notes["build"]["command"]


MIXING = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]


@pytest.mark.parametrize(
    ("made", "dynamic", "line"),
    [
        (
            flattening([1, 6], "N"),
            RANGE,
            r"^net.onnx is made for one batch: Reshape: .*; export it with a dynamic batch$",
        ),
        (
            model(MIXING, {"x": [2, 3]}, {"y": [2, 3]}),
            {"x": {0: "batch"}},
            r"^net.onnx is made for one batch: with a batch of 4 it does not compute what it does with 2; export",
        ),
        (convolution("N"), {"z": {0: "batch"}}, r"dynamic names the input 'z'; known: x"),
        (convolution("N"), {"x": {"0": "batch"}}, r"dynamic has .* for x, expected one axis below 4"),
        (convolution("N"), {"x": {0: "batch=4..2"}}, r"the range of batch is 4 to 2"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, made: Any, dynamic: Any, line: str) -> None:
    path = save(made, tmp_path / "net.onnx")
    given = np.zeros((1, 3, 8, 8), np.float32) if "z" in dynamic or "0" in dynamic.get("x", {}) else None
    options = export.CompileOptions(dynamic=dynamic)
    with pytest.raises((ValueError, export.ExportError), match=line) as caught:
        export.compile(path, given, device="onnxruntime-cpu", path=tmp_path / "a", options=options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_tflite_refuses_in_one_line(tmp_path: Path) -> None:
    need("tflite", backends.load("tflite").missing())
    path = save(convolution("N"), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="tflite takes no ONNX file"):
        export.compile(
            path, device="tflite-cpu", path=tmp_path / "a", options=export.CompileOptions(dynamic={"x": {0: "batch"}})
        )


def test_an_option_of_another_form_is_refused() -> None:
    with pytest.raises(TypeError, match="dynamic is"):
        export.CompileOptions(dynamic={"x": "batch"})
