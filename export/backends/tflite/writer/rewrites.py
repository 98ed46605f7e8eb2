"""Simplify a model in place: fold scales into weights, fuse activations, merge reshapes. Call ``simplify(model)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.backends.tflite.writer.model import FUSED, Model, Operator, Value, constant_tensor

WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
_CARRIERS = {*WEIGHTED, "ADD", "SUB", "MUL", "MAX_POOL_2D", "AVERAGE_POOL_2D"}  # can end with a fused activation
_MOVES = {"RESHAPE", "TRANSPOSE"}
FUSION = "fusedActivationFunction"

_Rewrite = Callable[[Model, Operator], bool]


def simplify(model: Model) -> None:
    """Run all rewrites until none changes the model, then remove operators whose output is not read."""
    while any(_apply(model, rewrite) for rewrite in _REWRITES):
        pass
    _sweep(model)


def _apply(model: Model, rewrite: _Rewrite) -> bool:
    """Run one rewrite on every operator, and return whether it changed the model.

    A rewrite removes only the operator that it is given.
    """
    fired = False
    for operator in list(model.operators):
        if rewrite(model, operator):
            model.changed()
            fired = True
    return fired


def _fold_scale(model: Model, operator: Operator) -> bool:
    """Fold a MUL or ADD of a constant into the weights and bias of the weighted operator before it.

    1. The constant is one number, or has one entry for each channel of the output: folded.
    2. A RESHAPE or TRANSPOSE is between the two operators: folded if the constant is one number.
    3. The value has another reader, or an activation is between the two operators: unchanged.
    """
    numbers = _constant_operand(operator)
    if numbers is None:
        return False
    path = _path_to_weights(model, operator.activations[0], through_moves=numbers.size == 1)  # case 2
    if not path:  # case 3
        return False
    maker = model.makers[path[-1]]
    whole = operator.output[0].shape == operator.activations[0].shape
    if maker.options.get(FUSION) or not whole or not _per_channel(numbers, maker.output[0].shape[-1]):
        return False
    scale_weights(maker, numbers, is_offset=operator.kind == "ADD")  # case 1
    _inherit(model, operator, path)
    return True


def _constant_operand(operator: Operator) -> NDArray[Any] | None:
    """Return the constant of a MUL or ADD of one activation and one constant, else None."""
    if operator.kind not in ("MUL", "ADD") or len(operator.activations) != 1:
        return None
    return next(value.data for value in operator.inputs if value is not None and value.data is not None)


def _path_to_weights(model: Model, value: Value, *, through_moves: bool) -> list[Value]:
    """Return ``value`` and the values before it, back to the output of a weighted operator; empty if there is none.

    Every value on the path has one reader.
    """
    path: list[Value] = []
    while model.is_single(value) and value in model.makers:
        path.append(value)
        maker = model.makers[value]
        if maker.kind in WEIGHTED:
            return path
        if maker.kind not in _MOVES or not through_moves:
            break
        value = maker.activations[0]
    return []


def _fold_into_next(model: Model, operator: Operator) -> bool:
    """Fold a MUL or ADD of one number for each channel into the FULLY_CONNECTED after it, as after a layer norm.

    1. MUL: the weights of each input are scaled.
    2. ADD: the product of the weights and the offset is added to the bias.
    3. The value has a reader that is not a FULLY_CONNECTED over its last axis: unchanged.
    """
    numbers = _constant_operand(operator)
    if numbers is None or operator.options.get(FUSION):
        return False
    result, source = operator.output[0], operator.activations[0]
    users = model.readers.get(result, [])
    if not users or result in model.outputs or result.shape != source.shape:
        return False
    if not _per_channel(numbers, result.shape[-1]) or not all(_reads_channels(user, result) for user in users):
        return False  # case 3
    entries = np.broadcast_to(numbers.reshape(-1), result.shape[-1]).astype(np.float64)
    for user in users:
        weight = user.inputs[1]
        assert weight is not None
        assert weight.data is not None
        if operator.kind == "MUL":  # case 1
            user.inputs[1] = constant_tensor((weight.data * entries).astype(np.float32))
        else:  # case 2
            _set_bias(user, _bias(user) + weight.data.astype(np.float64) @ entries)
        user.inputs[0] = source
    model.operators.remove(operator)
    return True


def _fuse_activation(model: Model, operator: Operator) -> bool:
    """Fuse RELU, RELU6 or RELU_N1_TO_1 with the operator before it, if nothing else reads that operator's output."""
    if operator.kind not in FUSED:
        return False
    source = operator.activations[0]
    maker = model.makers.get(source)
    if maker is None or maker.kind not in _CARRIERS or maker.options.get(FUSION):
        return False
    if not model.is_single(source):
        return False
    maker.options[FUSION] = FUSED[operator.kind]
    _inherit(model, operator, [source])
    return True


def _merge_moves(model: Model, operator: Operator) -> bool:
    """Remove a RESHAPE or TRANSPOSE that is not needed.

    1. RESHAPE to the shape, or TRANSPOSE to the order, that the value already has: removed.
    2. RESHAPE after RESHAPE, or TRANSPOSE after TRANSPOSE: merged into one.
    3. RESHAPE that drops the axes that a MEAN or SUM kept: the MEAN or SUM drops them.
    4. RESHAPE to two axes before FULLY_CONNECTED, which flattens its input: removed.
    """
    if operator.kind not in _MOVES:
        return False
    source, result = operator.activations[0], operator.output[0]
    if result in model.outputs and source in (*model.inputs, *model.outputs):
        return False
    cases = (_drop_idle, _merge_equal, _drop_kept_axes, _drop_flattening)  # cases 1 to 4
    return any(case(model, operator) for case in cases)


