"""Test the typed graph for constants, casts and names that are easily forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.export.device import engine_types
from hnas.export.device.errors import ExportError
from hnas.export.onnx import casts, file, stated
from hnas.export.onnx import halving as halves

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
halving = pytest.importorskip("tests.export.onnx.test_halving")
X = halving.SAMPLES[0][0]


def typed(nodes: Any, constants: dict[str, Any], kind: int = 1) -> dict[str, int]:
    """Return the types in the typed graph, after a comparison of its result with that of the graph."""
    given = halving.model(nodes, constants)
    given.graph.output[0].type.tensor_type.elem_type = kind
    given = onnx.shape_inference.infer_shapes(given)
    for simulate in (False, True):
        written = casts.write_types(given, (), simulate=simulate)
        found: dict[str, int] = halving.types(written)
        np.testing.assert_allclose(halving.run(written, X), halving.run(given, X), rtol=3e-3, atol=2e-3)
        if not simulate:
            typed_found = found
    return typed_found


@pytest.mark.parametrize("told", [{"value_float": 2.0}, {"value_floats": [2.0] * 8}])
def test_every_form_of_a_constant_is_fp16(told: dict[str, Any]) -> None:
    found = typed(
        [("Constant", "", "c", told), ("Mul", "x c", "m", {}), ("MatMul", "m a", "y", {})], {"a": halving.EYE}
    )
    assert found["m"] == 10


def test_constants_of_integers_and_of_a_shape() -> None:
    nodes = [
        ("Constant", "", "shape", {"value_ints": [1, 8]}),
        ("ConstantOfShape", "shape", "zero", {}),
        ("Add", "x zero", "s", {}),
        ("MatMul", "s a", "y", {}),
    ]
    found = typed(nodes, {"a": halving.EYE})
    assert (found["zero"], found["s"]) == (10, 10)


def test_cast_like_to_integers_reads_fp32() -> None:
    nodes = [("Mul", "x thousand", "m", {}), ("CastLike", "m one", "i", {}), ("Cast", "i", "y", {"to": 1})]
    given = halving.model(nodes, {"thousand": np.float32(1e3), "one": np.int64(1)})
    written = casts.write_types(given, {"m", "y"})
    np.testing.assert_array_equal(halving.run(written, X + 3), halving.run(given, X + 3))  # beyond 2048


def test_names_that_the_graph_has_already_are_not_taken_again() -> None:
    nodes = [
        ("MatMul", "x a", "h", {}),
        ("Neg", "h", "h_single", {}),
        ("Clip", "h_single low a_half", "x_half", {}),
        ("Add", "x_half h", "y_half", {}),
        ("Relu", "y_half", "cast_x_half_", {}),
        ("MatMul", "cast_x_half_ a", "y", {}),
    ]
    typed(nodes, {"a": halving.EYE, "low": np.float32(-1e9), "low_bound": np.float32(3), "a_half": np.float32(1e9)})


def test_a_typed_file_that_is_not_valid_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(halving.model(halving.PLAIN, {"a": halving.EYE}), path)
    before = path.read_bytes()
    monkeypatch.setattr(
        casts._Typing, "_is_float_constant", lambda *_: False
    )  # the planted failure: MatMul of two types
    with pytest.raises(ExportError, match=r"^the types of fp16 do not fit this graph: [^\n]*; choose fp32$"):
        file.convert_to_fp16(path, ())
    assert path.read_bytes() == before


def test_the_note_has_the_nodes_in_fp32_of_the_file_also_in_branches(tmp_path: Path) -> None:
    info = [onnx.helper.make_tensor_value_info("o", 1, [1, 8])]
    made = [
        onnx.helper.make_node("MatMul", ["h", "a"], ["n"], "inner"),
        onnx.helper.make_node("Relu", ["n"], ["o"], "r"),
    ]
    body = onnx.helper.make_graph(made, "b", [], info)
    nodes = [("MatMul", "x a", "h", {}), ("If", "c", "b", {"then_branch": body, "else_branch": body})]
    nodes += [("Sigmoid", "b", "s", {}), ("MatMul", "s a", "y", {})]
    onnx.save(halving.model(nodes, {"a": halving.EYE, "c": np.bool_(True)}), tmp_path / "model.onnx")
    file.convert_to_fp16(tmp_path / "model.onnx", {"s"})
    note = stated.stated_types(tmp_path / "model.onnx", halves.HalfPlan({"s": halves.LOSS}, 2, 0, 60.0))
    assert note["fp32"] == {"s": "loss", **dict.fromkeys(("b", "inner", "r"), engine_types.NO_HALF)}
    assert (note["layers"], note["kept_layers"]) == (4, 2)
    assert engine_types.held_names(note) == ["s"]
