"""Quantise a float model to int8 where XNNPACK computes in int8: ``quantise_operators(model, leave)``.

Quantisation is static: one scale for each output channel of a weight, and one scale for each activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.backends.tflite.writer.int8_rewrites import prepare_int8
from hnas.export.backends.tflite.writer.model import Model, Operator, Scale, Value, constant_tensor
from hnas.export.backends.tflite.writer.rewrites import WEIGHTED

_WEIGHTED = {*WEIGHTED, "TRANSPOSE_CONV"}
# Data-movement operators: the output keeps the input's scale.
_MOVING = {"RESHAPE", "TRANSPOSE", "SLICE", "SPLIT", "PAD", "MAX_POOL_2D", "DEPTH_TO_SPACE", "CONCATENATION"}
# Operators in int8 only if an input is in int8. Otherwise the conversion costs more time than int8 saves.
_FOLLOWING = {"ADD", "SUB", "MUL", "LOGISTIC", "TANH", "MEAN", "LEAKY_RELU", "RELU", "RELU6", "AVERAGE_POOL_2D"}
_RECTIFIERS = {"RELU", "RELU6"}  # if no operator before them absorbed them
# These stay in float for vectors. That costs no time, and a recurrent state would accumulate int8 errors (8 dB).
_GATES = {"ADD", "SUB", "MUL", "LOGISTIC", "TANH"}
FIXED = {"LOGISTIC": Scale(np.array([1 / 256], np.float32), -128), "TANH": Scale(np.array([1 / 128], np.float32))}
_RATIOS = {"ADD": (-10, 8), "SUB": (-10, 8), "MUL": (-16, 8)}  # XNNPACK rescales between these powers of 2
SYMMETRIC, LEVELS = 127, 255
_SMALL_END = 4096  # weights; a last product up to this size stays in float: no time, and 4 dB less noise


def quantise_operators(model: Model, leave: frozenset[str] = frozenset()) -> None:
    """Change ``model`` to int8 in place. Its values must have their ranges.

    1. Convolutions and products with constant weights, whose input and output ranges are known: int8. A small last
       product stays in float.
    2. Sums, gates, means and data movements with int8 inputs: int8.
    3. Norms that no convolution absorbed (a factor and an offset for each channel) and averages over a window:
       depthwise convolutions in int8, whose weights have a scale for each channel.
    4. Rectifiers that no operator absorbed: a change of scale that saturates.
    5. Everything else, and the inputs and outputs of the model: float. HARD_SWISH, GELU, SOFTMAX, BATCH_MATMUL and the
       parts of a layer norm have no int8 kernel in XNNPACK, and would split the graph.

    leave: kinds of operators that stay in float, like operators marked ``kept``.
    """
    prepare_int8(model, leave)  # case 3
    chosen = _choose(model, leave)
    _widen_joined(model, chosen)
    _Writer(model, chosen).write()


def scale_of(seen: tuple[float, float]) -> Scale:
    """Return the scale of 256 levels over the range ``seen`` (lowest, highest), widened to include 0."""
    low, high = min(seen[0], 0.0), max(seen[1], 0.0)
    step = (high - low) / LEVELS or 1.0
    step = max(step, 1e-30)
    zero = int(np.clip(round(-128 - low / step), -128, 127))
    return Scale(np.array([step], np.float32), zero)


def _choose(model: Model, leave: frozenset[str]) -> set[Operator]:
    """Return the operators that compute in int8."""
    chosen = _computable(model, leave)
    _leave_float_sums(model, chosen)
    _add_moves(model, chosen, leave)
    return chosen


def _computable(model: Model, leave: frozenset[str]) -> set[Operator]:
    """Return the operators that can compute in int8, and have int8 inputs if their kind requires it."""
    chosen: set[Operator] = set()
    integer: set[Value] = set()
    for operator in model.operators:
        kept = operator.kept or operator.kind in leave or _is_small_end(model, operator)
        if not kept and _fits(operator) and _joins(operator, integer):
            chosen.add(operator)
            integer |= set(operator.output)
    return chosen


def _leave_float_sums(model: Model, chosen: set[Operator]) -> None:
    """Remove sums and products that only float operators read: int8 saves no time there, and loses 5 dB in a ViT."""
    for operator in reversed(model.operators):
        users = _users(model, operator)
        if operator.kind in ("ADD", "SUB", "MUL") and users and not chosen & set(users):
            chosen.discard(operator)


def _add_moves(model: Model, chosen: set[Operator], leave: frozenset[str]) -> None:
    """Add data movements that only int8 operators read."""
    for operator in reversed(model.operators):
        users = _users(model, operator)
        may = operator.kind in _MOVING - leave and not operator.kept and _fits(operator)
        if may and users and set(users) <= chosen:
            chosen.add(operator)


def _users(model: Model, operator: Operator) -> list[Operator]:
    return [user for value in operator.output for user in model.readers.get(value, [])]


def _is_small_end(model: Model, operator: Operator) -> bool:
    weight = operator.inputs[1] if operator.kind == "FULLY_CONNECTED" else None
    return weight is not None and operator.output[0] in model.outputs and math.prod(weight.shape) <= _SMALL_END


def _joins(operator: Operator, integer: set[Value]) -> bool:
    if operator.kind in _WEIGHTED:  # case 1
        weight = operator.inputs[1]
        return weight is not None and weight.data is not None
    if operator.kind in _MOVING:  # case 2
        return all(value in integer for value in operator.activations)
    if operator.kind in _GATES and len(operator.output[0].shape) < 3:
        return False
    return operator.kind in _FOLLOWING and any(value in integer for value in operator.activations)  # cases 2 and 4


def _fits(operator: Operator) -> bool:
    """Return whether all ranges are known, and XNNPACK can rescale between them."""
    values = [*operator.activations, *operator.output]
    if any(value.range is None or value.dtype != "float32" for value in values):
        return False
    if operator.kind == "AVERAGE_POOL_2D" or operator.kind not in _RATIOS:
        return operator.kind != "AVERAGE_POOL_2D"
    steps = [_step(value) for value in operator.inputs if value is not None]
    result, (low, high) = _step(operator.output[0]), _RATIOS[operator.kind]
    sources = [math.prod(steps)] if operator.kind == "MUL" else steps
    return all(2.0**low <= source / result < 2.0**high for source in sources)


def _step(value: Value) -> float:
    return float(scale_of(_seen(value)).scale[0])


def _seen(value: Value) -> tuple[float, float]:
    if value.data is not None:
        return float(value.data.min()), float(value.data.max())
    assert value.range is not None
    return value.range


def _widen_joined(model: Model, chosen: set[Operator]) -> None:
    """Give the parts of a concatenation the range of the whole, so that all parts are computed at one scale."""
    for operator in reversed(model.operators):
        if operator.kind != "CONCATENATION" or operator not in chosen:
            continue
        ends = [_seen(value) for value in (*operator.inputs, operator.output[0]) if value is not None]
        whole = min(low for low, _ in ends), max(high for _, high in ends)
        operator.output[0].range = whole
        for value in operator.activations:
            while model.is_single(value):
                maker = model.makers.get(value)
                if maker is not None and maker.kind in _RECTIFIERS:  # it saturates at the ends of its range
                    break
                value.range = whole
                if maker is None or maker.kind not in _MOVING:
                    break
                (value, *_) = maker.activations


class _Writer:
    """Rewrite the chosen operators in int8, and add each conversion between int8 and float once."""

    def __init__(self, model: Model, chosen: set[Operator]) -> None:
        self.model, self.chosen = model, chosen
        self._written: list[Operator] = []
        self._changed: dict[tuple[Value, str], Value] = {}

    def write(self) -> None:
        for operator in self.model.operators:
            if operator in self.chosen:
                self._integer(operator)
            else:  # case 5
                operator.inputs = [self._float(value) for value in operator.inputs]
                self._written.append(operator)
        self.model.outputs = [self._output(value) for value in self.model.outputs]
        self.model.operators = self._written

    def _integer(self, operator: Operator) -> None:
        write: Callable[[Operator], None] = self._follow
        if operator.kind in _WEIGHTED:
            write = self._weighted
        elif operator.kind in _MOVING:
            write = self._move
        elif operator.kind in _RECTIFIERS:
            write = self._rectify
        write(operator)
        self._written.append(operator)

    def _weighted(self, operator: Operator) -> None:
        source_at, bias_at = (2, 3) if operator.kind == "TRANSPOSE_CONV" else (0, 2)
        source = self._quantised(operator.inputs[source_at])
        result = self._result(operator)
        weight, axis = operator.inputs[1], 3 if operator.kind == "DEPTHWISE_CONV_2D" else 0
        bias = operator.inputs[bias_at] if len(operator.inputs) > bias_at else None
        assert weight is not None
        assert weight.data is not None
        sums = None if bias is None or bias.data is None else bias.data.astype(np.float64)
        steps = _weight_steps(weight.data, axis, sums, _step_of(source), _step_of(result))
        shape = [-1 if each == axis else 1 for each in range(weight.data.ndim)]
        levels = np.rint(weight.data / steps.reshape(shape)).clip(-SYMMETRIC, SYMMETRIC).astype(np.int8)
        by_channel = steps.astype(np.float32)
        operator.inputs[source_at] = source
        operator.inputs[1] = _constant(levels, Scale(by_channel, 0, axis))
        if bias is not None:
            units = by_channel.astype(np.float64) * _step_of(source)
            whole = np.rint((np.zeros(len(steps)) if sums is None else sums) / units).astype(np.int32)
            operator.inputs[bias_at] = _constant(whole, Scale(units.astype(np.float32)))

    def _move(self, operator: Operator) -> None:
        if operator.kind == "CONCATENATION":  # a part of it may be constant
            scale: Scale | None = scale_of(_seen(operator.output[0]))
            operator.inputs = [self._quantised(value, scale) for value in operator.inputs]
        else:
            source = self._quantised(operator.activations[0])
            scale = source.scale
            operator.inputs = [source if value in operator.activations else value for value in operator.inputs]
        for value in operator.output:
            value.dtype, value.scale = "int8", scale

    def _rectify(self, operator: Operator) -> None:  # case 4
        operator.inputs = [self._quantised(operator.inputs[0])]
        operator.kind, operator.options = "QUANTIZE", {}
        self._result(operator)

    def _follow(self, operator: Operator) -> None:
        axes = operator.inputs[1:] if operator.kind == "MEAN" else []
        read = operator.inputs[:1] if axes else operator.inputs
        operator.inputs = [*(self._quantised(value) for value in read), *axes]
        self._result(operator)

    def _result(self, operator: Operator) -> Value:
        (value,) = operator.output
        value.dtype, value.scale = "int8", FIXED.get(operator.kind) or scale_of(_seen(value))
        return value

    def _quantised(self, value: Value | None, scale: Scale | None = None) -> Value:
        """Return ``value`` in int8, through a QUANTIZE if needed.

        scale: the scale of the result; None for the scale of ``value``, or of its range.
        """
        assert value is not None
        scale = scale or value.scale or scale_of(_seen(value))
        if value.data is not None:
            levels = np.rint(value.data / scale.scale[0]) + scale.zero
            return _constant(levels.clip(-128, 127).astype(np.int8), scale)
        if value.scale is not None and _equal(value.scale, scale):
            return value
        return self._change(value, f"QUANTIZE {scale.scale[0]} {scale.zero}", "int8", scale)

    def _float(self, value: Value | None) -> Value | None:
        if value is None or value.scale is None or value.data is not None:
            return value
        return self._change(value, "DEQUANTIZE", "float32", None)

    def _change(self, value: Value, key: str, dtype: str, scale: Scale | None) -> Value:
        if (value, key) not in self._changed:
            made = Value(value.shape, dtype, range=value.range, scale=scale)
            self._written.append(Operator(key.split(maxsplit=1)[0], [value], [made]))
            self._changed[value, key] = made
        return self._changed[value, key]

    def _output(self, value: Value) -> Value:
        found = self._float(value)
        assert found is not None
        return found


def _weight_steps(
    weight: NDArray[Any], axis: int, bias: NDArray[np.float64] | None, source: float, result: float
) -> NDArray[np.float64]:
    """Return the step of each channel along ``axis``; ``source`` and ``result`` are the steps of the activations."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    steps = np.abs(weight).max(others).astype(np.float64) / SYMMETRIC
    # XNNPACK rescales by at least 2^-32, and a bias has 32 bits. So too small steps are enlarged.
    steps = np.maximum(steps, result / source * 2.0**-31)
    return np.asarray(steps if bias is None else np.maximum(steps, np.abs(bias) / source / 2**30))


def _step_of(value: Value) -> float:
    assert value.scale is not None
    return float(value.scale.scale[0])


def _constant(levels: NDArray[Any], scale: Scale) -> Value:
    made = constant_tensor(levels)
    made.scale = scale
    return made


def _equal(one: Scale, other: Scale) -> bool:
    return one.zero == other.zero and bool(one.scale[0] == other.scale[0])