def _drop_idle(model: Model, operator: Operator) -> bool:
    source, result = operator.activations[0], operator.output[0]
    if operator.kind == "RESHAPE":
        idle = source.shape == result.shape
    else:
        order = np.asarray(operator.inputs[1].data)  # type: ignore[union-attr]
        idle = bool((order == np.arange(len(order))).all())
    if idle:
        _redirect(model, operator, source)
    return idle


def _merge_equal(model: Model, operator: Operator) -> bool:
    maker = model.makers.get(operator.activations[0])
    if maker is None or maker.kind != operator.kind:
        return False
    operator.inputs[0] = maker.activations[0]
    if operator.kind == "TRANSPOSE":
        first, second = (np.asarray(each.inputs[1].data) for each in (maker, operator))  # type: ignore[union-attr]
        operator.inputs[1] = constant_tensor(first[second])
    return True


def _drop_kept_axes(model: Model, operator: Operator) -> bool:
    source, result = operator.activations[0], operator.output[0]
    maker = model.makers.get(source)
    if operator.kind != "RESHAPE" or maker is None or maker.kind not in ("MEAN", "SUM"):
        return False
    axes = np.asarray(maker.inputs[1].data) % len(source.shape)  # type: ignore[union-attr]
    left = tuple(size for axis, size in enumerate(source.shape) if axis not in axes)
    if not model.is_single(source) or not maker.options["keepDims"] or result.shape != left:
        return False
    maker.options["keepDims"] = False
    _inherit(model, operator, [source])
    return True


def _drop_flattening(model: Model, operator: Operator) -> bool:
    result = operator.output[0]
    if operator.kind != "RESHAPE" or len(result.shape) != 2 or result in model.outputs:
        return False
    users = model.readers.get(result, [])
    if not users or not all(user.kind == "FULLY_CONNECTED" and not user.options["keepNumDims"] for user in users):
        return False
    _redirect(model, operator, operator.activations[0])
    return True


_REWRITES: tuple[_Rewrite, ...] = (_merge_moves, _fold_scale, _fold_into_next, _fuse_activation)


def scale_weights(operator: Operator, numbers: NDArray[np.float32], *, is_offset: bool) -> None:
    """Change weights and bias so that the output of a weighted operator is multiplied by ``numbers``.

    numbers: one number, or one for each output channel.
    is_offset: True adds ``numbers`` to the output instead.
    """
    weight, bias = operator.inputs[1], _bias(operator)
    assert weight is not None
    assert weight.data is not None
    entries = np.broadcast_to(numbers.reshape(-1), len(bias)).astype(np.float64)
    if is_offset:
        _set_bias(operator, bias + entries)
        return
    along = entries if operator.kind == "DEPTHWISE_CONV_2D" else entries.reshape(-1, *[1] * (weight.data.ndim - 1))
    operator.inputs[1] = constant_tensor((weight.data * along).astype(np.float32))
    _set_bias(operator, bias * entries)


def _bias(operator: Operator) -> NDArray[np.float64]:
    found = operator.inputs[2] if len(operator.inputs) > 2 else None
    if found is None or found.data is None:
        return np.zeros(operator.output[0].shape[-1])
    return found.data.astype(np.float64)


def _set_bias(operator: Operator, numbers: NDArray[np.float64]) -> None:
    if len(operator.inputs) > 2 or numbers.any():
        operator.inputs[2:] = [constant_tensor(numbers.astype(np.float32))]


def _reads_channels(user: Operator, value: Value) -> bool:
    if user.kind != "FULLY_CONNECTED" or user.inputs[0] is not value or user.inputs[1] is None:
        return False
    return user.inputs[1].data is not None and user.inputs[1].shape[-1] == value.shape[-1]


def _per_channel(numbers: NDArray[Any], channels: int) -> bool:
    """Return whether there is one number, or one for each entry of the last axis."""
    return numbers.size == 1 or (numbers.size == channels == numbers.shape[-1])


def _inherit(model: Model, operator: Operator, path: list[Value]) -> None:
    """Remove ``operator``, whose effect the operator behind ``path`` now has.

    path: the values from the input of ``operator`` back; they get the range of its output.
    """
    result = operator.output[0]
    for value in path:
        value.range = result.range
    if operator.kind == "RESHAPE":
        path[0].shape = result.shape
    if operator.options.get(FUSION):
        maker = model.makers[path[-1]]
        maker.options[FUSION] = operator.options[FUSION]
    _redirect(model, operator, path[0])


def _redirect(model: Model, operator: Operator, value: Value) -> None:
    """Remove ``operator``. The readers of its output read ``value`` instead."""
    result = operator.output[0]
    model.operators.remove(operator)
    for other in model.operators:
        other.inputs = [value if each is result else each for each in other.inputs]
    model.outputs = [value if each is result else each for each in model.outputs]


def _sweep(model: Model) -> None:
    """Remove operators whose output is not read."""
    needed = set(model.outputs)
    kept: list[Operator] = []
    for operator in reversed(model.operators):
        if needed & set(operator.output):
            needed |= set(operator.activations)
            kept.append(operator)
    model.operators = kept[::-1]
    model.changed()
