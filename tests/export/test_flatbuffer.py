"""TFLite models taken apart and put together: that the parts compute the whole, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.backends import tflite
from export.flatbuffer import Part, join, split
from tests.conftest import need

ADD = 0  # of the schema's operators


@pytest.fixture(autouse=True)
def runtime() -> None:
    need("tflite", tflite.missing())


def model(
    sums: list[tuple[int, int, int]], inputs: list[int], outputs: list[int], *, subgraphs: int = 1, sign: bool = False
) -> bytes:
    """A model of additions (a, b, a + b) of tensors of three floats, which are numbered."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    made, graph = schema.ModelT(), schema.SubGraphT()
    made.version, made.buffers = 3, [schema.BufferT()]
    made.operatorCodes = [schema.OperatorCodeT(builtinCode=ADD)]
    graph.tensors = [
        schema.TensorT(shape=[1, 3], name=f"t{index}".encode()) for index in range(1 + max(map(max, [*sums, inputs])))
    ]
    graph.operators = []
    for a, b, total in sums:
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = np.array([a, b], np.int32), np.array([total], np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
        operator.builtinOptions = schema.AddOptionsT()
        graph.operators.append(operator)
    graph.inputs, graph.outputs = inputs, outputs
    made.subgraphs = [graph] * subgraphs
    if sign:  # a converter lists them in the order of their names: args_1 before args_0 here
        signature = schema.SignatureDefT()
        signature.signatureKey = b"serving_default"
        signature.inputs = [_entry(schema, f"args_{n}", index) for n, index in reversed(list(enumerate(inputs)))]
        signature.outputs = [_entry(schema, f"output_{n}", index) for n, index in reversed(list(enumerate(outputs)))]
        made.signatureDefs = [signature]
    return bytes(convert_object_to_bytearray(made))


def _entry(schema: Any, name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


def run(content: bytes, *inputs: np.ndarray) -> list[list[float]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"])[0].tolist() for detail in interpreter.get_output_details()]


def x(value: float) -> np.ndarray:
    return np.full((1, 3), value, np.float32)


# 2 = 0 + 1, 4 = 3 + 3: two networks that share nothing
APART = model([(0, 1, 2), (3, 3, 4)], [0, 1, 3], [2, 4])


@pytest.mark.parametrize("sign", [False, True])
def test_parts_compute_what_the_whole_does_in_the_order_of_the_module(sign: bool) -> None:
    whole = model([(0, 1, 2), (3, 3, 4)], [0, 1, 3], [2, 4], sign=sign)
    first, second = split(whole, [(2, 1), (1, 1)])
    assert run(first, x(1), x(2)) == [[3, 3, 3]]
    assert run(second, x(5)) == [[10, 10, 10]]


def test_parts_that_are_joined_feed_each_other_and_share_the_inputs() -> None:
    add, double = split(APART, [(2, 1), (1, 1)])
    parts = [Part(add, ("a", "b"), ("c",)), Part(double, ("c",), ("d",)), Part(add, ("d", "a"), ("e",))]
    assert run(join(parts, ["a", "b"], ["e", "c"]), x(1), x(2)) == [[7, 7, 7], [3, 3, 3]]


@pytest.mark.parametrize("ends", [[(2, 1)], [(2, 1), (1, 1), (0, 0), (1, 0)], [(3, 1), (0, 2)], []])
def test_ends_that_are_not_the_models_are_refused(ends: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="the model has 3 inputs and 2 outputs, the parts have others"):
        split(APART, ends)


def test_a_part_that_reads_an_input_of_another_is_refused() -> None:
    tangled = model([(0, 1, 2), (2, 2, 3)], [0, 1], [2, 3])
    with pytest.raises(ValueError, match="a part reads an input of another part"):
        split(tangled, [(1, 1), (1, 1)])


def test_a_model_of_several_graphs_is_refused() -> None:
    two = model([(0, 1, 2)], [0, 1], [2], subgraphs=2)
    with pytest.raises(ValueError, match="the model has 2 subgraphs, expected one"):
        split(two, [(2, 1)])
    with pytest.raises(ValueError, match="the model has 2 subgraphs, expected one"):
        join([Part(two, ("a", "b"), ("c",))], ["a", "b"], ["c"])


def test_a_value_that_nobody_gives_is_named_with_those_that_are_known() -> None:
    add, double = split(APART, [(2, 1), (1, 1)])
    parts = [Part(add, ("a", "b"), ("c",)), Part(double, ("z",), ("d",))]
    with pytest.raises(ValueError, match="no part before gives 'z'; known: a, b, c"):
        join(parts, ["a", "b"], ["d"])
    with pytest.raises(ValueError, match="no part before gives 'd'"):  # nor may one read what comes later
        join([Part(double, ("d",), ("c",)), Part(add, ("a", "b"), ("d",))], ["a", "b"], ["c"])


def test_a_part_with_other_ends_than_its_model_is_refused() -> None:
    add, _ = split(APART, [(2, 1), (1, 1)])
    for part in (Part(add, ("a",), ("c",)), Part(add, ("a", "b"), ("c", "d"))):
        with pytest.raises(ValueError, match="argument"):
            join([part], ["a", "b"], ["c"])


def test_ends_of_the_whole_that_no_part_has_are_named() -> None:
    add, _ = split(APART, [(2, 1), (1, 1)])
    for ends in ((["a", "b", "x"], ["c"]), (["a", "b"], ["y"])):
        with pytest.raises(ValueError, match=r"no part (reads|gives) '[xy]'"):
            join([Part(add, ("a", "b"), ("c",))], *ends)


@pytest.mark.parametrize("cut", [0, 3, 40, 0.5])
def test_bytes_that_are_no_model_are_one_line(cut: float) -> None:
    content = APART[: int(cut * len(APART)) if cut == 0.5 else int(cut)]
    with pytest.raises(ValueError, match="not a whole TFLite model") as caught:
        split(content, [(2, 1), (1, 1)])
    assert "\n" not in str(caught.value)


def test_the_file_is_what_the_runtime_opens(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(APART)
    assert run((tmp_path / "model.tflite").read_bytes(), x(1), x(2), x(3)) == [[3, 3, 3], [6, 6, 6]]
