"""Rewrite float operators in place so that int8 is faster or more accurate. Call ``prepare_int8(model, leave)``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.backends.tflite.writer.model import FUSED, Model, Operator, Value, constant_tensor
from hnas.export.backends.tflite.writer.rewrites import FUSION, scale_weights

VALID = 1  # the schema's number for no padding


def prepare_int8(model: Model, leave: frozenset[str]) -> None:
    """Rewrite operators for int8.

    1. A product after a RELU6 convolution, as in a hard sigmoid: its factor is folded into the weights.
    2. An average over windows inside the map: a depthwise convolution.
    3. A sum and a product by channel, as in a norm that no convolution absorbed: a depthwise convolution, whose weights
       have a scale for each channel.

    leave: kinds of operators that stay in float.
    """
    for operator in list(model.operators):
        # case 1
        if operator.kind == "MUL" and _takes_factor(model, operator, leave):
            maker = model.makers[operator.activations[0]]
            scale_weights(maker, _constant_of(operator), is_offset=False)
            del maker.options[FUSION]
            maker.output = operator.output
            model.operators.remove(operator)
            model.changed()
    for index, operator in enumerate(model.operators):
        # cases 2 and 3
        if not operator.kept:
            model.operators[index] = _averaged(operator) or _normed(model, operator) or operator
    used = set(model.outputs).union(*(operator.activations for operator in model.operators))
    model.operators = [operator for operator in model.operators if used & set(operator.output)]
    model.changed()


def _averaged(operator: Operator) -> Operator | None:
    """Return the depthwise convolution for an average over windows inside the map (case 2); None for anything else."""
    if operator.kind != "AVERAGE_POOL_2D" or operator.options["padding"] != VALID:
        return None
    height, width, channels = (operator.options["filterHeight"], operator.options["filterWidth"], _channels(operator))
    weights = np.full((1, height, width, channels), 1 / (height * width), np.float32)
    return _depthwise(operator, operator.activations[0], weights, np.zeros(channels, np.float32))


def _normed(model: Model, operator: Operator) -> Operator | None:
    """Return the depthwise convolution for a product and a sum by channel (case 3); None for anything else."""
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
    """Return whether the positive factor of a product can be folded into the convolution before it (case 1)."""
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
    """Return the constant of a sum or product if it has one number for each channel, else None."""
    found, channels = _constant_of(operator), _channels(operator)
    return found if len(operator.activations) == 1 and found.size == found.shape[-1] == channels else None


def _channels(operator: Operator) -> int:
    return operator.output[0].shape[-1]


def _depthwise(operator: Operator, source: Value, weights: NDArray[Any], bias: NDArray[Any]) -> Operator:
    options = {"depthMultiplier": 1, "padding": VALID, "strideH": 1, "strideW": 1}
    options |= {key: value for key, value in operator.options.items() if key in ("strideH", "strideW", FUSION)}
    return Operator(
        "DEPTHWISE_CONV_2D", [source, constant_tensor(weights), constant_tensor(bias)], operator.output, options
    )
