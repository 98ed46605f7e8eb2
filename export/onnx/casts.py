"""Give an ONNX graph its float types: ``write_types(model, kept)`` computes in fp16 except for the nodes ``kept``.

Strongly typed TensorRT computes each layer in the type that the file states, so the file must state the types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.onnx.walk import graphs, reads

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

SINGLE, HALF = 1, 10  # TensorProto.FLOAT and FLOAT16
LARGEST = float(np.finfo(np.float16).max)
_MAKERS = {"Constant", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
_LEAST_SCALE = 2.0**-20  # smaller scales have less than four bits in fp16
_LOSS = 0.01  # largest relative error of a scale in fp16


def write_types(model: onnx.ModelProto, kept: Collection[str], *, simulate: bool = False) -> onnx.ModelProto:
    """Return a copy of an fp32 model that computes in fp16. Its inputs and outputs stay float32.

    kept: names of the nodes that compute in fp32.
    simulate: leave the arithmetic in fp32, and round each value that would be fp16 to the numbers of fp16. Runtimes on
        a CPU compute neighbouring fp16 nodes in fp32 and skip the rounding between them.

    1. A node: fp16. A Cast is added where a value has the other type.
    2. A node of ``kept``, with a branch or loop, of an operator that has no fp16, or that makes integers of floats:
       fp32.
    3. A quantiser: in the type of the value that it reads. Its scale must have this type (opset 19).
    4. A dequantiser: in the type of its readers; fp32 only if all compute in fp32, or if fp16 cannot hold its scale.
    5. A quantised constant: quantised again by the scale in fp16.
    6. A bound of Clip beyond the range of fp16: the largest number of fp16.

    Example: ``onnx.save(write_types(onnx.load("fp32.onnx"), {"Softmax_3"}), "fp16.onnx")``.
    """
    return _Typing(prepare(model), frozenset(kept), simulate).model()


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without functions and without Constant nodes of numbers; every node has a unique name."""
    import onnx
    from onnx import inliner

    model = inliner.inline_local_functions(model) if model.functions else model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes, taken = list(copy.graph.node), {""}
    del copy.graph.node[:]
    for index, node in enumerate(nodes):
        if node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
        value = _constant(node)
        if value is not None:
            copy.graph.initializer.add().CopyFrom(value)
            copy.graph.initializer[-1].name = node.output[0]
        else:
            copy.graph.node.append(node)
    return copy


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the numbers of a Constant node; None for other nodes, strings and sparse numbers."""
    import onnx

    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    (told,) = node.attribute
    kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if told.name in kind:
        return onnx.numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(told), kind[told.name]))
    return told.t if told.name == "value" else None


def float_values(model: onnx.ModelProto) -> set[str]:
    """Return the names of the float32 values of the main graph, without its constants."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    known = (*graph.value_info, *graph.input, *graph.output)
    there = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    there -= {value.name for value in graph.initializer}  # old records name values that optimisers have removed
    return {value.name for value in known if value.type.tensor_type.elem_type == SINGLE} & there


def in_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Return the values in fp16; numbers beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


