"""What a written model does not need: scales beside a weight, activations of their own, moves in a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hnas.export.backends.tflite.writer.model import FUSED, Model, Operator, Value, constant

WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
_CARRIERS = {*WEIGHTED, "ADD", "SUB", "MUL", "MAX_POOL_2D", "AVERAGE_POOL_2D"}  # of a fused activation
MOVES = {"RESHAPE", "TRANSPOSE"}
FUSION = "fusedActivationFunction"

_Rewrite = Callable[[Model, Operator], bool]


def simplify(model: Model) -> None:
    """Run every rewrite until none fires; each changes ``model`` and says whether it did."""
    while any(_apply(model, rewrite) for rewrite in _REWRITES):
        pass
    _sweep(model)


def _apply(model: Model, rewrite: _Rewrite) -> bool:
    """Try one rewrite on every operator; it removes no other than the one it is given."""
    fired = False
    for operator in list(model.operators):
        if rewrite(model, operator):
            model.changed()
            fired = True
    return fired


def _fold_scale(model: Model, operator: Operator) -> bool:
    """MUL or ADD of a constant after a weighted operator: into its weights and bias.

    1. The constant is a number or has one entry for each channel of the output.
    2. Between the two only the value is moved: a number is folded all the same.
    3. Something else reads the value, or it went through an activation: left alone.
    """
    if operator.kind not in ("MUL", "ADD") or len(operator.activations) != 1:
        return False
    numbers = next(value for value in operator.inputs if value is not None and value.data is not None)
    source = operator.activations[0]
    path: list[Value] = []
    while model.is_single(source) and source in model.makers:
        path.append(source)
        maker = model.makers[source]
        if maker.kind in WEIGHTED:
            break
        if maker.kind not in MOVES or numbers.data is None or numbers.data.size != 1:
            return False
        source = maker.activations[0]
    else:
        return False
    whole = operator.output[0].shape == operator.activations[0].shape
    if maker.options.get(FUSION) or not whole or not _per_channel(numbers, maker.output[0].shape[-1]):
        return False
    assert numbers.data is not None
    scale_weights(maker, numbers.data, is_offset=operator.kind == "ADD")
    _inherit(model, operator, path)
    return True


def _fold_into_next(model: Model, operator: Operator) -> bool:
    """MUL or ADD of a number for each channel before FULLY_CONNECTED alone, as after a layer norm: into its weights.

    1. MUL: the weights of each input are scaled. 2. ADD: what the weights make of the offset goes into the bias.
    3. Something reads the value that is not FULLY_CONNECTED over its last axis: left alone.
    """
    if operator.kind not in ("MUL", "ADD") or len(operator.activations) != 1 or operator.options.get(FUSION):
        return False
    result, source = operator.output[0], operator.activations[0]
    users = model.readers.get(result, [])
    numbers = next(value for value in operator.inputs if value is not None and value.data is not None)
    if not users or result in model.outputs or result.shape != source.shape:
        return False
    if not _per_channel(numbers, result.shape[-1]) or not all(_reads_channels(user, result) for user in users):
        return False
    assert numbers.data is not None
    for user in users:
        weight = user.inputs[1]
        assert weight is not None
        assert weight.data is not None
        entries = np.broadcast_to(numbers.data.reshape(-1), result.shape[-1]).astype(np.float64)
        if operator.kind == "MUL":
            user.inputs[1] = constant((weight.data * entries).astype(np.float32))
        else:
            _set_bias(user, _bias(user) + weight.data.astype(np.float64) @ entries)
        user.inputs[0] = source
    model.operators.remove(operator)
    return True


def _fuse_activation(model: Model, operator: Operator) -> bool:
    """RELU, RELU6, RELU_N1_TO_1 into the operator before, where nothing else reads what it makes."""
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
    """Moves in a row.

    1. RESHAPE after RESHAPE, TRANSPOSE after TRANSPOSE: one.
    2. RESHAPE to the shape, TRANSPOSE to the order that is there: goes.
    3. RESHAPE that drops the axes that a MEAN kept: the MEAN drops them.
    4. RESHAPE to two axes before FULLY_CONNECTED, which flattens by itself: goes.
    """
    if operator.kind not in MOVES:
        return False
    source, result = operator.activations[0], operator.output[0]
    if result in model.outputs and source in (*model.inputs, *model.outputs):
        return False
    if _is_nothing(operator):
        _redirect(model, operator, source)
        return True
    maker, alone = model.makers.get(source), model.is_single(source)
    if maker is not None and maker.kind == operator.kind:
        operator.inputs[0] = maker.activations[0]
        if operator.kind == "TRANSPOSE":
            first, second = (np.asarray(each.inputs[1].data) for each in (maker, operator))  # type: ignore[union-attr]
            operator.inputs[1] = constant(first[second])
        return True
    if operator.kind != "RESHAPE":
        return False
    if maker is not None and maker.kind in ("MEAN", "SUM") and alone and maker.options["keepDims"]:
        axes = np.asarray(maker.inputs[1].data) % len(source.shape)  # type: ignore[union-attr]
        if result.shape == tuple(size for axis, size in enumerate(source.shape) if axis not in axes):
            maker.options["keepDims"] = False
            _inherit(model, operator, [source])
            return True
    users = model.readers.get(result, [])
    flat = users and all(user.kind == "FULLY_CONNECTED" and not user.options["keepNumDims"] for user in users)
    if flat and len(result.shape) == 2 and result not in model.outputs:
        _redirect(model, operator, source)
        return True
    return False


_REWRITES: tuple[_Rewrite, ...] = (_merge_moves, _fold_scale, _fold_into_next, _fuse_activation)


def scale_weights(operator: Operator, numbers: NDArray[np.float32], *, is_offset: bool) -> None:
    """Let a weighted operator give ``numbers`` times, or more than, what it gave; by channel, or all alike."""
    weight, bias = operator.inputs[1], _bias(operator)
    assert weight is not None
    assert weight.data is not None
    entries = np.broadcast_to(numbers.reshape(-1), len(bias)).astype(np.float64)
    if is_offset:
        _set_bias(operator, bias + entries)
        return
    along = entries if operator.kind == "DEPTHWISE_CONV_2D" else entries.reshape(-1, *[1] * (weight.data.ndim - 1))
    operator.inputs[1] = constant((weight.data * along).astype(np.float32))
    _set_bias(operator, bias * entries)


def _bias(operator: Operator) -> NDArray[np.float64]:
    found = operator.inputs[2] if len(operator.inputs) > 2 else None
    if found is None or found.data is None:
        return np.zeros(operator.output[0].shape[-1])
    return found.data.astype(np.float64)


def _set_bias(operator: Operator, numbers: NDArray[np.float64]) -> None:
    if len(operator.inputs) > 2 or numbers.any():
        operator.inputs[2:] = [constant(numbers.astype(np.float32))]


def _reads_channels(user: Operator, value: Value) -> bool:
    if user.kind != "FULLY_CONNECTED" or user.inputs[0] is not value or user.inputs[1] is None:
        return False
    return user.inputs[1].data is not None and user.inputs[1].shape[-1] == value.shape[-1]


def _per_channel(value: Value, channels: int) -> bool:
    """One number, or one for each entry of the last axis."""
    assert value.data is not None
    return value.data.size == 1 or (value.data.size == channels == value.shape[-1])


def _is_nothing(operator: Operator) -> bool:
    source, result = operator.activations[0], operator.output[0]
    if operator.kind == "RESHAPE":
        return source.shape == result.shape
    order = np.asarray(operator.inputs[1].data)  # type: ignore[union-attr]
    return bool((order == np.arange(len(order))).all())


def _inherit(model: Model, operator: Operator, path: list[Value]) -> None:
    """Remove ``operator``: the values of ``path``, from its input back, now are what it gave."""
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
    """Remove ``operator``; whoever reads what it gave reads ``value``."""
    result = operator.output[0]
    model.operators.remove(operator)
    for other in model.operators:
        other.inputs = [value if each is result else each for each in other.inputs]
    model.outputs = [value if each is result else each for each in model.outputs]


def _sweep(model: Model) -> None:
    """Remove what nothing reads."""
    needed = set(model.outputs)
    kept: list[Operator] = []
    for operator in reversed(model.operators):
        if needed & set(operator.output):
            needed |= set(operator.activations)
            kept.append(operator)
    model.operators = kept[::-1]
    model.changed()
