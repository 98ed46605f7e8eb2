"""A float model into int8 where XNNPACK computes in it: static, per-channel weights, one scale for an activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.backends.tflite.writer.model import FUSED, Model, Operator, Scale, Value, constant
from hnas.export.backends.tflite.writer.rewrites import FUSION, scale_weights

WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
# They give elements of their input: the scale stays.
_MOVING = {"RESHAPE", "TRANSPOSE", "SLICE", "SPLIT", "PAD", "MAX_POOL_2D", "DEPTH_TO_SPACE", "CONCATENATION"}
# int8 where what they read is: alone they are not worth the change of numbers.
_FOLLOWING = {"ADD", "SUB", "MUL", "LOGISTIC", "TANH", "MEAN", "LEAKY_RELU", "RELU", "RELU6", "AVERAGE_POOL_2D"}
_RECTIFIERS = {"RELU", "RELU6"}  # those that no operator before could end with
# Of vectors they stay float: it takes no time, and the state of a recurrent cell keeps what each step adds (8 dB).
_GATES = {"ADD", "SUB", "MUL", "LOGISTIC", "TANH"}
FIXED = {"LOGISTIC": Scale(np.array([1 / 256], np.float32), -128), "TANH": Scale(np.array([1 / 128], np.float32))}
_RATIOS = {"ADD": (-10, 8), "SUB": (-10, 8), "MUL": (-16, 8)}  # powers of 2 between which XNNPACK rescales
SYMMETRIC, LEVELS = 127, 255
VALID = 1  # the schema's word for no padding
_SMALL_END = 4096  # weights; a last product of so few stays float: no time, few bytes, and 4 dB of the outputs' noise


def quantise(model: Model, leave: frozenset[str] = frozenset()) -> None:
    """Change ``model``, whose values know their ranges, to int8.

    1. Convolutions and products with constant weights, and input and output of a known range: int8, but for a small
       last product.
    2. Sums, gates, means and moves of what is int8: int8. All else stays float, as do inputs and outputs: HARD_SWISH,
       GELU, SOFTMAX, BATCH_MATMUL and the parts of a layer norm have no int8 kernel there, and would cut the graph.
       So does what is ``kept``, and kinds in ``leave``.
    3. A normalisation that is left (factor, then offset, for each channel) and an average over a window: depthwise
       convolutions, whose weights have a scale for each channel. 4. A rectifier: a change of scale that saturates.
    """
    _rephrase(model, leave)
    chosen = _choose(model, leave)
    _widen_joined(model, chosen)
    _Writer(model, chosen).write()


def scale_of(seen: tuple[float, float]) -> Scale:
    """256 levels from the lowest to the highest value, 0 among them."""
    low, high = min(seen[0], 0.0), max(seen[1], 0.0)
    step = (high - low) / LEVELS or 1.0
    step = max(step, 1e-30)
    zero = int(np.clip(round(-128 - low / step), -128, 127))
    return Scale(np.array([step], np.float32), zero)


def _rephrase(model: Model, leave: frozenset[str]) -> None:
    """What whole numbers say better: a hard sigmoid's factor in its weights, scales by channel in depthwise ones."""
    for operator in list(model.operators):
        if operator.kind == "MUL" and _takes_factor(model, operator, leave):
            maker = model.makers[operator.activations[0]]
            scale_weights(maker, _constant_of(operator), is_offset=False)
            del maker.options[FUSION]
            maker.output = operator.output
            model.operators.remove(operator)
            model.changed()
    for index, operator in enumerate(model.operators):
        if not operator.kept:
            model.operators[index] = _averaged(operator) or _normed(model, operator) or operator
    used = set(model.outputs).union(*(operator.activations for operator in model.operators))
    model.operators = [operator for operator in model.operators if used & set(operator.output)]
    model.changed()


def _averaged(operator: Operator) -> Operator | None:
    """An average over windows that stay inside the map."""
    if operator.kind != "AVERAGE_POOL_2D" or operator.options["padding"] != VALID:
        return None
    height, width, channels = (operator.options["filterHeight"], operator.options["filterWidth"], _channels(operator))
    weights = np.full((1, height, width, channels), 1 / (height * width), np.float32)
    return _depthwise(operator, operator.activations[0], weights, np.zeros(channels, np.float32))


