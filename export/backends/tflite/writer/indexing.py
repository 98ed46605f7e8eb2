"""Lower operators that pick entries of an axis by their positions, or repeat them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from hnas.export.backends.tflite.writer.layout import Placed, plain
from hnas.export.backends.tflite.writer.lowering import Graph, Lowering, arguments
from hnas.export.backends.tflite.writer.model import Value, constant_tensor
from hnas.export.backends.tflite.writer.shapes import JOINED, sliced
from hnas.export.graph.nodes import shape_of

_Run = tuple[int, int]  # first position, number of successive positions


def _picked(graph: Graph, node: fx.Node) -> Placed:
    """Lower index_select.

    1. Constant positions in a few successive runs, as in a roll or a narrow border: slices that are joined.
    2. Constant positions that reverse the axis: REVERSE_V2.
    3. Any other positions: GATHER.
    """
    given, x = arguments(node), graph.placed(node.args[0])
    dim = given["dim"] % len(x.order)
    axis, index = x.axis(dim), graph.placed(given["index"]).value
    shape = tuple(shape_of(node)[each] for each in x.order)
    if index.data is not None:
        positions = index.data.reshape(-1)
        runs = _runs(positions.tolist())
        if len(runs) <= JOINED:  # case 1
            parts = [sliced(graph, None, x, dim, *run).value for run in runs]
            joined = parts[0] if len(parts) == 1 else graph.add("CONCATENATION", parts, shape, node, axis=axis)
            return Placed(joined, x.order)
        if np.array_equal(positions, np.arange(x.shape[dim])[::-1]):  # case 2
            return Placed(graph.add("REVERSE_V2", [x.value, constant_tensor([axis])], shape, node), x.order)
        index = constant_tensor(positions.astype(np.int32))
    return Placed(graph.add("GATHER", [x.value, index], shape, node, axis=axis), x.order)  # case 3


def _runs(positions: Sequence[int]) -> list[_Run]:
    runs: list[_Run] = []
    for position in positions:
        if runs and sum(runs[-1]) == position:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((int(position), 1))
    return runs


def _repeated(graph: Graph, node: fx.Node) -> Placed:
    """Lower repeat to TILE."""
    x, shape = graph.placed(node.args[0]), shape_of(node)
    wide = graph.moves.reshaped(x, (1,) * (len(shape) - len(x.order)) + x.shape, graph.wanted(node))
    times = [shape[axis] // wide.shape[axis] for axis in wide.order]
    if set(times) == {1}:
        return wide
    return Placed(_tiled(graph, wide.value, times, node), wide.order)


def _tiled(graph: Graph, value: Value, times: Sequence[int], node: fx.Node) -> Value:
    shape = [size * time for size, time in zip(value.shape, times, strict=True)]
    return graph.add("TILE", [value, constant_tensor(list(times))], shape, node)


def _embedding(graph: Graph, node: fx.Node) -> Placed:
    """Lower a lookup of rows in a constant table."""
    table = graph.constant(node.args[0], "embedding with a table")  # type: ignore[arg-type]
    rows = graph.at(node.args[1], plain(len(shape_of(node)) - 1))
    shape = shape_of(node)
    return Placed(graph.add("GATHER", [constant_tensor(table), rows], shape, node), plain(len(shape)))


LOWERINGS: dict[str, Lowering] = {
    "index_select": _picked,
    "repeat": _repeated,
    "embedding": _embedding,
}
