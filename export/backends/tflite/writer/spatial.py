"""Lower operators on feature maps: convolutions, pooling, resizing, padding. Most read and write channels last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from hnas.export.backends.tflite.writer.layout import NHWC, Placed, plain
from hnas.export.backends.tflite.writer.lowering import Graph, Lowering, Unsupported, arguments, operator_name
from hnas.export.backends.tflite.writer.model import Value, constant_tensor
from hnas.export.backends.tflite.writer.shapes import join
from hnas.export.graph.nodes import shape_of

Sizes = Sequence[int]  # of height and width
SAME, VALID = 0, 1  # numbers of the padding modes in the schema
_LOWEST = float(np.finfo(np.float32).min)


def _convolution(graph: Graph, node: fx.Node) -> Placed:
    """Lower conv1d and conv2d with constant weights and any stride, dilation and groups.

    1. As many groups as channels: DEPTHWISE_CONV_2D.
    2. Any other number of groups: CONV_2D.
    3. One dimension: two dimensions, with height 1.
    """
    given = arguments(node)
    flat = len(shape_of(node)) == 3
    weight = graph.constant(given["weight"], "convolution with a weight")
    x = graph.placed(given["input"])
    shape = list(shape_of(node))
    if flat:  # case 3
        weight, shape = weight[:, :, None], [*shape[:2], 1, shape[2]]
        x = graph.moves.reshaped(x, (*x.shape[:2], 1, x.shape[2]), NHWC)
    stride, dilation = (_pair(given[name], 1, flat) for name in ("stride", "dilation"))
    source = graph.moves.moved(x, NHWC)
    before = _before(given["padding"], weight.shape[2:], dilation, flat)
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    source, padding = _padded(graph, source, extent, stride, before, shape[2:], 0.0)
    options = {"strideH": stride[0], "strideW": stride[1], "padding": padding}
    options |= {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    channels = source.shape[-1]
    kind, filters = "CONV_2D", weight.transpose(0, 2, 3, 1)  # case 2
    if given["groups"] == channels > 1:  # case 1
        kind, filters = "DEPTHWISE_CONV_2D", weight.transpose(1, 2, 3, 0)
        options["depthMultiplier"] = len(weight) // channels
    bias = bias_of(graph, given["bias"], len(weight))
    sizes = (shape[0], *shape[2:], shape[1])
    made = Placed(graph.add(kind, [source, constant_tensor(filters), bias], sizes, node, **options), NHWC)
    return graph.moves.reshaped(made, shape_of(node), (0, 2, 1)) if flat else made


def _transposed_convolution(graph: Graph, node: fx.Node) -> Placed:
    """Lower conv_transpose2d of one group.

    1. TRANSPOSE_CONV can cut off nothing, or (kernel - stride) / 2 on each side: done so.
    2. Any other padding: the whole map is computed, and a SLICE cuts off its border.
    3. Dilation, or more output padding than padding: the kernel is filled up with zeros.
    """
    given = arguments(node)
    weight = graph.constant(given["weight"], "transposed convolution with a weight")
    stride, dilation, padding, more = (
        _pair(given[name], default)
        for name, default in (("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0))
    )
    if given["groups"] != 1:
        raise Unsupported("transposed convolution with groups")
    weight = _spread(weight, dilation, [max(m - p, 0) for m, p in zip(more, padding, strict=True)])  # case 3
    n, channels, *sizes = shape_of(node)
    source = graph.at(given["input"], NHWC)
    extent = weight.shape[2:]
    cuts = not any(more) and all(2 * p == k - s for p, k, s in zip(padding, extent, stride, strict=True))
    whole = [(size - 1) * s + k for size, s, k in zip(source.shape[1:3], stride, extent, strict=True)]
    shape = (n, *(sizes if cuts else whole), channels)
    inputs = [constant_tensor(shape), constant_tensor(weight.transpose(1, 2, 3, 0)), source]
    inputs.append(bias_of(graph, given["bias"], channels))
    options = {"strideH": stride[0], "strideW": stride[1], "padding": SAME if cuts else VALID}
    made = graph.add("TRANSPOSE_CONV", inputs, shape, node, **options)  # case 1
    if shape[1:3] == tuple(sizes):
        return Placed(made, NHWC)
    result = (n, *sizes, channels)
    inputs = [made, constant_tensor([0, *padding, 0]), constant_tensor(result)]
    return Placed(graph.add("SLICE", inputs, result, node), NHWC)  # case 2


def _spread(weight: NDArray[Any], dilation: Sizes, more: Sizes) -> NDArray[Any]:
    """Return the kernel with zeros between its rows and columns, and ``more`` rows and columns of zeros after them."""
    if set(dilation) == {1} and not any(more):
        return weight
    sizes = [(k - 1) * d + 1 + m for k, d, m in zip(weight.shape[2:], dilation, more, strict=True)]
    wide = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    wide[:, :, : sizes[0] - more[0] : dilation[0], : sizes[1] - more[1] : dilation[1]] = weight
    return wide


def _pooling(graph: Graph, node: fx.Node) -> Placed:
    """Lower max_pool2d and avg_pool2d. A PAD is added for padding that the runtime's pooling does not have."""
    given, largest = arguments(node), operator_name(node) == "max_pool2d"
    window, stride, before = _windows(given)
    source = graph.at(given["self"], NHWC)
    sizes = shape_of(node)[2:]
    if not pools(node):
        raise Unsupported(f"{operator_name(node)} with this padding, dilation or divisor")
    padding = _pooling_padding(node)
    if padding is None:
        fill = _LOWEST if largest and not _is_positive(given["self"]) else 0.0
        source, padding = _explicit(graph, source, window, stride, before, sizes, fill), VALID
    options = {"filterHeight": window[0], "filterWidth": window[1], "padding": padding}
    options |= {"strideH": stride[0], "strideW": stride[1]}
    shape = (source.shape[0], *sizes, source.shape[3])
    return Placed(graph.add("MAX_POOL_2D" if largest else "AVERAGE_POOL_2D", [source], shape, node, **options), NHWC)


