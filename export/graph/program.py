"""Capture a static torch module as an ATen graph: ``program = capture(net, torch.randn(1, 3, 224, 224))``."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.dynamic import DynamicSize
from hnas.export.device.errors import ExportError, one_line
from hnas.export.graph.agreement import HALF_DB, same_values
from hnas.export.graph.calls import PREFIX, FlatModule, flat_module, in_single, output_names
from hnas.export.graph.dynamic import close_shapes, exported_shapes, outputs_of, with_size
from hnas.export.graph.masks import masks_by_where
from hnas.export.graph.precision import in_float32
from hnas.export.graph.regions import inline_regions
from hnas.export.graph.sizes import parse_dynamic
from hnas.export.graph.unbatched import add_batch_axes

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Program:
    """Hold a module as an ATen graph in eval mode. A program is never changed: a pass returns a changed copy.

    module: takes as many tensors as there are ``inputs``; returns one tensor, or a flat tuple of tensors.
    inputs: the example inputs of the capture.
    fired: the passes that made this program, each with the number of its changes.
    input_names, output_names: dotted names, such as past.0.key; empty for those of the graph.
    halved: whether the module has parts in half precision, which the program computes in float32.
    dynamic: the size that may differ from that of the examples; None: all sizes are fixed.
    draft: whether the artifact is only timed: converters leave out what changes values but not speed.
    remarks: sentences on how the program differs from the module, such as inputs that became constants.

    Example: ``(output,) = program(*program.inputs)``.
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    fired: tuple[tuple[str, int], ...] = ()
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    halved: bool = False
    dynamic: DynamicSize | None = None
    draft: bool = False

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs as a flat tuple, without gradients."""
        with torch.no_grad():
            return as_tuple(self.module(*inputs))

    def arrays(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return the outputs for numpy inputs, as numpy arrays."""
        return tuple(output.numpy() for output in self(*(torch.from_numpy(np.array(x, order="C")) for x in inputs)))

    def operators(self) -> dict[str, int]:
        """Return how often the graph calls each operator, by name."""
        names = [str(node.target) for node in self.module.graph.nodes if node.op == "call_function"]
        return {name: names.count(name) for name in sorted(set(names))}

    @cached_property
    def signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the specs of the inputs, and of the outputs. Outputs without names are output_0, output_1, ..."""
        places = [str(node.target) for node in self.module.graph.nodes if node.op == "placeholder"]
        outputs = self(*self.inputs)
        names = self.output_names or [f"output_{index}" for index in range(len(outputs))]
        return tuple(map(_spec, self.input_names or places, self.inputs)), tuple(map(_spec, names, outputs))

    @property
    def digest(self) -> str:
        """Return the sha256 of graph, shapes and types, without values. Equal digests mean equal latency."""
        state = [(name, tuple(value.shape), str(value.dtype)) for name, value in self.module.state_dict().items()]
        inputs = [(tuple(value.shape), str(value.dtype)) for value in self.inputs]
        return hashlib.sha256(repr((self.module.code, state, inputs)).encode()).hexdigest()


def _spec(name: str, value: Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(value.shape), str(value.dtype).rpartition(".")[2])


def capture(module: nn.Module, inputs: Any, dynamic: Mapping[str, Mapping[int, str]] | None = None) -> Program:
    """Return the program of ``module`` in eval mode; the module itself is not changed.

    module: a static network.
    inputs: example inputs in any form that `hnas.export.graph.calls.flat_module` takes; their sizes become fixed.
    dynamic: the axis of each input whose size stays open, see `hnas.export.graph.sizes.parse_dynamic`.

    1. Nested outputs become a flat tuple with dotted names. Outputs that are not tensors are left out.
    2. NaN in any weight or output, or infinity in a parameter: refused. An output may be infinite, like a mask.
    3. Writing in place into a value that the module computed: made functional.
    4. Floats of other types than float32 are computed in float32.
    5. Writing into a buffer or an input (counters, batch norm in training mode): refused, because an artifact keeps no
       state between calls.

    Raises:
        ValueError: the inputs do not fit the module.
        ExportError: the module cannot be captured, for any other reason.

    Example: ``capture(net, torch.randn(1, 3, 224, 224)).operators()``.
    """
    flat = flat_module(module, inputs)
    _refuse_bad_weights(flat.net)
    with evaluating(flat), torch.no_grad():
        found = _checked_outputs(flat)
        names, left_out = output_names(found, flat.input_names)
        prefix = "" if flat.is_plain(found) else PREFIX
        size = None if dynamic is None else parse_dynamic(dynamic, flat.input_names, flat.inputs)
        try:
            graph_module = _exported(flat if prefix else flat.net, flat.inputs, size)
        except ExportError:
            raise
        except Exception as error:  # the errors of torch.export have no common type
            raise ExportError(f"torch.export cannot capture {type(flat.net).__name__}: {one_line(error)}") from error
    plain = _plain(graph_module, prefix)
    if size is not None:
        close_shapes(plain, flat.inputs)
    add_batch_axes(plain)
    converted = in_float32(plain)
    remarks = [*flat.remarks, *left_out, *(f"{name} parts are computed in float32" for name in converted)]
    program = Program(
        plain,
        flat.inputs,
        (),
        flat.input_names,
        names,
        tuple(remarks),
        halved={"float16", "bfloat16"} & {*converted} != set(),
    )
    if size is not None:
        program = replace(program, dynamic=outputs_of(program, flat.inputs, size))
    values = [in_single(value.detach()).numpy() for _, value in found if isinstance(value, Tensor)]
    if converted and not same_values(values, [value.detach().numpy() for value in program(*flat.inputs)], HALF_DB):
        raise ExportError(f"{type(flat.net).__name__} computes other values in float32 than in {converted[0]}")
    return program


def module_of(network: nn.Module | torch.export.ExportedProgram) -> nn.Module:
    """Return ``network`` as a module. A module is returned unchanged; an exported program is converted.

    Raises:
        ValueError: ``network`` is neither.
        ExportError: the exported program has dynamic shapes.
    """
    if isinstance(network, nn.Module):
        return network
    if not isinstance(network, torch.export.ExportedProgram):
        raise ValueError(f"a network is a torch.nn.Module or an ExportedProgram, got {type(network).__name__}")
    if network.range_constraints:
        names = ", ".join(map(str, network.range_constraints))
        raise ExportError(f"the program was exported with dynamic shapes ({names}); export it with static ones")
    return _plain(_functional(_unlifted(network)))


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], size: DynamicSize | None) -> fx.GraphModule:
    shapes: Any = None
    if size is not None:
        inputs = with_size(inputs, size, 2)  # torch.export takes a size of 1 for fixed
        shapes = exported_shapes(size)
        shapes = (tuple(shapes),) if isinstance(module, FlatModule) else tuple(shapes)
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)  # strict before torch 2.8
    graph_module = _functional(_unlifted(program))
    if not _mutations(graph_module):
        masks_by_where(graph_module)
        return graph_module
    with warnings.catch_warnings():  # torch calls a function that it has deprecated
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = program.run_decompositions({})
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:  # case 5
        names = ", ".join(name.removeprefix(PREFIX) if isinstance(module, FlatModule) else name for name in written)
        raise ExportError(f"the module writes into {names} in eval mode; an artifact keeps no state")
    graph_module = _unlifted(program)
    masks_by_where(graph_module)
    return graph_module


def _unlifted(program: torch.export.ExportedProgram) -> fx.GraphModule:
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return inline_regions(module)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode during the block, then restore the previous mode of every submodule."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return one tensor, or a flat tuple or list of tensors, as a tuple. Raise ExportError for anything else."""
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    if isinstance(values, tuple | list) and values and all(isinstance(value, Tensor) for value in values):
        return tuple(values)
    got = type(values).__name__
    if isinstance(values, tuple | list):
        got = f"a {got} of {', '.join(type(value).__name__ for value in values) or 'nothing'}"
    raise ExportError(f"a module must return one tensor or a flat tuple of tensors, got {got}")


