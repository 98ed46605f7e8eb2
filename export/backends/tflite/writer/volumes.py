"""Lower convolutions of volumes, which have depth, height and width. The kernel is built-in: XNNPACK has none."""

from __future__ import annotations

from torch import fx

from hnas.export.backends.tflite.writer.layout import Placed, channels_last_order
from hnas.export.backends.tflite.writer.lowering import Graph, Lowering, Unsupported, arguments
from hnas.export.backends.tflite.writer.model import constant_tensor
from hnas.export.backends.tflite.writer.spatial import VALID, bias_of
from hnas.export.graph.nodes import per_dimension, shape_of

_ORDER = channels_last_order(5)


def _convolution(graph: Graph, node: fx.Node) -> Placed:
    """Lower conv3d of one group with constant weights. A PAD adds its padding."""
    given = arguments(node)
    weight = graph.constant(given["weight"], "conv3d with a weight")
    if given["groups"] != 1 or isinstance(given["padding"], str):
        raise Unsupported("conv3d with groups or with a named padding")
    stride, border, dilation = (per_dimension(given[name], 3) for name in ("stride", "padding", "dilation"))
    source = graph.at(given["input"], _ORDER)
    if any(border):
        edges = [[0, 0], *([width, width] for width in border), [0, 0]]
        shape = [size + before + after for size, (before, after) in zip(source.shape, edges, strict=True)]
        source = graph.add("PAD", [source, constant_tensor(edges)], shape, source)
    options = {f"stride{axis}": step for axis, step in zip("DHW", stride, strict=True)}
    options |= {f"dilation{axis}Factor": apart for axis, apart in zip("DHW", dilation, strict=True)}
    filters = constant_tensor(weight.transpose(2, 3, 4, 1, 0))
    shape = [shape_of(node)[axis] for axis in _ORDER]
    inputs = [source, filters, bias_of(graph, given["bias"], len(weight))]
    return Placed(graph.add("CONV_3D", inputs, shape, node, padding=VALID, **options), _ORDER)


LOWERINGS: dict[str, Lowering] = {"conv3d": _convolution}
