"""Test that a split of any kind has a form in opset 17, in which TensorRT reads files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hnas.export import backends
from hnas.export.graph.program import capture
from tests.conftest import need

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


class Parts(nn.Module):
    """Equal parts, listed parts, and equal parts of which the last one is smaller."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = x.chunk(2, 1)
        small, large = x.split([1, 3], -2)
        return first - second, small, large, *x.split(3, 3)


def test_parts_keep_their_values_in_opset_17(tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    import onnxruntime

    from hnas.export.onnx.file import read_opset, write_program

    program = capture(Parts(), torch.randn(1, 4, 4, 7))
    path = tmp_path / "parts.onnx"
    write_program(program, path, *program.signature, 17)
    assert read_opset(path) == 17
    assert "Split" not in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(str(path))
    x = program.inputs[0].numpy()
    got = session.run(None, {session.get_inputs()[0].name: x})
    for want, have in zip(program.arrays(x), got, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-6)


def test_parts_whose_sizes_are_computed_are_left_alone() -> None:
    from hnas.export.onnx.splits import split_by_slices

    helper = onnx.helper
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "a", "b")]
    sizes = helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [2])
    node = helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=0)
    model = helper.make_model(helper.make_graph([node], "parts", [ends[0], sizes], ends[1:]))
    split_by_slices(model)
    assert [each.op_type for each in model.graph.node] == ["Split"]
