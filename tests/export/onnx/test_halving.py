"""Test which nodes stay in fp32 in an fp16 graph, and the types of the graph that is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hnas.export.device.errors import ExportError
from hnas.export.onnx import casts, halving

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
EYE = np.eye(8, dtype=np.float32)
SAMPLES = [(RNG.standard_normal((1, 8)).astype(np.float32),) for _ in range(3)]


def model(nodes: Sequence[Any], constants: dict[str, Any], shape: Any = (1, 8), opset: int = 17) -> Any:
    """Return a model from x to y. A node is (operator, inputs, outputs, attributes); its name is that of its output."""
    ends = [onnx.helper.make_tensor_value_info("x", 1, shape), onnx.helper.make_tensor_value_info("y", 1, None)]
    made = [onnx.helper.make_node(kind, i.split(), o.split(), o.split()[0], **rest) for kind, i, o, rest in nodes]
    values = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(made, "g", ends[:1], ends[1:], values)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def run(given: Any, *inputs: Any) -> Any:
    session = ort.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))[0]


def types(given: Any) -> dict[str, int]:
    """Return the type of every value of a model; raise if the model is invalid."""
    onnx.checker.check_model(given, full_check=True)
    graph = onnx.shape_inference.infer_shapes(given, strict_mode=True).graph
    return {each.name: each.type.tensor_type.elem_type for each in (*graph.value_info, *graph.input, *graph.output)}


PLAIN = [("MatMul", "x a", "h", {}), ("Relu", "h", "r", {}), ("MatMul", "r a", "y", {})]


def test_a_plain_graph_is_fp16_between_float_ends() -> None:
    given = model(PLAIN, {"a": EYE})
    plan = halving.choose_kept(given, SAMPLES, 40.0)
    assert (plan.kept, plan.layers, plan.kept_layers) == ({}, 2, 0)
    written = casts.write_types(given, plan.kept)
    found = types(written)
    assert (found["x"], found["h"], found["r"], found["y"]) == (1, 10, 10, 1)
    assert Counter(node.op_type for node in written.graph.node)["Cast"] == 2
    np.testing.assert_allclose(run(written, *SAMPLES[0]), run(given, *SAMPLES[0]), rtol=2e-3, atol=1e-3)
    assert [value.data_type for value in written.graph.initializer] == [10]  # shared, and no copy in fp32 is left


def test_case_1_a_value_that_overflows_stays_and_so_do_its_readers() -> None:
    nodes = [("MatMul", "x big", "h", {}), ("Mul", "h small", "r", {}), ("MatMul", "r a", "y", {})]
    given = model(nodes, {"big": 5e4 * EYE, "small": np.float32(1e-4), "a": EYE})
    samples = [(3 * x,) for (x,) in SAMPLES]
    plan = halving.choose_kept(given, samples, 40.0)
    assert dict(plan.kept) == {"h": halving.OVERFLOW, "r": halving.OVERFLOW}
    written = casts.write_types(given, plan.kept)
    found = types(written)
    assert (found["h"], found["r"], found["r_half"]) == (1, 1, 10)
    np.testing.assert_allclose(run(written, *samples[0]), run(given, *samples[0]), rtol=3e-3)
    assert not np.isfinite(run(casts.write_types(given, (), simulate=True), *samples[0])).all()  # the planted failure


@pytest.mark.parametrize(
    ("node", "shape", "scale", "kept"),
    [
        (("GlobalAveragePool", "x", "y", {}), (1, 2, 64, 64), 10.0, True),  # 4096 values of 8 on average
        (("GlobalAveragePool", "x", "y", {}), (1, 2, 64, 64), 1.0, False),
        (("ReduceMean", "x", "y", {"axes": [-1]}), (1, 2, 4096), 20.0, True),
        (("ReduceMean", "x", "y", {"axes": [-1], "keepdims": 0}), (1, 64, 4096), 1.0, False),  # 3000 in each row
        (("ReduceSum", "x last", "y", {"keepdims": 0}), (1, 64, 4096), 1.0, False),
        (("ReduceSum", "x last", "y", {"keepdims": 0}), (1, 64, 4096), 20.0, True),
        (("ReduceSum", "x", "y", {"keepdims": 0}), (1, 64, 4096), 1.0, True),  # over all axes
        (("LpNormalization", "x", "y", {"axis": 1}), (1, 2, 64, 64), 10.0, False),
        (("LayerNormalization", "x s", "y", {"axis": -1}), (1, 4096), 4.0, True),  # of squares
        (("LayerNormalization", "x s", "y", {"axis": -1}), (1, 4096), 1.0, False),
        (("AveragePool", "x", "y", {"kernel_shape": [2, 2]}), (1, 1, 8, 8), 1e3, False),
    ],
)
def test_case_2_a_large_sum_stays(node: Any, shape: tuple[int, ...], scale: float, kept: bool) -> None:
    constants = {"s": np.ones(shape[-1], np.float32), "last": np.int64([-1])}
    given = model([node], {name: value for name, value in constants.items() if name in node[1].split()}, shape)
    samples = [(scale * np.abs(RNG.standard_normal(shape)).astype(np.float32),)]
    found = halving._beyond_range(halving.prepare(given), samples, ["y"])
    assert found == ({"y": halving.OVERFLOW if node[0] == "ReduceSum" else halving.SUM} if kept else {})


def test_case_3_an_epsilon_that_becomes_0_stays() -> None:
    nodes = [("Mul", "x x", "s", {}), ("Add", "s eps", "e", {}), ("MatMul", "e a", "y", {})]
    plan = halving.choose_kept(model(nodes, {"eps": np.float32(1e-9), "a": EYE}), SAMPLES, 40.0)
    assert plan.kept == {"e": halving.VANISHED}


def test_case_4_a_difference_of_near_values_stays() -> None:
    nodes = [
        ("Add", "x far", "f", {}),
        ("Sub", "f far", "d", {}),
        ("MatMul", "d a", "m", {}),
        ("MatMul", "m a", "y", {}),
    ]
    given = model(nodes, {"far": np.float32(3000), "a": EYE})
    plan = halving.choose_kept(given, SAMPLES, 40.0)
    assert {"f", "d"} <= set(plan.kept)
    assert set(plan.kept.values()) == {halving.LOSS}
    assert plan.kept_layers < plan.layers
    assert plan.sqnr_db >= 40
    lost = halving._output_level(given, {}, SAMPLES, halving._Values(given, SAMPLES, ["y"]))
    assert lost < 20  # the planted failure


def test_case_4_judges_the_scores_before_an_output_of_integers() -> None:
    far = [("Add", "x far", "f", {}), ("Sub", "f far", "d", {}), ("MatMul", "d a", "m", {}), ("MatMul", "m a", "s", {})]
    given = model([*far, ("ArgMax", "s", "y", {"axis": 1})], {"far": np.float32(3000), "a": EYE})
    given.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 7, [1, 1]))
    plan = halving.choose_kept(given, SAMPLES, 40.0)
    assert {"f", "d"} <= set(plan.kept)  # as without ArgMax
    written = casts.write_types(given, plan.kept)
    assert types(written)["y"] == 7
    np.testing.assert_array_equal(run(written, *SAMPLES[0]), run(given, *SAMPLES[0]))
    shapes = model([("Shape", "x", "y", {})], {})
    shapes.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 7, [2]))
    assert halving.choose_kept(shapes, SAMPLES, 40.0).sqnr_db == 200  # no float value is computed


def test_overflow_everywhere_is_one_line() -> None:
    nodes = [("MatMul", "x a", "h", {}), ("MatMul", "h a", "y", {})]
    huge = [(1e6 * x,) for (x,) in SAMPLES]
    with pytest.raises(ExportError) as caught:
        halving.choose_kept(model(nodes, {"a": EYE}), huge, 40.0)
    said = "fp16 cannot hold this network: all 2 layers overflow, or lose more than 40 dB (h: its values overflow fp16)"
    assert str(caught.value) == f"{said}; choose fp32"


def test_a_mask_of_minus_infinity_stays_with_its_softmax() -> None:
    mask = np.array([[0, 0, 0, 0, -np.inf, -np.inf, -np.inf, -np.inf]], np.float32)
    nodes = [
        ("MatMul", "x a", "h", {}),
        ("Add", "h mask", "m", {}),
        ("Softmax", "m", "p", {}),
        ("MatMul", "p a", "y", {}),
    ]
    given = model(nodes, {"a": EYE, "mask": mask})
    plan = halving.choose_kept(given, SAMPLES, 40.0)
    assert set(plan.kept) == {"m", "p"}
    written = casts.write_types(given, plan.kept)
    np.testing.assert_allclose(run(written, *SAMPLES[0]), run(given, *SAMPLES[0]), atol=2e-3)


def test_operators_without_fp16_and_bounds_beyond_it() -> None:
    nodes = [
        ("Clip", "x low high", "c", {}),
        ("Resize", "c none scales", "r", {"mode": "nearest"}),
        ("Cast", "r", "i", {"to": 7}),
        ("Cast", "i", "y", {"to": 1}),
    ]
    constants = {
        "low": np.float32(-3e38),
        "high": np.float32(3e38),
        "none": np.float32([]),
        "scales": np.float32([1, 1, 2]),
    }
    given = model(nodes, constants, (1, 2, 8))
    sample = (100 * RNG.standard_normal((1, 2, 8)).astype(np.float32),)
    written = casts.write_types(given, halving.choose_kept(given, [sample], 40.0).kept)
    assert types(written)["c"] == 10
    constants = {value.name: value.data_type for value in written.graph.initializer}
    assert constants["scales"] == 1
    assert np.isfinite(run(written, *sample)).all()


def test_a_branch_reads_its_outer_values_in_fp32() -> None:
    body = lambda name: onnx.helper.make_graph(  # noqa: E731
        [onnx.helper.make_node(name, ["h"], [f"o_{name}"])],
        name,
        [],
        [onnx.helper.make_tensor_value_info(f"o_{name}", 1, [1, 8])],
    )
    nodes = [("MatMul", "x a", "h", {}), ("If", "c", "b", {"then_branch": body("Relu"), "else_branch": body("Neg")})]
    given = model([*nodes, ("MatMul", "b a", "y", {})], {"a": EYE, "c": np.bool_(True)})
    written = casts.write_types(given, ())
    assert (types(written)["h"], types(written)["b"]) == (10, 1)
    np.testing.assert_allclose(run(written, *SAMPLES[0]), run(given, *SAMPLES[0]), rtol=2e-3, atol=1e-3)


def quantised(weight_scale: Any, scale: float = 0.05) -> Any:
    nodes = [
        ("QuantizeLinear", "x s z", "q", {}),
        ("DequantizeLinear", "q s z", "d", {}),
        ("DequantizeLinear", "w ws wz", "v", {"axis": 1}),
        ("MatMul", "d v", "m", {}),
        ("Relu", "m", "y", {}),
    ]
    steps = RNG.integers(-127, 128, (8, 8)).astype(np.int8)
    constants = {"s": np.float32(scale), "z": np.int8(0), "w": steps, "ws": weight_scale, "wz": np.zeros(8, np.int8)}
    return model(nodes, constants, opset=19)


def test_cases_3_to_5_quantisers_take_fp16_scales() -> None:
    given = quantised(np.full(8, 1e-2, np.float32))
    written = casts.write_types(given, ())
    found = types(written)
    assert {found[name] for name in ("d", "v", "m")} == {10}
    np.testing.assert_allclose(run(written, *SAMPLES[0]), run(given, *SAMPLES[0]), rtol=5e-3, atol=5e-3)


def test_case_5_a_tiny_scale_does_not_become_0() -> None:
    tiny = np.array([1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], np.float32)
    given = quantised(tiny)
    written = casts.write_types(given, ())
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in written.graph.initializer}
    assert (constants["ws_half"] > 0).all()
    np.testing.assert_allclose(run(written, *SAMPLES[0]), run(given, *SAMPLES[0]), rtol=0.05, atol=1e-4)


def test_case_4_a_scale_that_fp16_cannot_hold_stays_in_fp32() -> None:
    written = casts.write_types(quantised(np.full(8, 1e-2, np.float32), 1e-8), ())
    found = types(written)
    assert (found["d"], found["d_half"]) == (1, 10)
