"""Test ONNX files that other exporters write: open sizes, old opsets, functions, shared weights, integers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas import export
from hnas.export.remote.quiet import quiet
from hnas.export.remote.worker import Worker
from tests.export import onnx_files
from tests.export.onnx.test_source import DEVICES, needed
from tests.export.onnx_files import images

onnx = pytest.importorskip("onnx")
helper = onnx.helper


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with quiet():
        yield


def test_open_sizes_are_fixed_by_examples(tmp_path: Path) -> None:
    needed("openvino-cpu")
    path = onnx_files.save(onnx_files.convolution("N"), tmp_path / "open.onnx")
    with pytest.raises(
        ValueError, match=r"^open.onnx takes x float32\[N, 3, 8, 8\], with dynamic sizes; give example inputs"
    ):
        export.compile(path, path=tmp_path / "a")
    artifact = export.compile(path, np.zeros((2, 3, 8, 8), np.float32), path=tmp_path / "a")
    assert (artifact.inputs[0].shape, artifact.outputs[0].shape) == ((2, 3, 8, 8), (2, 4))
    assert artifact.notes["source"]["changes"] == [
        "x has the fixed sizes [2, 3, 8, 8]",
        "y has the fixed sizes [2, 4]",
    ]


def test_weights_beside_the_file_are_taken_into_the_artifact(tmp_path: Path) -> None:
    needed("onnxruntime-cpu")
    (tmp_path / "in").mkdir()
    path = onnx_files.save(onnx_files.convolution(), tmp_path / "in" / "split.onnx", "split.bin")
    artifact = export.compile(path, device="onnxruntime-cpu", path=tmp_path / "a")
    shutil.rmtree(tmp_path / "in")
    with Worker(artifact.path) as worker:
        assert worker(*images(1)[0])[0].shape == (1, 4)
    source = artifact.notes["source"]
    assert isinstance(source, dict)
    assert source["changes"] == ["its weights are in the file"]
    assert list(source["weights"]) == ["split.bin"]


@pytest.mark.parametrize("device", DEVICES)
def test_an_old_file_whose_weights_are_inputs(tmp_path: Path, device: str) -> None:
    """Opset 9 and IR version 3, as exporters of 2018 wrote them: int8 converts the file to a newer opset."""
    needed(device)
    made = onnx_files.convolution(opset=9, ir=3)
    values = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in made.graph.initializer]
    made.graph.input.extend(values)
    path = onnx_files.save(made, tmp_path / "old.onnx")
    artifact = export.compile(path, device=device, precision="int8", calibration=images(), path=tmp_path / "a")
    assert [tensor.name for tensor in artifact.inputs] == ["x"]
    assert artifact.notes["verification"]["sqnr_db"] > 30


def test_functions_of_the_file_are_written_out(tmp_path: Path) -> None:
    needed("openvino-cpu")
    made = onnx_files.convolution(extra="own:Twice", domains=("own",))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    made.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    path = onnx_files.save(made, tmp_path / "functions.onnx")
    artifact = export.compile(path, device="openvino-cpu", precision="int8", calibration=images(), path=tmp_path / "a")
    assert artifact.notes["source"]["changes"] == ["its functions are inlined"]


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    """The product of two activations stays float; the product with weights becomes int8."""
    needed("onnxruntime-cpu")
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["q"]),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "q"], ["y"]),
    ]
    made = onnx_files.model(nodes, {"x": [1, 6, 8]}, {"y": [1, 6, 8]}, [onnx_files.weight("matrix", 8, 8)])
    path = onnx_files.save(made, tmp_path / "attention.onnx")
    calls = images(16, 6, 8)
    artifact = export.compile(path, device="onnxruntime-cpu", precision="int8", calibration=calls, path=tmp_path / "a")
    graph = onnx.load(artifact.model).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    products = [[makers[name] for name in node.input] for node in graph.node if node.op_type == "MatMul"]
    assert products[0] == ["DequantizeLinear", "DequantizeLinear"]
    assert products[2][0] == "Softmax"


def test_integers_are_inputs_as_well(tmp_path: Path) -> None:
    needed("onnxruntime-cpu")
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    made = onnx_files.model(nodes, {"x": [1, 4]}, {"y": [1, 4, 8]}, [onnx_files.weight("table", 10, 8)])
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    path = onnx_files.save(made, tmp_path / "words.onnx")
    artifact = export.compile(path, np.array([[1, 5, 9, 2]]), device="onnxruntime-cpu", path=tmp_path / "a")
    assert artifact.inputs[0].dtype == "int64"


def test_a_weight_that_two_layers_share_opens_in_int8(tmp_path: Path) -> None:
    """ONNX Runtime does not open a shared int8 weight on an x86 CPU without VNNI, so every layer has its own copy."""
    needed("onnxruntime-cpu")
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "matrix"], ["y"]),
    ]
    made = onnx_files.model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, [onnx_files.weight("matrix", 4, 4)])
    path = onnx_files.save(made, tmp_path / "tied.onnx")
    options: dict[str, Any] = {"precision": "int8", "calibration": images(16, 4), "path": tmp_path / "a"}
    artifact = export.compile(path, device="onnxruntime-cpu", **options)
    integers = [
        value for value in onnx.load(artifact.model).graph.initializer if value.data_type == onnx.TensorProto.INT8
    ]
    assert len([value for value in integers if list(value.dims) == [4, 4]]) == 2
    assert artifact.notes["verification"]["sqnr_db"] > 25


def test_a_constant_of_three_axes_stays_float_in_int8(tmp_path: Path) -> None:
    """ONNX Runtime does not run QLinearMatMul with one, as in DeBERTa's attention to positions."""
    needed("onnxruntime-cpu")
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["a"]),
        helper.make_node("MatMul", ["a", "positions"], ["y"]),
    ]
    weights = [onnx_files.weight("matrix", 8, 8), onnx_files.weight("positions", 2, 8, 6)]
    made = onnx_files.model(nodes, {"x": [2, 5, 8]}, {"y": [2, 5, 6]}, weights)
    path = onnx_files.save(made, tmp_path / "positions.onnx")
    rng = np.random.default_rng(0)
    samples = [(rng.normal(size=(2, 5, 8)).astype(np.float32),) for _ in range(16)]
    options: dict[str, Any] = {"precision": "int8", "calibration": samples, "path": tmp_path / "a"}
    artifact = export.compile(path, device="onnxruntime-cpu", **options)
    graph = onnx.load(artifact.model).graph
    kinds = {value.name: value.data_type for value in graph.initializer}
    assert [kinds.get(value.name) for value in graph.initializer if len(value.dims) == 3] == [onnx.TensorProto.FLOAT]
    assert artifact.notes["verification"]["sqnr_db"] > 25
