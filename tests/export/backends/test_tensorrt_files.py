"""Test the files for TensorRT, which need no GPU: types, precisions, notes, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hnas.export.backends.tensorrt import convert as tensorrt_backend
from hnas.export.device import runtimes
from hnas.export.device.errors import ExportError
from hnas.export.graph.program import capture
from hnas.export.proof.verification import check
from tests.export.backends.test_backends import HYBRID_ATTENTIONS, artifact, compiled, images, need, program


def test_tensorrt_int8_is_symmetric_s8_without_biases() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(artifact("tensorrt", "hybrid", "int8").model)
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert all(values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any() for node in pairs)


def test_tensorrt_fp16_computes_in_fp16_between_float_ends() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(artifact("tensorrt", "hybrid", "fp16").model)
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {float32}
    assert float32 not in {value.data_type for value in model.graph.initializer if np.prod(value.dims) > 1}
    assert float16 in {value.data_type for value in model.graph.initializer}
    assert [domain.version for domain in model.opset_import if domain.domain == ""] == [tensorrt_backend.OPSET]


def test_tensorrt_fp16_keeps_a_weight_beyond_its_range_in_fp32(tmp_path: Path) -> None:
    need("tensorrt")
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(module[0].weight, 1e8)
    nn.init.constant_(module[1].weight, 1e-8)
    program = capture(module.eval(), torch.rand(1, 2))
    made = compiled("tensorrt", program, "fp16", tmp_path)
    types = made.notes["types"]
    assert set(types["fp32"].values()) == {"its values overflow fp16"}
    assert (types["kept_layers"], types["layers"]) == (2, 3)  # the one that writes the large values, and their reader


def test_tensorrt_refuses_a_network_that_overflows_everywhere(tmp_path: Path) -> None:
    need("tensorrt")
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, 1e6)
    with pytest.raises(ExportError, match=r"^fp16 cannot hold this network: all 1 layers overflow.*; choose fp32$"):
        compiled("tensorrt", capture(module.eval(), torch.zeros(1, 2)), "fp16", tmp_path)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_tensorrt_files_state_the_type_of_every_layer(precision: str) -> None:
    onnx = pytest.importorskip("onnx")
    made = artifact("tensorrt", "hybrid", precision)
    graph = onnx.shape_inference.infer_shapes(onnx.load(made.model), strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    wide = {name for node in graph.node for name in node.output if kinds.get(name) == 1}
    assert {node.op_type for node in graph.node if wide & set(node.output)} <= {"Cast"}  # nothing had to stay in fp32
    quantised = made.notes["types"].get("int8", [])
    assert bool(quantised) == (precision == "int8")
    layers = [node.name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == made.notes["types"]["layers"]
    assert len(layers) - len(quantised) == (len(layers) if precision == "fp16" else 2 * HYBRID_ATTENTIONS)


def test_tensorrt_8_gets_the_same_int8_graph_without_types() -> None:
    onnx = pytest.importorskip("onnx")
    made = artifact("tensorrt", "hybrid", "int8")
    typed, plain = (onnx.load(made.path / name) for name in ("model.onnx", "model-trt8.onnx"))
    assert [each.version for model in (typed, plain) for each in model.opset_import if each.domain == ""] == [19, 17]
    names = [{n.name for n in m.graph.node if n.op_type not in ("Cast", "Constant")} for m in (typed, plain)]
    assert names[0] == names[1]
    ours = replace(made, files={"model-trt8.onnx": made.files["model-trt8.onnx"]})
    samples = images(program("hybrid"), 2, 4)
    got, expected = ([runtimes.load("onnxruntime").load(each)(*x) for x in samples] for each in (ours, made))
    found = check([tuple(x) for x in expected], [tuple(x) for x in got], "int8")
    assert found.sqnr_db >= 25, found.line()


def test_tensorrt_notes_say_how_to_build() -> None:
    build = artifact("tensorrt", "two_by_two", "fp16").notes["build"]
    assert isinstance(build, dict)
    assert build["command"] == "trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped --noTF32"
    assert build["command_trt8"] == "trtexec --onnx=model.onnx --saveEngine=model.engine --fp16 --noTF32"
    assert {"JetPack", "TensorRT", "opset", "compute_capability", "rule"} <= set(build)


def test_tensorrt_refuses_operators_newer_than_the_device(tmp_path: Path) -> None:
    need("tensorrt")
    with pytest.raises(ExportError, match=r"^LayerNormalization needs TensorRT 8\.6, the device has 8\.5"):
        compiled("tensorrt", program("hybrid"), "fp32", tmp_path, "jetson-xavier-nx")


@pytest.mark.parametrize("precision", tensorrt_backend.precisions)
def test_tensorrt_parses_and_builds(precision: str) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    assert rtx.OnnxParser(network, logger).parse_from_file(str(artifact("tensorrt", "hybrid", precision).model))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None


def test_tensorrt_absent_says_how_to_get_it() -> None:
    message = tensorrt_backend.missing()
    if message is None:
        pytest.skip("tensorrt is installed")
    assert "\n" not in message
    assert "JetPack" in message or "pip install" in message