def pools(node: fx.Node) -> bool:
    """Return whether a call of max_pool2d or avg_pool2d has one operator in the runtime, perhaps after a PAD.

    An average that excludes its padding has one only if the runtime's pooling has this padding.
    """
    given, largest = arguments(node), operator_name(node) == "max_pool2d"
    if given.get("divisor_override") is not None or set(_pair(given.get("dilation", 1), 1)) != {1}:
        return False
    if _pooling_padding(node) is not None:
        return True
    return not given["ceil_mode"] and bool(largest or (any(_windows(given)[2]) and given["count_include_pad"]))


def _pooling_padding(node: fx.Node) -> int | None:
    given = arguments(node)
    window, stride, before = _windows(given)
    if operator_name(node) != "max_pool2d" and any(before) and given["count_include_pad"]:
        return None
    return _own_padding(shape_of(given["self"])[2:], window, stride, before, shape_of(node)[2:])


def _windows(given: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the sizes of the window, its stride, and the padding before."""
    window = _pair(given["kernel_size"], 1)
    return window, _pair(given["stride"] or window, 1), _pair(given["padding"], 0)


def _adaptive_pooling(graph: Graph, node: fx.Node) -> Placed:
    """Lower adaptive_avg_pool2d to one position, which is a mean, or to sizes that divide the map's."""
    source = graph.at(node.args[0], NHWC)
    sizes, maps = shape_of(node)[2:], source.shape[1:3]
    shape = (source.shape[0], *sizes, source.shape[3])
    if sizes == (1, 1):
        return Placed(graph.add("MEAN", [source, constant_tensor([1, 2])], shape, node, keepDims=True), NHWC)
    if any(whole % part for whole, part in zip(maps, sizes, strict=True)):
        raise Unsupported(f"adaptive_avg_pool2d of {list(maps)} to {list(sizes)}")
    height, width = (whole // part for whole, part in zip(maps, sizes, strict=True))
    options = {"filterHeight": height, "filterWidth": width, "strideH": height, "strideW": width, "padding": VALID}
    return Placed(graph.add("AVERAGE_POOL_2D", [source], shape, node, **options), NHWC)


def _nearest(graph: Graph, node: fx.Node) -> Placed:
    """Lower upsample_nearest2d by whole factors, because XNNPACK has no nearest resize.

    1. By 2: four copies and DEPTH_TO_SPACE.
    2. By any other factors: copies beside each pixel, and copies below each row.
    """
    source = graph.at(node.args[0], NHWC)
    n, channels, height, width = shape_of(node)
    if has_own_scales(node) or height % source.shape[1] or width % source.shape[2]:
        raise Unsupported("upsample_nearest2d by a factor that is not whole")
    if (height, width) == (2 * source.shape[1], 2 * source.shape[2]):  # case 1
        wide = graph.add("CONCATENATION", [source] * 4, (*source.shape[:3], 4 * channels), node, axis=3)
        return Placed(graph.add("DEPTH_TO_SPACE", [wide], (n, height, width, channels), node, blockSize=2), NHWC)
    for axis, size in ((2, width), (1, height)):  # case 2
        times, shape = size // source.shape[axis], list(source.shape)
        shape[axis] = size
        copies = join(graph, node, [source] * times, axis + 1)
        source = graph.moves.reshaped(Placed(copies, plain(4)), shape).value
    return Placed(source, NHWC)


def _bilinear(graph: Graph, node: fx.Node) -> Placed:
    """Lower upsample_bilinear2d to any size."""
    given = arguments(node)
    if has_own_scales(node):
        raise Unsupported("upsample_bilinear2d with scales of its own")
    source = graph.at(given["input"], NHWC)
    n, channels, height, width = shape_of(node)
    options = {"alignCorners": given["align_corners"], "halfPixelCenters": not given["align_corners"]}
    inputs = [source, constant_tensor([height, width])]
    return Placed(graph.add("RESIZE_BILINEAR", inputs, (n, height, width, channels), node, **options), NHWC)


def has_own_scales(node: fx.Node) -> bool:
    """Return whether the sizes of input and result have another ratio than the scales that a resize was asked for."""
    given = arguments(node)
    scales = given.get("scale_factors") or (given.get("scales_h"), given.get("scales_w"))
    maps = zip(shape_of(node.args[0])[2:], scales, shape_of(node)[2:], strict=True)  # type: ignore[arg-type]
    return any(scale is not None and whole * scale != size for whole, scale, size in maps)


def _pad(graph: Graph, node: fx.Node) -> Placed:
    """Lower constant_pad_nd, and pad in the constant mode, in any order of axes."""
    given = arguments(node)
    if given.get("mode", "constant") != "constant":
        raise Unsupported(f"pad in mode {given['mode']!r}")
    x, pads = graph.placed(given["self"]), list(given["pad"])
    edges = [(0, 0)] * len(x.order)
    for index in range(len(pads) // 2):
        edges[-1 - index] = (pads[2 * index], pads[2 * index + 1])
    if min(pads) < 0:
        raise Unsupported("pad that cuts off")
    inputs = [x.value, constant_tensor([list(edges[axis]) for axis in x.order])]
    shape = [size + sum(edges[axis]) for size, axis in zip(x.value.shape, x.order, strict=True)]
    if not given["value"]:
        return Placed(graph.add("PAD", inputs, shape, node), x.order)
    fill = constant_tensor(np.array(given["value"], x.value.dtype))
    return Placed(graph.add("PADV2", [*inputs, fill], shape, node), x.order)


def bias_of(graph: Graph, node: fx.Node | None, channels: int) -> Value:
    """Return the bias of a layer, zeros if it has none."""
    return constant_tensor(np.zeros(channels, np.float32) if node is None else graph.constant(node, "a bias"))


def _pair(value: Any, default: int, flat: bool = False) -> tuple[int, int]:
    """Return height and width of an argument.

    default: for an empty argument, and for the height of a one-dimensional operator.
    flat: the operator is one-dimensional.
    """
    found = [int(each) for each in (value if isinstance(value, list | tuple) else [value])] or [default]
    if flat:
        return default, found[-1]
    return found[0], found[-1]


def _before(value: Any, window: Sequence[int], dilation: Sequence[int], flat: bool) -> tuple[int, int]:
    """Return the padding before height and width.

    value: the argument of a convolution: numbers, "same" or "valid".
    """
    if not isinstance(value, str):
        return _pair(value, 0, flat)
    whole = [(k - 1) * d if value == "same" else 0 for k, d in zip(window, dilation, strict=True)]
    return whole[0] // 2, whole[1] // 2


def _own_padding(maps: Sizes, window: Sizes, stride: Sizes, before: Sizes, sizes: Sizes) -> int | None:
    """Return the runtime's padding mode that gives the program's padding; None if there is none.

    maps: sizes of the input.
    before: padding before height and width.
    sizes: sizes of the output.
    """
    if not any(before):
        fits = all((m - w) // s + 1 == o for m, w, s, o in zip(maps, window, stride, sizes, strict=True))
        if fits:
            return VALID
    for m, w, s, b, o in zip(maps, window, stride, before, sizes, strict=True):
        total = max((math.ceil(m / s) - 1) * s + w - m, 0)
        if total // 2 != b or math.ceil(m / s) != o:
            return None
    return SAME


def _padded(
    graph: Graph, source: Value, window: Sizes, stride: Sizes, before: Sizes, sizes: Sizes, fill: float
) -> tuple[Value, int]:
    own = _own_padding(source.shape[1:3], window, stride, before, sizes)
    if own is not None:
        return source, own
    return _explicit(graph, source, window, stride, before, sizes, fill), VALID


def _explicit(
    graph: Graph, source: Value, window: Sizes, stride: Sizes, before: Sizes, sizes: Sizes, fill: float
) -> Value:
    """Add a PAD or PADV2, only as wide as the windows reach, and return its output."""
    ends = zip(source.shape[1:3], window, stride, before, sizes, strict=True)
    after = [max(0, (o - 1) * s + w - m - b) for m, w, s, b, o in ends]
    edges = [(0, 0), *zip(before, after, strict=True), (0, 0)]
    shape = [size + sum(edge) for size, edge in zip(source.shape, edges, strict=True)]
    inputs = [source, constant_tensor([list(edge) for edge in edges])]
    if fill:
        return graph.add("PADV2", [*inputs, constant_tensor(np.array(fill, np.float32))], shape)
    return graph.add("PAD", inputs, shape, source)


def _is_positive(node: Any) -> bool:
    return operator_name(node) in ("relu", "relu6", "sigmoid", "hardsigmoid")


LOWERINGS: dict[str, Lowering] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv_transpose2d": _transposed_convolution,
    "max_pool2d": _pooling,
    "avg_pool2d": _pooling,
    "adaptive_avg_pool2d": _adaptive_pooling,
    "upsample_nearest2d": _nearest,
    "upsample_bilinear2d": _bilinear,
    "constant_pad_nd": _pad,
    "pad": _pad,
}
