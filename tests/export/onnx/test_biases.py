"""The biases of an ONNX file are corrected for the rounding of its weights, and `recover="auto"` uses that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnas.export import CompileOptions, ExportError, backends
from hnas.export import compile as compile_network
from hnas.export.int8.calibration import activation_ranges
from hnas.export.onnx import quantiser
from hnas.export.onnx.biases import EDIT, correct_biases
from hnas.export.onnx.ranges import file_ranges
from hnas.export.onnx.source import Original
from tests.conftest import need
from tests.export import onnx_files

onnx = pytest.importorskip("onnx")


@pytest.fixture(autouse=True)
def _needs_runtime() -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())


def bright(count: int, *shape: int) -> list[tuple[np.ndarray]]:
    """Return samples with a large mean, as of brightness, so that rounded weights move the means of the outputs."""
    rng = np.random.default_rng(0)
    return [(rng.uniform(0.5, 1.5, (1, *shape)).astype(np.float32),) for _ in range(count)]


def made(*nodes: Any, size: tuple[int, ...] = (6,), end: tuple[int, ...] = (4,), **weights: np.ndarray) -> Any:
    """Return a model from x to y, with seeded normal weights whose first value is large."""
    from onnx import helper

    graph = [helper.make_node(kind, inputs, outputs, name=outputs[0], **more) for kind, inputs, outputs, more in nodes]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    return onnx_files.model(graph, {"x": [1, *size]}, {"y": [1, *end]}, constants)


def table(*shape: int) -> np.ndarray:
    found = np.random.default_rng(sum(shape)).normal(0, 0.05, shape).astype(np.float32)
    found.reshape(shape[0], -1)[:, 0] = 3.0  # the steps are coarse for all other weights
    return found


def run(model: Any, samples: list[tuple[np.ndarray]]) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"x": x})[0] for (x,) in samples]).astype(np.float64)


def rounded(model: Any, axis: int) -> Any:
    """Return the model with its weight rounded to int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.initializer:
        weight = onnx.numpy_helper.to_array(value)
        if weight.ndim > 1:
            scale = np.abs(weight).max(tuple(i for i in range(weight.ndim) if i != axis), keepdims=True) / 127
            value.CopyFrom(onnx.numpy_helper.from_array((np.rint(weight / scale) * scale).astype(np.float32), "w"))
    return copy


CONV = ("Conv", ["x", "w"], ["y"], {})
CASES = {
    "conv": (made(CONV, size=(3, 8, 8), end=(4, 6, 6), w=table(4, 3, 3, 3)), 0),
    "depthwise, with a bias": (
        made(
            ("Conv", ["x", "w", "b"], ["y"], {"group": 3}),
            size=(3, 8, 8),
            end=(3, 6, 6),
            w=table(3, 1, 3, 3),
            b=np.ones(3, np.float32),
        ),
        0,
    ),
    "gemm": (made(("Gemm", ["x", "w"], ["y"], {"transB": 1}), w=table(4, 6)), 0),
    "gemm, other axis": (made(("Gemm", ["x", "w", "b"], ["y"], {}), w=table(4, 6).T.copy(), b=table(1, 4)[0]), 1),
    "matmul": (
        made(
            ("MatMul", ["x", "w"], ["m"], {}), ("Add", ["b", "m"], ["y"], {}), w=table(4, 6).T.copy(), b=table(1, 4)[0]
        ),
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_every_channel_is_that_of_the_float_weights(tmp_path: Path, case: str) -> None:
    model, axis = CASES[case]
    samples = bright(8, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    path = onnx_files.save(model, tmp_path / "net.onnx")
    assert correct_biases(path, samples) == 1
    want, plain, got = (run(each, samples) for each in (model, rounded(model, axis), rounded(onnx.load(path), axis)))
    over = (0, 1, 3, 4) if want.ndim == 5 else (0, 1)
    lost, left = (np.abs((value - want).mean(over)).max() for value in (plain, got))
    assert lost > 0.01
    assert left < 1e-3 * lost


@pytest.mark.parametrize(
    ("model", "spared"),
    [
        (CASES["conv"][0], ["y"]),
        (made(("Gemm", ["x", "w"], ["y"], {"alpha": 0.5, "transB": 1}), w=table(4, 6)), []),
        (made(("MatMul", ["x", "w"], ["y"], {}), w=table(4, 6).T.copy()), []),
    ],
)
def test_other_layers_are_unchanged(tmp_path: Path, model: Any, spared: list[str]) -> None:
    path = onnx_files.save(model, tmp_path / "net.onnx")
    before = path.read_bytes()
    with pytest.raises(ExportError, match="no layer of the ONNX file has a bias to correct"):
        correct_biases(path, bright(2, 6), spared)
    assert path.read_bytes() == before


def test_operators_outside_the_policy_keep_their_biases(tmp_path: Path) -> None:
    model = made(("Gemm", ["x", "w"], ["y"], {"transB": 1}), w=table(4, 6))
    model.graph.node[0].name = "layer"
    path, source = onnx_files.save(model, tmp_path / "net.onnx"), SimpleNamespace(edits=(EDIT,))
    with pytest.raises(ExportError, match="no layer of the ONNX file has a bias to correct"):
        quantiser._edit(path, bright(2, 6), source, (), SimpleNamespace(operators=("Conv",)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_recovery_takes_the_corrected_file_where_the_plain_one_is_not_close(tmp_path: Path, backend: str) -> None:
    need(backend, backends.load(backend).missing())
    chain = [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["r"], {}), ("Conv", ["r", "v"], ["y"], {})]
    model = made(*chain, size=(3, 8, 8), end=(4, 4, 4), w=table(8, 3, 3, 3), v=table(4, 8, 3, 3))
    path = onnx_files.save(model, tmp_path / "net.onnx")
    samples, levels = bright(16, 3, 8, 8), {}
    for recover in ("none", "bias"):
        found = compile_network(
            path,
            device=f"{backend}-cpu",
            precision="int8",
            calibration=samples,
            path=tmp_path / recover,
            options=CompileOptions(recover=recover),
        )
        levels[recover] = found.notes["verification"]["sqnr_db"]
    edits = [edit["edit"] for edit in found.notes["quantisation"]["recovery"]]
    assert edits == ["correct_biases"]
    assert levels["bias"] > levels["none"] + 3  # on OpenVINO it replaces the correction of NNCF


@pytest.mark.parametrize("method", ["minmax", "mse", "unseen", "percentile"])
def test_the_ranges_of_a_file_are_those_of_its_program(tmp_path: Path, method: str) -> None:
    torch = pytest.importorskip("torch")
    from hnas.export.graph.program import capture
    from hnas.export.onnx.file import write_program

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    program = capture(net, torch.randn(1, 3, 8, 8))
    write_program(program, tmp_path / "net.onnx", *program.signature)
    samples = bright(6, 3, 8, 8)
    with Original(tmp_path / "net.onnx") as original:
        found = file_ranges(Path(original.source.path), samples, method)
    want = activation_ranges(program, samples, method)
    assert len(found) == len(want)
    np.testing.assert_allclose([*found.values()], [*want.values()], rtol=0.02, atol=0.01)