class _Typing:
    """Write the typed graph. ``_have``: (value, type) -> name of the value in this type."""

    def __init__(self, model: onnx.ModelProto, kept: frozenset[str], simulate: bool) -> None:
        self._model, self._kept, self._simulate = model, kept, simulate
        self._opsets = {each.domain: each.version for each in model.opset_import}
        self._constants = {value.name: value for value in model.graph.initializer}
        self._floats = float_values(model)
        self._have: dict[tuple[str, int], str] = {(value.name, SINGLE): value.name for value in model.graph.input}
        self._ends = {value.name for value in model.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._named: dict[tuple[str, str], str] = {}
        self._taken = _all_names(model.graph)

    def model(self) -> onnx.ModelProto:
        graph = self._model.graph
        nodes = list(graph.node)
        for node in nodes:
            self._write(node)
        for name in sorted(self._ends & self._floats):
            self._ask(name, SINGLE)
        used = {name for node in self._nodes for name in reads(node)} | self._ends
        del graph.node[:]
        del graph.value_info[:]
        graph.node.extend(self._nodes)
        constants = [value for value in (*graph.initializer, *self._made.values()) if value.name in used]
        kept = [*{value.name: value for value in constants}.values()]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self._model

    def _write(self, node: onnx.NodeProto) -> None:
        kind = self._kind(node)
        inputs, outputs = _without_half(node, self._opsets)
        if node.op_type == "DequantizeLinear" and kind == HALF and not self._simulate:
            self._requantise(node)  # case 5
        for place, name in enumerate(node.input):
            if name in self._floats or self._is_float_constant(name):
                node.input[place] = self._ask(name, SINGLE if place in inputs else kind, clip=node.op_type == "Clip")
        for body in _bodies(node):
            self._capture(body)
        if kind == HALF and not self._simulate:
            _set_type(node)
        self._nodes.append(node)
        for place, name in enumerate(node.output):
            if name in self._floats:
                self._register(node, place, SINGLE if place in outputs else kind)

    def _register(self, node: onnx.NodeProto, place: int, kind: int) -> None:
        """Note the type of an output. An output of the graph keeps its name in fp32, any other in its own type."""
        name = node.output[place]
        if kind == SINGLE:
            self._have[name, SINGLE] = name
        elif self._simulate:
            node.output[place] = raw = self._name(name, "_raw")
            rounded = self._rounded(raw, name)
            self._have[name, HALF] = self._have[name, SINGLE] = rounded
        else:
            node.output[place] = self._name(name, "_half") if name in self._ends else name
            self._have[name, HALF] = str(node.output[place])

    def _ask(self, name: str, kind: int, *, clip: bool = False) -> str:
        """Return the name of a value or constant in the type ``kind``. Add a Cast or a constant if there is none."""
        if (name, kind) in self._have:
            return self._have[name, kind]
        if name in self._constants:
            if kind == SINGLE:
                return name
            return self._half_constant(name, self._name(name, "_bound" if clip else "_half"), clip)  # case 6
        found: str
        if kind == HALF and self._simulate:
            found = self._rounded(name, self._name(name, "_rounded"))
        else:
            stays = kind == SINGLE and name in self._ends
            found = name if stays else self._name(name, "_half" if kind == HALF else "_single")
            self._cast(self._have[name, SINGLE if kind == HALF else HALF], found, kind)
        self._have[name, kind] = found
        return found

    def _cast(self, source: str, target: str, kind: int) -> None:
        import onnx

        self._nodes.append(onnx.helper.make_node("Cast", [source], [target], self._name("cast_", target), to=kind))

    def _name(self, name: str, suffix: str) -> str:
        """Return the name of what is made of a value: ``name + suffix``, longer if the graph has this name already."""
        if (name, suffix) not in self._named:
            found = name + suffix
            while found in self._taken:
                found += "_"
            self._taken.add(found)
            self._named[name, suffix] = found
        return self._named[name, suffix]

    def _rounded(self, source: str, target: str) -> str:
        half = self._name(target, "_as_half")
        self._cast(source, half, HALF)
        self._cast(half, target, SINGLE)
        return target

    def _half_constant(self, name: str, target: str, clip: bool) -> str:
        if target not in self._made:
            values = _values(self._constants[name])
            halves = in_half(np.clip(values, -LARGEST, LARGEST) if clip else values)
            self._add(target, halves.astype(np.float32) if self._simulate else halves)
        return target

    def _add(self, name: str, values: NDArray[Any]) -> None:
        import onnx

        self._made[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)

    def _is_float_constant(self, name: str) -> bool:
        return name in self._constants and self._constants[name].data_type == SINGLE

    def _kind(self, node: onnx.NodeProto) -> int:
        """Return the type of a node: cases 1 to 4."""
        if node.name in self._kept or node.op_type in _MAKERS or any(True for _ in _bodies(node)):
            return SINGLE
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return HALF if self._quantises_in_half(node) else SINGLE
        inputs, outputs = _without_half(node, self._opsets)
        wide = [node.output[place] for place in outputs] + [node.input[0] for place in inputs if place == 0]
        like = node.op_type == "CastLike" and node.output[0] not in self._floats
        return SINGLE if like or self._floats & set(wide) or _casts_to_integers(node) else HALF

    def _quantises_in_half(self, node: onnx.NodeProto) -> bool:
        """Return whether a quantiser (case 3) or a dequantiser (case 4) is fp16."""
        if node.op_type == "QuantizeLinear":
            return (node.input[0], HALF) in self._have and self._holds(node.input[1])
        users = self._readers.get(node.output[0], [])
        in_single = bool(users) and all(user.name in self._kept for user in users)
        return not in_single and (node.input[0] in self._constants or self._holds(node.input[1]))

    def _holds(self, scale: str) -> bool:
        """Return whether fp16 holds a scale."""
        if scale not in self._constants:
            return True
        values = _values(self._constants[scale])
        return bool((np.abs(in_half(values).astype(np.float32) - values) <= _LOSS * np.abs(values)).all())

    def _requantise(self, node: onnx.NodeProto) -> None:
        source, scale = node.input[0], node.input[1]
        if source not in self._constants or scale not in self._constants:
            return
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        steps, old = _values(self._constants[source]), _values(self._constants[scale])
        new = in_half(np.maximum(old, _LEAST_SCALE))
        shape = [1] * steps.ndim
        if old.ndim:
            shape[axis] = -1
        ratio = (old / new.astype(np.float32)).reshape(shape if old.ndim else [])
        limits = np.iinfo(steps.dtype)
        node.input[0] = self._name(source, "_typed")
        self._add(node.input[0], np.clip(np.rint(steps * ratio), limits.min, limits.max).astype(steps.dtype))
        self._add(self._name(scale, "_half"), new)

    def _capture(self, body: onnx.GraphProto) -> None:
        """Give a branch or loop the float32 names of the outer values that it reads."""
        for graph in graphs(body):
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if (name, HALF) in self._have:
                        node.input[place] = self._ask(name, SINGLE)


def _all_names(graph: onnx.GraphProto) -> set[str]:
    """Return every name of a node or value of a graph and of the branches and loops in it."""
    found = set[str]()
    for each in graphs(graph):
        found |= {value.name for part in (each.input, each.output, each.initializer) for value in part}
        for node in each.node:
            found |= {node.name, *node.input, *node.output}
    return found


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    single = [each.g for each in node.attribute if each.HasField("g")]
    return single + [graph for each in node.attribute for graph in each.graphs]


def _values(constant: onnx.TensorProto) -> NDArray[Any]:
    import onnx

    return onnx.numpy_helper.to_array(constant)


def _casts_to_integers(node: onnx.NodeProto) -> bool:
    """Return whether a node makes integers of floats, such as indices: fp16 holds integers up to 2048 only."""
    return node.op_type == "Cast" and any(each.name == "to" and each.i not in (SINGLE, HALF) for each in node.attribute)


def _set_type(node: onnx.NodeProto) -> None:
    """Set the type in the attributes of a node that makes floats: Cast, ConstantOfShape."""
    import onnx

    for each in node.attribute:
        if node.op_type == "Cast" and each.name == "to" and each.i == SINGLE:
            each.i = HALF
        if node.op_type == "ConstantOfShape" and each.name == "value" and each.t.data_type == SINGLE:
            each.t.CopyFrom(onnx.numpy_helper.from_array(in_half(_values(each.t)), each.t.name))
    if node.op_type == "ConstantOfShape" and not node.attribute:  # its default is 0 in fp32
        node.attribute.append(
            onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1, np.float16)))
        )


def _without_half(node: onnx.NodeProto, opsets: Mapping[str, int]) -> tuple[set[int], set[int]]:
    """Return the places of the inputs and of the outputs of an operator that cannot be fp16."""
    import onnx

    everywhere = set(range(len(node.input))), set(range(len(node.output)))
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, opsets.get("ai.onnx", 1)), domain)
    except onnx.defs.SchemaError:
        return everywhere
    free = {each.type_param_str for each in schema.type_constraints if "tensor(float16)" in each.allowed_type_strs}

    def refused(count: int, formals: Any) -> set[int]:
        own = [formals[min(place, len(formals) - 1)].type_str for place in range(count)]
        return {place for place, kind in enumerate(own) if kind not in free and kind != "tensor(float16)"}

    return refused(len(node.input), schema.inputs), refused(len(node.output), schema.outputs)
