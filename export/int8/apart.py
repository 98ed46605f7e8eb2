"""Give the unlike parts of a value one int8 scale each, in a captured program: ``keep_apart(program, samples)``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from math import prod

import torch
from torch import Tensor, fx

from hnas.export.device.records import JSON
from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    LAYERS,
    LINEAR,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    has_constant_weights,
    is_floating,
    prune,
    shape_of,
    substitute,
)
from hnas.export.graph.program import Program, as_tuple
from hnas.export.graph.samples import Sample, Samples
from hnas.export.int8.unlike import Array, Call, Edit, Kind, Part, Unlike, find_unlike

_SLICES = frozenset({aten.slice.Tensor, aten.select.int, aten.narrow.default, operator.getitem})
_TAKING = frozenset({aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default})
# Operators of one value that work on each channel by itself.
_BY_CHANNEL = frozenset(
    {
        *(aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.leaky_relu.default),
        *(aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.gelu.default, aten.hardswish.default),
        *(aten.hardsigmoid.default, aten.max_pool2d.default, aten.avg_pool2d.default),
        *(aten.adaptive_avg_pool2d.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec),
    }
)
_MOST = 8  # parts
_SMALL = 1 << 16  # products; dividing a smaller layer would cost more time than float


def keep_apart(program: Program, samples: Samples, *, at_ends: bool = True) -> tuple[Program, list[JSON]]:
    """Return the program with unlike parts separated, and a record for each value. It computes the same function.

    Values are those of `hnas.export.int8.unlike.find_unlike`; ``at_ends`` is its parameter.

    1. A layer with unlike channels: one layer for each part, joined in float.
    2. Any other operator that computes or reads such a value: float. Near the outputs, also the operators before it, up
       to the last layers.
    3. A layer that reads unlike channels: the sum of one layer for each part.
    4. More than 8 parts, a small layer, weights that are computed, or groups: the layer stays in float.
    """
    found = find_unlike(_ProgramNetwork(program), samples, at_ends=at_ends)
    notes: list[JSON] = []

    def rewrite(module: fx.GraphModule) -> int:
        nodes = {node.name: node for node in module.graph.nodes}
        for value in found:
            notes.append(value.to_json(_separate(module, nodes[value.name], value, large_only=at_ends)))
        return len(found)

    return (edit(program, "keep_apart", rewrite), notes) if found else (program, notes)


class _ProgramNetwork:
    """Present a captured program as a `hnas.export.int8.unlike.Network`."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @cached_property
    def calls(self) -> Mapping[str, Call]:
        """Return the call of each floating-point value."""
        nodes = [node for node in self._program.module.graph.nodes if _is_value(node)]
        return {node.name: _call(node) for node in nodes}

    @property
    def outputs(self) -> Sequence[str]:
        """Return the names of the outputs."""
        return [node.name for node in _results(self._program.module.graph)]

    def observe(self, samples: Samples, names: Collection[str], see: Callable[[str, Array], None]) -> None:
        """Call ``see(name, value)`` for each named value and each sample."""

        class Observed(fx.Interpreter):
            def run_node(self, n: fx.Node) -> object:
                value: object = super().run_node(n)
                if n.name in names and isinstance(value, Tensor):
                    see(n.name, value.numpy())
                return value

        interpreter = Observed(self._program.module)
        with torch.no_grad():
            for sample in samples:
                interpreter.run(*map(torch.from_numpy, sample))

    def replay(self, sample: Sample, edits: Sequence[tuple[str, Edit]]) -> list[tuple[Array, ...]]:
        """Return the outputs for ``sample``: first unedited, then with each edit of one named value."""
        module = self._program.module
        nodes = {node.name: node for node in module.graph.nodes}
        interpreter = fx.Interpreter(module, garbage_collect_values=False)
        inputs = [torch.from_numpy(part) for part in sample]
        with torch.no_grad():
            answers = [interpreter.run(*inputs)]
            known = dict(interpreter.env)
            for name, change in edits:
                later = _later(nodes[name])
                start = {node: value for node, value in known.items() if node not in later and node.op != "output"}
                start[nodes[name]] = torch.from_numpy(change(known[nodes[name]].numpy()))
                answers.append(interpreter.run(*inputs, initial_env=start))
        return [tuple(output.numpy() for output in as_tuple(answer)) for answer in answers]


