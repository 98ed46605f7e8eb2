"""Test mixed precision: blocks and their nodes in each file format, sensitivities, and the search for an assignment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hnas import export, hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.compiling import assignment
from hnas.export.device.errors import ExportError, Unfaithful
from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.marks import kept_float
from hnas.export.graph.nodes import CONVOLUTIONS, LINEAR, bound
from hnas.export.graph.program import Program, capture
from hnas.export.int8.mixed import blocks, keep_float, sensitivities
from hnas.export.onnx.names import onnx_values, openvino_nodes
from tests.conftest import need
from tests.export import nets
from tests.export.programs import normal_noise

DEVICES = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino-cpu", "tflite": "tflite-cpu", "tensorrt": "jetson"}


def program_of(name: str, backend: str = "") -> Program:
    return fuse(capture(*nets.build(name)), passes_for(backend))


def calls(program: Program, count: int) -> list[tuple[Any, ...]]:
    return [tuple(value.numpy() for value in normal_noise(program.inputs, seed)) for seed in range(1, count + 1)]


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", nets.SHAPES)
@pytest.mark.parametrize("most", [1, 3, 16])
def test_every_called_node_is_in_one_block(name: str, most: int) -> None:
    program = program_of(name)
    found = blocks(program, most)
    called = [node.name for node in program.module.graph.nodes if node.op == "call_function"]
    assert sorted(node for nodes in found.values() for node in nodes) == sorted(called)
    assert len(found) <= max(most, len(blocks(program, 1)))


def test_blocks_are_the_modules_that_a_person_knows() -> None:
    assert list(blocks(program_of("resnet"), 6)) == ["stem.0", "blocks.0", "blocks.1", "blocks.2", "head.3"]
    assert list(blocks(program_of("mobilenet"), 4)) == ["stem", "blocks", "last", "classifier"]


def test_an_unknown_block_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^no block 'tail' to keep in float; known: stem"):
        keep_float(program_of("mobilenet"), ["tail"])


def test_a_marked_block_computes_in_float_and_the_rest_does_not() -> None:
    program = program_of("resnet")
    marked = keep_float(program, ["blocks.0"] if "blocks.0" in blocks(program) else [list(blocks(program))[1]])
    assert kept_float(program) == ()
    assert set(kept_float(marked)) < {node.name for node in marked.module.graph.nodes}
    data = calls(program, 4)
    inside = sensitivities(marked, data)
    assert 200.0 in inside.values()
    assert 200.0 not in sensitivities(program, data).values()


def test_the_block_with_the_coarse_grid_is_the_sensitive_one() -> None:
    """Scale one channel inside a block by 600, and its reader by 1 / 600: the function stays the same."""
    net, inputs = nets.build("resnet")
    with torch.no_grad():
        norm, reader = net.get_submodule("blocks.1.first.1"), net.get_submodule("blocks.1.second.0")
        for part in (norm.weight, norm.bias):
            part[0] *= 600.0
        reader.weight[:, 0] /= 600.0
    program = fuse(capture(net, inputs))
    levels = sensitivities(program, calls(program, 4))
    assert min(levels, key=lambda name: levels[name]) == "blocks.1.second.0"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", nets.SHAPES)
def test_values_of_the_onnx_file_are_those_of_the_program(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from hnas.export.onnx import file as onnx_file

    program = program_of(name, "onnxruntime")
    inputs, outputs = program.signature
    onnx_file.write_program(program, tmp_path / "model.onnx", inputs, outputs)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx")).graph
    values = onnx_values(program, graph)
    assert values
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }
    nodes = {node.name: node for node in program.module.graph.nodes}
    for theirs, ours in values.items():
        if theirs in shapes:
            assert shapes[theirs] == tuple(nodes[ours].meta["val"].shape), (theirs, ours)


def test_a_model_that_does_not_have_a_layer_is_one_line() -> None:
    program = program_of("resnet")
    names = [node.name for node in program.module.graph.nodes if node.op == "call_function"]
    with pytest.raises(ExportError, match=r"^the OpenVINO model has no aten::_convolution/Convolution for conv2d"):
        openvino_nodes(program, ["aten::relu/Relu"], names)


# --- artifacts --------------------------------------------------------------------------------------------------------


def int8_layers(path: Path, backend: str) -> int:
    """Return the number of layers with weights in int8 in the file."""
    if backend == "tflite":
        return _int8_layers_of_tflite(path / "model.tflite")
    if backend in ("onnxruntime", "tensorrt"):
        import onnx

        graph = onnx.load(path / "model.onnx").graph
        made = {name: node.op_type for node in graph.node for name in node.output}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        return sum("DequantizeLinear" in {made.get(name) for name in node.input} for node in layers)
    import openvino

    layers = openvino.Core().read_model(path / "model.xml").get_ops()
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    return sum(_is_quantised(op) for op in layers if op.get_type_name() in kinds)


def _int8_layers_of_tflite(path: Path) -> int:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
    (graph,), known = model.subgraphs, schema.BuiltinOperator
    kinds = {known.CONV_2D, known.DEPTHWISE_CONV_2D, known.FULLY_CONNECTED}
    layers = [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode in kinds]
    return sum(graph.tensors[op.inputs[1]].type == schema.TensorType.INT8 for op in layers)


def _is_quantised(op: Any) -> bool:
    node = op.input_value(1).get_node()
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return str(node.get_element_type()) in ("<Type: 'int8_t'>", "<Type: 'uint8_t'>")


@pytest.mark.parametrize("backend", DEVICES)
@pytest.mark.parametrize("name", ["mobilenet", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_blocks_that_are_kept_are_float_in_the_file(name: str, backend: str, tmp_path: Path) -> None:
    _require_converter(backend)
    program = program_of(name, backend)
    names = list(blocks(program, 4))
    data = calls(program, 8)
    expected = [program.arrays(*call) for call in data]
    found = []
    for index, kept in enumerate(([], names[:1], names)):
        path = tmp_path / str(index)
        path.mkdir()
        marked = _marked(program, kept)
        make_artifact(
            backend,
            marked,
            path,
            precision="int8",
            device=hw_profiles.load(DEVICES[backend]),
            calibration=data,
        )
        run = _load(path)
        level = export.check(expected, [run(*call) for call in data], "int8").sqnr_db
        found.append((int8_layers(path, backend), level))
    (all_, low), (some, middle), (none, high) = found
    assert all_ > some > none == 0
    assert min(low, middle) > 25
    assert high > (55 if backend == "tensorrt" else 90)  # float is fp16 in TensorRT's files


# Each backend's word for convolutions that are not depthwise, or for all.
CONVOLUTION = {"onnxruntime": "Conv", "openvino": "Convolution", "tflite": "CONV_2D", "tensorrt": "Conv"}


@pytest.mark.parametrize("backend", DEVICES)
def test_the_rules_of_a_device_reach_the_file(backend: str, tmp_path: Path) -> None:
    _require_converter(backend)
    program = program_of("mobilenet", backend)
    rules = hw_profiles.Override((CONVOLUTION[backend],), "percentile")
    device = replace(hw_profiles.load(DEVICES[backend]), quantisation={backend: rules})
    made = make_artifact(backend, program, tmp_path, precision="int8", device=device, calibration=calls(program, 4))
    table: Any = made.notes["quantisation"]
    assert table["ranges"] == "percentile"
    layers = [node for node in program.module.graph.nodes if node.target in CONVOLUTIONS | LINEAR]
    depthwise = [node for node in layers if node.target in CONVOLUTIONS and bound(node)["groups"] > 1]
    assert int8_layers(tmp_path, backend) <= (len(depthwise) if backend in ("openvino", "tflite") else 0) + 1


def _require_converter(backend: str) -> None:
    """Skip where the backend or the runtime that checks its files is not installed."""
    need(backend, backends.load("onnxruntime" if backend == "tensorrt" else backend).missing())
    pytest.importorskip({"openvino": "nncf", "tflite": "ai_edge_litert"}.get(backend, "onnxscript"))


def _load(path: Path) -> Any:
    """Open the artifact in the runtime that verifies it."""
    artifact = export.Artifact.read(path)
    return backends.load(str(artifact.notes.get("verify_with", artifact.backend))).load(artifact)


def _marked(program: Program, kept: Iterable[str]) -> Program:
    """Mark blocks of a division into at most four blocks, instead of the default number."""
    nodes = {node for name in kept for node in blocks(program, 4)[name]}
    fine = [name for name, inside in blocks(program).items() if set(inside) <= nodes]
    return keep_float(program, fine)


def test_what_tflite_does_not_write_itself_keeps_no_block(tmp_path: Path) -> None:
    need("tflite", backends.load("tflite").missing())

    class Fallback(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.logcumsumexp(self.conv(x), 1)

    net = Fallback().eval()
    program = fuse(capture(net, torch.randn(1, 3, 8, 8)))
    marked = keep_float(program, list(blocks(program)))
    device = hw_profiles.load("tflite-cpu")
    with pytest.raises(ValueError, match=r"^tflite cannot keep single blocks in float here: hnas's own writer has no "):
        make_artifact("tflite", marked, tmp_path, precision="int8", device=device, calibration=calls(program, 1))


def test_there_is_nothing_to_keep_out_of_int8_in_float(tmp_path: Path) -> None:
    net, inputs = nets.build("mobilenet")
    need("onnxruntime", backends.load("onnxruntime").missing())
    kept = export.CompileOptions(keep_float=["stem"])
    with pytest.raises(ValueError, match=r"^keep_float keeps blocks out of int8, got precision fp32"):
        export.compile(net, inputs, device="onnxruntime-cpu", path=tmp_path / "a", options=kept)


@pytest.mark.slow
def test_the_artifact_in_mixed_precision_is_what_was_accepted(tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    pytest.importorskip("onnxscript")
    net, inputs = nets.build("two_by_two")
    program = program_of("two_by_two", "onnxruntime")
    data = calls(program, 16)
    digests = []

    def accept(artifact: export.Artifact) -> bool:
        kept = artifact.notes["quantisation"].get("blocks_in_float", [])
        digests.append((artifact.digest, len(kept)))
        return len(kept) >= 2

    found = export.compile_mixed(
        net, inputs, accept=accept, calibration=data, device="onnxruntime-cpu", path=tmp_path / "mixed", threads=1
    )
    record = found.notes["quantisation"]["mixed"]
    assert len(record["float"]) >= 2
    assert dict(digests)[found.digest] == len(record["float"])
    assert list(record["sensitivity_db"]) == list(blocks(program))
    with pytest.raises(ExportError, match="no mixed precision is accepted"):
        export.compile_mixed(
            net,
            inputs,
            accept=lambda _: False,
            calibration=data,
            device="onnxruntime-cpu",
            path=tmp_path / "none",
            threads=1,
        )
    assert not (tmp_path / "none").exists()


def test_all_in_int8_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, inputs = nets.build("mobilenet")
    need("onnxruntime", backends.load("onnxruntime").missing())
    common: Any = {"calibration": calls(program_of("mobilenet"), 2), "device": "onnxruntime-cpu", "threads": 1}
    plain = export.compile(
        net, inputs, precision="int8", path=tmp_path / "int8", options=export.CompileOptions(recover="none"), **common
    )
    monkeypatch.setattr(assignment, "compile_captured", pytest.fail)
    options, seen = export.MixedOptions(trials=1, plain=plain), []
    found = export.compile_mixed(
        net, inputs, accept=lambda made: not seen.append(made.path), path=tmp_path / "a", options=options, **common
    )
    assert seen == [plain.path]
    assert found.digest == plain.digest
    assert found.notes["quantisation"]["mixed"]["float"] == []
    with pytest.raises(ValueError, match=r"precision, backend and threads of plain are .* 1\), expected .* 2\)"):
        export.compile_mixed(
            net, inputs, accept=lambda _: True, path=tmp_path / "b", options=options, **common | {"threads": 2}
        )


def test_all_in_int8_that_cannot_be_converted_ends_it_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, inputs = nets.build("mobilenet")
    need("onnxruntime", backends.load("onnxruntime").missing())
    asked: list[Any] = []

    def failing(_: Any, job: Any, *__: Any) -> None:
        asked.append(job.options.keep_float)
        raise reason

    monkeypatch.setattr(assignment, "compile_captured", failing)
    common: Any = {
        "calibration": calls(program_of("mobilenet"), 2),
        "device": "onnxruntime-cpu",
        "path": tmp_path / "a",
    }
    reason: ExportError = ExportError("onnxruntime cannot compile it")
    with pytest.raises(ExportError, match=r"^onnxruntime cannot compile it"):
        export.compile_mixed(net, inputs, accept=lambda _: True, **common)
    assert asked == [()]
    reason = Unfaithful("onnxruntime does not compute what it does")
    with pytest.raises(ExportError, match=r"^no mixed precision is accepted; 3 assignments of \d+ blocks tried"):
        export.compile_mixed(net, inputs, accept=lambda _: True, options=export.MixedOptions(trials=3), **common)
    with pytest.raises(ValueError, match=r"^trials is 0, expected 1 or more"):
        export.compile_mixed(net, inputs, accept=lambda _: True, options=export.MixedOptions(trials=0), **common)


# --- the assignment ---------------------------------------------------------------------------------------------------