def _normed(model: Model, operator: Operator) -> Operator | None:
    """A sum by channel whose only other operand is a product by channel: the norm that no convolution took up."""
    if operator.kind != "ADD" or len(operator.output[0].shape) != 4 or len(operator.activations) != 1:
        return None
    (product,) = operator.activations
    maker = model.makers.get(product)
    if maker is None or maker.kind != "MUL" or maker.options.get(FUSION) or not model.is_single(product):
        return None
    factor, offset = _by_channel(maker), _by_channel(operator)
    if factor is None or offset is None:
        return None
    return _depthwise(operator, maker.activations[0], factor.reshape(1, 1, 1, -1), offset.reshape(-1))


def _takes_factor(model: Model, operator: Operator, leave: frozenset[str]) -> bool:
    if len(operator.activations) != 1 or operator.options.get(FUSION) or _constant_of(operator).size != 1:
        return False
    (source,) = operator.activations
    maker = model.makers.get(source)
    if maker is None or maker.kept or maker.kind not in {"CONV_2D", "DEPTHWISE_CONV_2D"} - leave:
        return False
    if not model.is_single(source):
        return False
    known = maker.inputs[0] is not None and maker.inputs[0].range is not None and operator.output[0].range is not None
    return known and maker.options.get(FUSION) == FUSED["RELU6"] and _constant_of(operator).item() > 0


def _constant_of(operator: Operator) -> NDArray[Any]:
    found = [value.data for value in operator.inputs if value is not None and value.data is not None]
    return found[0] if found else np.zeros(0)


def _by_channel(operator: Operator) -> NDArray[Any] | None:
    """The constant of a sum or product where it has a number for each channel of a map."""
    found, channels = _constant_of(operator), _channels(operator)
    return found if len(operator.activations) == 1 and found.size == found.shape[-1] == channels else None


def _channels(operator: Operator) -> int:
    return operator.output[0].shape[-1]


def _depthwise(operator: Operator, source: Value, weights: NDArray[Any], bias: NDArray[Any]) -> Operator:
    options = {"depthMultiplier": 1, "padding": VALID, "strideH": 1, "strideW": 1}
    options |= {key: value for key, value in operator.options.items() if key in ("strideH", "strideW", FUSION)}
    return Operator("DEPTHWISE_CONV_2D", [source, constant(weights), constant(bias)], operator.output, options)


def _choose(model: Model, leave: frozenset[str]) -> set[Operator]:
    """The operators that compute in int8."""
    chosen: set[Operator] = set()
    integer: set[Value] = set()
    for operator in model.operators:
        kept = operator.kept or operator.kind in leave or _is_small_end(model, operator)
        if not kept and _fits(operator) and _joins(operator, integer):
            chosen.add(operator)
            integer |= set(operator.output)
    for operator in reversed(model.operators):  # what is read in float only: it costs the same, and loses 5 dB in a ViT
        users = [user for value in operator.output for user in model.readers.get(value, [])]
        if operator.kind in ("ADD", "SUB", "MUL") and users and not chosen & set(users):
            chosen.discard(operator)
    for operator in reversed(model.operators):  # what is moved on its way into int8 is moved as int8
        users = [user for value in operator.output for user in model.readers.get(value, [])]
        may = operator.kind in _MOVING - leave and not operator.kept and _fits(operator)
        if may and users and set(users) <= chosen:
            chosen.add(operator)
    return chosen


def _is_small_end(model: Model, operator: Operator) -> bool:
    weight = operator.inputs[1] if operator.kind == "FULLY_CONNECTED" else None
    return weight is not None and operator.output[0] in model.outputs and math.prod(weight.shape) <= _SMALL_END


def _joins(operator: Operator, integer: set[Value]) -> bool:
    if operator.kind in WEIGHTED:
        weight = operator.inputs[1]
        return weight is not None and weight.data is not None
    if operator.kind in _MOVING:
        return all(value in integer for value in operator.activations)
    if operator.kind in _GATES and len(operator.output[0].shape) < 3:
        return False
    return operator.kind in _FOLLOWING and any(value in integer for value in operator.activations)