def _results(graph: fx.Graph) -> list[fx.Node]:
    (found,) = graph.output_node().args
    return list(found) if isinstance(found, tuple | list) else [found]  # type: ignore[arg-type, list-item]


def _is_value(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (node.op == "placeholder" and isinstance(value, Tensor) and value.is_floating_point()) or is_floating(node)


def _call(node: fx.Node) -> Call:
    sources = tuple(dict.fromkeys(source.name for source in _sources(node)))
    rank = len(shape_of(node))
    if node.target in LAYERS:
        axis = rank - 1 if node.target in LINEAR else rank - len(shape_of(bound(node)["weight"])) + 1
        return Call("layer", sources, axis=axis)
    if node.target is aten.cat.default:
        axis = int(bound(node)["dim"]) % rank
        return Call("join", sources, tuple(shape_of(part)[axis] for part in bound(node)["tensors"]), axis)
    if node.target is aten.stack.default:
        axis = int(bound(node)["dim"]) % rank
        return Call("join", sources, (1,) * shape_of(node)[axis], axis)
    kind: Kind = "input" if node.op == "placeholder" else "part" if node.target in _SLICES else "other"
    return Call(kind, sources)


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the values that a node reads. The result of a split is not a value, but its source is."""
    found = []
    for source in node.all_input_nodes:
        found += [source] if _is_value(source) else _sources(source) if node.target is operator.getitem else []
    return found


def _later(node: fx.Node) -> set[fx.Node]:
    """Return everything that is computed from a node."""
    found, left = set[fx.Node](), list(node.users)
    while left:
        user = left.pop()
        if user not in found:
            found.add(user)
            left += user.users
    return found


def _separate(module: fx.GraphModule, node: fx.Node, value: Unlike, *, large_only: bool) -> str:
    """Separate the parts of a value, and return what was done. ``large_only``: do not divide small layers."""
    least = _SMALL if large_only else 0
    readers = list(node.users)
    done = ["float"] if node.target in LAYERS else []
    if node.target in LAYERS and value.clear and value.axis == _call(node).axis and _divides(node, value.parts, least):
        node = _split_rows(module, node, value)
        done = [f"{len(value.parts)} layers"]
    for part in _before(node) if value.at_end else [node]:
        part.meta[FLOAT] = True
    done += [_spare(module, reader, value, least) for reader in readers if reader in node.users]
    prune(node)
    return ", ".join(dict.fromkeys(filter(None, done))) or "float"


def _spare(module: fx.GraphModule, reader: fx.Node, value: Unlike, least: int) -> str:
    """Keep a reader of unlike channels from a single scale, and return what was done."""
    if reader.op == "output":
        return ""
    if reader.target in LAYERS and _reads_parts(reader, value) and _divides(reader, value.parts, least):
        _split_columns(module, reader, value)
        return "a sum of layers"
    reader.meta[FLOAT] = True
    return "float"


def _before(node: fx.Node) -> list[fx.Node]:
    """Return a node and the operators that it is computed by, up to the layers before it."""
    found, left = [node], [node] if node.target not in LAYERS else []
    while left:
        for source in left.pop().all_input_nodes:
            if source.op == "call_function" and source.target not in LAYERS and source not in found:
                found.append(source)
                left.append(source)
    return found


def _divides(layer: fx.Node, parts: Sequence[Part], least: int) -> bool:
    """Return whether a layer can be divided into ``parts`` (case 4)."""
    whole = layer.target in LINEAR or (layer.target in CONVOLUTIONS and bound(layer)["groups"] == 1)
    large = whole and prod(shape_of(bound(layer)["weight"])[1:]) * prod(shape_of(layer)) > least
    return large and has_constant_weights(layer) and not layer.meta.get(FLOAT) and 1 < len(parts) <= _MOST


def _reads_parts(layer: fx.Node, value: Unlike) -> bool:
    """Return whether the parts are along the channels that a layer reads."""
    rank = len(shape_of(layer))
    axis = rank - 1 if layer.target in LINEAR else rank - len(shape_of(bound(layer)["weight"])) + 1
    return bound(layer)["input"].name == value.name and axis == value.axis


def _split_rows(module: fx.GraphModule, layer: fx.Node, value: Unlike) -> fx.Node:
    """Replace a layer by one layer for each part of its output (case 1), and return the joined value."""
    given = bound(layer)
    made = []
    for part in value.parts:
        shape = _resized(layer, value.axis, part)
        weight, bias = (_rows(module, layer, given[name], part) for name in ("weight", "bias"))
        made.append(_like(layer, given["input"], weight, bias, shape))
    joined = call(layer, aten.cat.default, (made, value.axis))
    for user in list(layer.users):
        _shortcut(user, value, made)
    substitute(layer, joined)
    return joined


def _shortcut(user: fx.Node, value: Unlike, made: Sequence[fx.Node]) -> None:
    """Replace slices of the joined value that are one of the parts: of a slice, a split or a chunk."""
    known = {(part.start, part.end): layer for part, layer in zip(value.parts, made, strict=True)}
    for taken, ends in _taken(user, value):
        if ends in known:
            substitute(taken, known[ends])
    if user.target in _TAKING and not user.users and not user._erased:
        user.graph.erase_node(user)


def _taken(user: fx.Node, value: Unlike) -> list[tuple[fx.Node, tuple[int, int]]]:
    """Return the slices along the axis of ``value`` that ``user`` takes, each with its start and its end."""
    size = value.parts[-1].end
    if user.target not in _TAKING or bound(user)["dim"] % _rank(user) != value.axis:
        return []
    if user.target is aten.slice.Tensor:
        start, end, step = (bound(user)[name] for name in ("start", "end", "step"))
        return [(user, (start or 0, min(size if end is None else end, size)))] if step == 1 else []
    sizes = [int(part.shape[value.axis]) for part in user.meta["val"]]
    found = []
    for each in list(user.users):
        if each.target is operator.getitem and isinstance(index := each.args[1], int):
            index %= len(sizes)
            found.append((each, (sum(sizes[:index]), sum(sizes[: index + 1]))))
    return found


def _rank(user: fx.Node) -> int:
    """Return the number of axes of what a slice or a split returns."""
    found = user.meta["val"]
    return int((found if isinstance(found, Tensor) else found[0]).ndim)


def _split_columns(module: fx.GraphModule, layer: fx.Node, value: Unlike) -> None:
    """Replace a layer by the sum of one layer for each part of its input (case 3)."""
    given = bound(layer)
    weight = constant_value(module, given["weight"])
    total: fx.Node | None = None
    for part in value.parts:
        columns = constant(module, layer, "columns", weight[:, part.start : part.end].contiguous())
        bias = given["bias"] if total is None else None
        made = _like(layer, _slice(layer, given["input"], value.axis, part), columns, bias, None)
        total = made if total is None else call(layer, aten.add.Tensor, (total, made))
    assert total is not None
    substitute(layer, total)


def _slice(before: fx.Node, source: fx.Node, axis: int, part: Part) -> fx.Node:
    """Return slices of a value, from before a concatenation if they are one of its inputs."""
    if source.target is aten.cat.default and int(bound(source)["dim"]) % len(shape_of(source)) == axis:
        start = 0
        for each in bound(source)["tensors"]:
            end = start + shape_of(each)[axis]
            if (start, end) == (part.start, part.end):
                assert isinstance(each, fx.Node)
                return each
            start = end
    if source.target in _BY_CHANNEL and axis == 1:
        (inner,) = source.all_input_nodes
        taken = _slice(before, inner, axis, part)
        return call(before, source.target, (taken, *source.args[1:]), _resized(source, axis, part))
    shape = _resized(source, axis, part)
    taken = call(before, aten.slice.Tensor, (source, axis, part.start, part.end), shape)
    taken.meta[FLOAT] = True  # otherwise TFLite quantises the whole value before it takes the slice
    return taken


def _resized(node: fx.Node, axis: int, part: Part) -> list[int]:
    return [part.end - part.start if each == axis else size for each, size in enumerate(shape_of(node))]


def _rows(module: fx.GraphModule, before: fx.Node, source: fx.Node | None, part: Part) -> fx.Node | None:
    """Return rows of a constant as a new constant."""
    if source is None:
        return None
    return constant(module, before, "rows", constant_value(module, source)[part.start : part.end].contiguous())


def _like(
    layer: fx.Node, source: fx.Node, weight: fx.Node | None, bias: fx.Node | None, shape: Sequence[int] | None
) -> fx.Node:
    """Insert a layer like ``layer`` with another input, weight and bias."""
    rest = tuple(argument for name, argument in bound(layer).items() if name not in ("input", "weight", "bias"))
    return call(layer, layer.target, (source, weight, bias, *rest), shape)