def rebuild(module: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """Return a graph module with the tensors that ``graph`` reads. ``module`` shares them: never change them."""
    for node in graph.nodes:
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(module, graph)


def _refuse_bad_weights(module: nn.Module) -> None:
    """Case 2 of ``capture``."""
    for name, value in module.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ExportError(f"parameter {name} holds NaN or infinity; train or load the weights again")
    for name, buffer in module.named_buffers():  # a mask may hold infinities
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise ExportError(f"buffer {name} holds NaN; calibrate or load the weights again")


def _checked_outputs(flat: FlatModule) -> list[tuple[str, Any]]:
    """Return every output on the example inputs, by name. Cases 1 and 2 of ``capture``."""
    called = type(flat.net).__name__
    try:
        found = flat.named_outputs(*(value.clone() for value in flat.inputs))
    except Exception as error:  # the user's code may raise any type
        shapes = ", ".join(f"{list(value.shape)} {value.dtype}" for value in flat.inputs)
        raise ValueError(f"{called} does not take the example inputs ({shapes}): {one_line(error)}") from error
    for name, output in found:
        if isinstance(output, Tensor) and output.is_floating_point() and bool(torch.isnan(output).any()):
            raise ExportError(f"output {name} of {called} holds NaN on the example inputs")
    return found


def _mutations(module: fx.GraphModule) -> list[fx.Node]:
    calls = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return [node for node in calls if node.target._schema.is_mutable]


def _functional(module: fx.GraphModule) -> fx.GraphModule:
    """Case 3 of ``capture``: rename in-place operators whose target has no other reader and is not a view.

    Decomposition handles all other cases. It is not the default, because it also decomposes batch norm and dropout.
    """
    for node in _mutations(module):
        _, name, overload = str(node.target).split(".")
        functional = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
        known = functional is not None and overload in functional.overloads()
        if known and isinstance(node.args[0], fx.Node) and _owns_value(node.args[0]):
            node.target = getattr(functional, overload)
    return module


def _owns_value(node: fx.Node) -> bool:
    """Return True where ``node`` returns a tensor of its own that a single operator reads."""
    if len(node.users) != 1 or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not any(result.alias_info for result in node.target._schema.returns)


def _plain(module: fx.GraphModule, prefix: str = "") -> fx.GraphModule:
    """Return a copy with copied weights, without guards and pytrees. It returns a tensor or a flat tuple of tensors.

    prefix: the start of the names of weights and modules that is dropped.
    """
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            continue  # shape guards; runners check shapes
        if node.op == "output":
            values = tuple(nodes[value] for value in node.args[0] if isinstance(value, fx.Node))
            graph.output(values[0] if len(values) == 1 else values)
        elif node.op == "call_function" and node.target is aten._native_batch_norm_legit_no_training.default:
            *tensors, momentum, eps = (nodes[value] if isinstance(value, fx.Node) else value for value in node.args)
            args = (*tensors, False, momentum, eps, False)
            nodes[node] = graph.create_node("call_function", aten.batch_norm.default, args, {}, node.name)
            nodes[node].meta["val"] = node.meta["val"][0]
        elif _is_batch_norm_item(node):
            nodes[node] = nodes[node.args[0]]
        else:
            nodes[node] = graph.node_copy(node, lambda value: nodes[value])
    plain = rebuild(module, graph)
    if prefix:
        plain = _without_prefix(plain, prefix)
    _own_state(plain)
    return plain


def _without_prefix(module: fx.GraphModule, prefix: str) -> fx.GraphModule:
    """Return the module with the names that weights and modules have in the user's network."""
    state = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(node.target)(module)
            node.target = str(node.target).removeprefix(prefix)
            state[node.target] = value
        stack = node.meta.get("nn_module_stack", {})
        node.meta["nn_module_stack"] = {
            key: (name.removeprefix(prefix[:-1]).removeprefix("."), *rest) for key, (name, *rest) in stack.items()
        }
    return fx.GraphModule(state, module.graph)


def _is_batch_norm_item(node: fx.Node) -> bool:
    source = node.args[0] if node.op == "call_function" and node.args else None
    return isinstance(source, fx.Node) and source.target is aten._native_batch_norm_legit_no_training.default


def _own_state(module: fx.GraphModule) -> None:
    """Copy the graph's tensors, so that further training of the user's module does not change the program."""
    parameters: dict[int, nn.Parameter] = {}  # tied weights stay tied
    buffers: dict[int, Tensor] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                own = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                part._parameters[name] = parameters.setdefault(id(parameter), own)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffers.setdefault(id(buffer), buffer.detach().clone())
