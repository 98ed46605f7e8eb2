"""Test that the inputs and outputs of an ONNX file keep their types and names, and that other floats become float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas import export
from hnas.export import backends
from hnas.export.onnx.source import Original
from tests.conftest import need
from tests.export.onnx_files import chain, model, save, weight

onnx = pytest.importorskip("onnx")
helper = onnx.helper
KINDS = onnx.TensorProto
BACKENDS = ["onnxruntime", "openvino", "tensorrt"]  # those that take ONNX files


@pytest.fixture(autouse=True)
def _needed() -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())  # runs the file


def typed(made: Any, **kinds: int) -> Any:
    """Return the model with other types of its inputs and outputs."""
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = kinds.get(value.name, KINDS.FLOAT)
    return made


def text_model() -> Any:
    """Return a model of tokens and a mask: scores, the best class, the mask reversed, and the tokens plus one."""
    nodes = [
        helper.make_node("Gather", ["table", "input.ids"], ["e"]),
        helper.make_node("Where", ["mask", "e", "zero"], ["kept"]),
        helper.make_node("ReduceMean", ["kept"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "matrix"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Not", ["mask"], ["unread"]),
        helper.make_node("Add", ["input.ids", "one"], ["next::ids"]),
    ]
    constants = [weight("table", 10, 8), weight("matrix", 8, 3)]
    constants += [onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero")]
    constants += [onnx.numpy_helper.from_array(np.ones((), np.int64), "one")]
    inputs = {"input.ids": [1, 4], "mask": [1, 4, 1]}
    outputs = {"logits": [1, 3], "best": [1], "unread": [1, 4, 1], "next::ids": [1, 4]}
    made = model(nodes, inputs, outputs, constants)
    whole = {"input.ids": KINDS.INT64, "best": KINDS.INT64, "next::ids": KINDS.INT64}
    return typed(made, **whole, mask=KINDS.BOOL, unread=KINDS.BOOL)


IDS, MASK = np.array([[1, 5, 9, 2]]), np.array([[[True], [True], [True], [False]]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_and_bools_keep_their_types_and_every_name_is_callable(tmp_path: Path, backend: str) -> None:
    need(backend, backends.load("onnxruntime" if backend == "tensorrt" else backend).missing())
    path = save(text_model(), tmp_path / "text.onnx")
    device = "jetson" if backend == "tensorrt" else f"{backend}-cpu"
    # By name and in another order; int32 where every number has its place.
    examples = {"mask": MASK, "input.ids": IDS.astype(np.int32)}
    artifact = export.compile(path, examples, device=device, path=tmp_path / "a")
    ends = {tensor.name: tensor.dtype for tensor in (*artifact.inputs, *artifact.outputs)}
    whole = {"input.ids": "int64", "mask": "bool", "logits": "float32", "best": "int64", "unread": "bool"}
    assert ends == {**whole, "next::ids": "int64"}
    if backend == "tensorrt":  # needs its device
        return
    with Original(path, examples) as original:
        (expected,) = original.outputs([original.examples])
    outputs = export.load(artifact)(**{"mask": MASK, "input.ids": IDS})
    for tensor, want in zip(artifact.outputs, expected, strict=True):
        have = outputs[tensor.name]
        assert have.dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    assert outputs["next::ids"].tolist() == [[2, 6, 10, 3]]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_keeps_them_as_well(tmp_path: Path, backend: str) -> None:
    need(backend, backends.load(backend).missing())
    path = save(text_model(), tmp_path / "text.onnx")
    rng = np.random.default_rng(0)
    calls = [{"input.ids": rng.integers(0, 10, (1, 4)), "mask": MASK, "labels": np.zeros(1)} for _ in range(16)]
    more: dict[str, Any] = {"device": f"{backend}-cpu", "precision": "int8", "calibration": calls}
    artifact = export.compile(path, path=tmp_path / "a", **more)
    assert [tensor.dtype for tensor in artifact.inputs] == ["int64", "bool"]
    outputs = export.load(artifact)(**{"input.ids": IDS, "mask": MASK})
    assert [value.dtype.name for value in outputs] == ["float32", "int64", "bool", "int64"]
    assert outputs["next::ids"].tolist() == [[2, 6, 10, 3]]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"input.ids": IDS}, r"^text.onnx has an input mask, which the example inputs lack; it takes input.ids, mask$"),
        ({"input.ids": IDS, "mask": MASK, "x": IDS}, r"^text.onnx has no input x; it takes input.ids, mask$"),
        (
            (IDS.astype(np.float32), MASK),
            r"^text.onnx takes .*; the example inputs are float32\[1, 4\], bool\[1, 4, 1\]",
        ),
    ],
)
def test_examples_that_do_not_fit_are_one_line(tmp_path: Path, given: Any, line: str) -> None:
    path = save(text_model(), tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=line):
        export.compile(path, given, device="onnxruntime-cpu", path=tmp_path / "a")


def layers(kind: Any, *, outlier: float = 0.0) -> Any:
    """Return a product, a sum and a cast to another float and back, whose weights have the type ``kind``."""
    half = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 0.3, (8, 4)).astype(half)
    matrix[0, 0] = outlier or matrix[0, 0]
    low = np.array(-1e300 if kind == KINDS.DOUBLE else -6e4, half)
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["a"]),
        helper.make_node("Max", ["a", "low"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=KINDS.FLOAT),
        helper.make_node("Softmax", ["c"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=kind),
    ]
    constants = [onnx.numpy_helper.from_array(matrix, "matrix"), onnx.numpy_helper.from_array(low, "low")]
    return typed(model(nodes, {"x": [1, 8]}, {"y": [1, 4]}, constants), x=kind, y=kind)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "BFLOAT16"])
def test_other_floats_become_float32_with_a_remark(tmp_path: Path, kind: str, backend: str) -> None:
    need(backend, backends.load("onnxruntime" if backend == "tensorrt" else backend).missing())
    path = save(layers(getattr(KINDS, kind)), tmp_path / "net.onnx")
    name = {"FLOAT16": "float16", "DOUBLE": "float64", "BFLOAT16": "bfloat16"}[kind]
    x = np.random.default_rng(1).normal(size=(1, 8)).astype("float32" if kind == "BFLOAT16" else name)
    artifact = export.compile(
        path, x, device="jetson" if backend == "tensorrt" else f"{backend}-cpu", path=tmp_path / "a"
    )
    assert [tensor.dtype for tensor in (*artifact.inputs, *artifact.outputs)] == ["float32", "float32"]
    uncompared = "the values were not compared with those in bfloat16, which the reference runtime does not run"
    remarks = [f"{name} parts are computed in float32", *([uncompared] if kind == "BFLOAT16" else [])]
    assert artifact.notes["remarks"] == remarks
    assert f"its {name} parts are computed in float32" in artifact.notes["source"]["changes"]
    if backend != "tensorrt":
        matrix = onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).astype(np.float64)
        scores = np.exp(x.astype(np.float64) @ matrix)
        (got,) = export.load(artifact)(x.astype(np.float32))
        np.testing.assert_allclose(got, scores / scores.sum(), rtol=1e-5)


def test_a_file_that_loses_digits_in_float32_is_refused(tmp_path: Path) -> None:
    """x + 1e5 - 1e5 has 44 dB in float32, which would pass for half precision; it changes less with the input."""
    constants = [onnx.numpy_helper.from_array(np.array(1e5), "far")]
    made = chain(("Add", "far"), ("Sub", "far"), weights=constants)
    path = save(typed(made, x=KINDS.DOUBLE, y=KINDS.DOUBLE), tmp_path / "net.onnx")
    x = np.array([[0.311, -0.7402, 1.2713]])
    with pytest.raises(export.ExportError, match=r"^net.onnx computes other values in float32 than in float64$"):
        export.compile(path, x, device="onnxruntime-cpu", path=tmp_path / "a")


def test_a_file_that_amplifies_rounding_may_lose_as_many_digits_in_float32(tmp_path: Path) -> None:
    """exp(1000 x) / exp(1000) at 1: a unit in the last place of x is as much as the loss."""
    constants = [
        onnx.numpy_helper.from_array(np.array(1000.0), "steep"),
        onnx.numpy_helper.from_array(np.array(925.0), "level"),
    ]
    nodes = [("Mul", "steep"), ("Sub", "level"), ("Exp",)]
    path = save(typed(chain(*nodes, weights=constants), x=KINDS.DOUBLE, y=KINDS.DOUBLE), tmp_path / "net.onnx")
    export.compile(path, np.array([[0.9871, 0.9912, 0.9903]]), device="onnxruntime-cpu", path=tmp_path / "a")


def test_a_file_that_needs_its_float64_is_refused(tmp_path: Path) -> None:
    """1 + 1e-12 - 1 is 0 in float32."""
    constants = [
        onnx.numpy_helper.from_array(np.array(1.0), "one"),
        onnx.numpy_helper.from_array(np.array(1e12), "big"),
    ]
    made = chain(("Add", "one"), ("Sub", "one"), ("Mul", "big"), weights=constants)
    path = save(typed(made, x=KINDS.DOUBLE, y=KINDS.DOUBLE), tmp_path / "net.onnx")
    with pytest.raises(export.ExportError, match=r"^net.onnx computes other values in float32 than in float64$"):
        export.compile(path, np.full((1, 3), 1e-12), device="onnxruntime-cpu", path=tmp_path / "a")
