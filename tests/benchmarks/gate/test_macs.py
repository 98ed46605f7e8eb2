"""Files whose multiply-accumulates are known by hand, counted as ``max_macs`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.benchmarks.gate.macs import count_macs
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SCALES = [np.float32(0.1), np.uint8(128)]


def save(folder: Path, op: str, shapes: tuple[tuple[int, ...], ...], weights: list[Any], **attributes: Any) -> Artifact:
    """Write a file of one node ``op``: its input, then constants. shapes: those of the input and of the output."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    constants = [numpy_helper.from_array(np.asarray(each), f"w{place}") for place, each in enumerate(weights)]
    kind = np.dtype(np.uint8 if op.startswith("QLinear") else np.float32)
    x, y = (
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shape)
        for name, shape in zip("xy", shapes, strict=True)
    )
    node = helper.make_node(op, ["x", *(each.name for each in constants)], ["y"], **attributes)
    model = helper.make_model(
        helper.make_graph([node], "net", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    inputs, outputs = (TensorSpec(name, shape, kind.name) for name, shape in zip("xy", shapes, strict=True))
    files = digest_files(folder, "model.onnx")
    return Artifact(folder, "onnxruntime", "fp32", "cpu", 1, (inputs,), (outputs,), files)


def floats(*shape: int) -> Any:
    return np.ones(shape, np.float32)


CASES: dict[str, tuple[tuple[tuple[int, ...], ...], list[Any], dict[str, Any], int]] = {
    "Gemm": (((1, 16), (1, 10)), [floats(10, 16), floats(10)], {"transB": 1}, 160),
    "MatMul": (((1, 5, 16), (1, 5, 12)), [floats(16, 12)], {}, 960),
    "LSTM": (((3, 1, 8), (3, 1, 1, 4)), [floats(1, 16, 8), floats(1, 16, 4)], {"hidden_size": 4}, 576),
    "GRU": (((3, 1, 8), (3, 1, 1, 4)), [floats(1, 12, 8), floats(1, 12, 4)], {"hidden_size": 4}, 432),
    "ConvTranspose": (((1, 2, 4, 4), (1, 3, 5, 5)), [floats(2, 3, 2, 2)], {}, 384),
    "QLinearConv": (
        ((1, 4, 6, 6), (1, 8, 4, 4)),
        [*SCALES, np.ones((8, 4, 3, 3), np.int8), np.float32(0.1), np.int8(0), *SCALES],
        {},
        4608,
    ),
}


@pytest.mark.parametrize("op", CASES)
def test_constant_weights_are_counted(tmp_path: Path, op: str) -> None:
    """A kernel may pack its constant weights, and the profile of ONNX Runtime then leaves them out."""
    shapes, weights, attributes, macs = CASES[op]
    artifact = save(tmp_path / "net", op, shapes, weights, **attributes)
    artifact.write()
    assert count_macs(artifact, [np.zeros(spec.shape, spec.dtype) for spec in artifact.inputs]) == macs