def _fits(operator: Operator) -> bool:
    """Whether all ranges are known, and lie so that XNNPACK can change one scale into the other."""
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
    """Parts that are joined get one range, so that they are computed at the scale of the whole."""
    for operator in reversed(model.operators):
        if operator.kind != "CONCATENATION" or operator not in chosen:
            continue
        ends = [_seen(value) for value in (*operator.inputs, operator.output[0]) if value is not None]
        whole = min(low for low, _ in ends), max(high for _, high in ends)
        operator.output[0].range = whole
        for value in operator.activations:
            while model.is_single(value):
                maker = model.makers.get(value)
                if maker is not None and maker.kind in _RECTIFIERS:  # the ends of its own range are where it saturates
                    break
                value.range = whole
                if maker is None or maker.kind not in _MOVING:
                    break
                (value, *_) = maker.activations


class _Writer:
    """Writes the operators anew, with changes of numbers in between, each at most once."""

    def __init__(self, model: Model, chosen: set[Operator]) -> None:
        self.model, self.chosen = model, chosen
        self._written: list[Operator] = []
        self._changed: dict[tuple[Value, str], Value] = {}

    def write(self) -> None:
        for operator in self.model.operators:
            if operator in self.chosen:
                self._integer(operator)
            else:
                operator.inputs = [self._float(value) for value in operator.inputs]
                self._written.append(operator)
        self.model.outputs = [self._output(value) for value in self.model.outputs]
        self.model.operators = self._written

    def _integer(self, operator: Operator) -> None:
        write: Callable[[Operator], None] = self._follow
        if operator.kind in WEIGHTED:
            write = self._weighted
        elif operator.kind in _MOVING:
            write = self._move
        elif operator.kind in _RECTIFIERS:
            write = self._rectify
        write(operator)
        self._written.append(operator)

    def _weighted(self, operator: Operator) -> None:
        at = 2 if operator.kind == "TRANSPOSE_CONV" else 0
        source = self._quantised(operator.inputs[at])
        result = self._result(operator)
        weight, axis = operator.inputs[1], 3 if operator.kind == "DEPTHWISE_CONV_2D" else 0
        assert weight is not None
        assert weight.data is not None
        assert source.scale is not None
        others = tuple(each for each in range(weight.data.ndim) if each != axis)
        steps = np.abs(weight.data).max(others).astype(np.float64) / SYMMETRIC
        ratio = float(result.scale.scale[0]) / float(source.scale.scale[0])  # type: ignore[union-attr]
        bias = operator.inputs[at + (1 if at else 2)] if len(operator.inputs) > (3 if at else 2) else None
        numbers = np.zeros(len(steps)) if bias is None or bias.data is None else bias.data.astype(np.float64)
        # XNNPACK rescales by 2^-32 at the least, and a bias has 32 bits.
        steps = np.maximum(steps, ratio * 2.0**-31)
        steps = np.maximum(steps, np.abs(numbers) / float(source.scale.scale[0]) / 2**30)
        shape = [-1 if each == axis else 1 for each in range(weight.data.ndim)]
        levels = np.rint(weight.data / steps.reshape(shape)).clip(-SYMMETRIC, SYMMETRIC).astype(np.int8)
        by_channel = steps.astype(np.float32)
        operator.inputs[at] = source
        operator.inputs[1] = _constant(levels, Scale(by_channel, 0, axis))
        if bias is not None:
            units = by_channel.astype(np.float64) * float(source.scale.scale[0])
            value = _constant(np.rint(numbers / units).astype(np.int32), Scale(units.astype(np.float32)))
            operator.inputs[3 if at else 2] = value

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

    def _rectify(self, operator: Operator) -> None:
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
        """``value`` in int8: as it is, or by a QUANTIZE; at ``scale`` where one is given."""
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


def _constant(levels: NDArray[Any], scale: Scale) -> Value:
    made = constant(levels)
    made.scale = scale
    return made


def _equal(one: Scale, other: Scale) -> bool:
    return one.zero == other.zero and bool(one.scale[0] == other.scale[0])
