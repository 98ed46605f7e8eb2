"""Replace operators that the writer lacks by operators that it has: ``decompose(program, LOWERINGS)``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hnas.export.backends.tflite.writer import formulas
from hnas.export.backends.tflite.writer.lowering import is_fixed, operator_name
from hnas.export.graph.nodes import aten, constant, edit
from hnas.export.graph.program import Program

ORIGIN = "hnas_decomposed"  # key in the meta of a part: the name of the operator that it is a part of
_DEPTH = 8  # decompositions of decompositions; more means a circle
_COPIES = (aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.detach_.default, aten.detach.default)


def decompose(program: Program, native: Container[str]) -> Program:
    """Return the program with each call that the writer cannot write as calls that it can, as far as they are known.

    native: the names of the operators that the writer has.

    1. The writer has a formula for this call: it is used. A formula may hold for some uses of an operator only.
    2. The writer has the operator: unchanged.
    3. torch has a decomposition: it is used.
    4. Any other call: unchanged. ``lower`` names it.

    Calls of constants only are unchanged too, because ``lower`` computes them.
    """

    def rewrite(module: fx.GraphModule) -> int:
        count, fixed = 0, set[fx.Node]()
        pending = [(node, 0) for node in reversed(module.graph.nodes)]
        while pending:
            node, depth = pending.pop()
            if node._erased or node.op == "output":
                continue
            if is_fixed(node, fixed):
                fixed.add(node)
                continue
            parts = _parts(node, native) if depth < _DEPTH else None
            if parts is not None:
                made = _inline(module, node, parts)
                pending += [(each, depth + 1) for each in reversed(made)]
                count += 1
        return count

    return edit(program, "decompose", rewrite)


def _parts(node: fx.Node, native: Container[str]) -> fx.GraphModule | None:
    """Return the call as a graph of other calls, whose inputs are those of ``node``; None if none is known."""
    sources = [each.meta.get("val") for each in node.all_input_nodes]
    if not isinstance(node.target, torch._ops.OpOverload) or not all(isinstance(each, Tensor) for each in sources):
        return None
    formula = formulas.find(node)
    if formula is not None:  # case 1
        parts = _traced(node, formula, {}, whole=True)
        return parts if parts and _has_results(node, parts) else None
    return None if operator_name(node) in native else _by_torch(node, native)  # cases 2 and 3


def _by_torch(node: fx.Node, native: Container[str]) -> fx.GraphModule | None:
    """Return the call as torch decomposes it, down to operators that the writer has; None if torch does not."""
    table = {target: way for target, way in _torch_table().items() if str(target).split(".")[1] not in native}
    if node.target in torch._decomp.decomposition_table:
        table.setdefault(node.target, torch._decomp.decomposition_table[node.target])
    assert callable(node.target)
    parts = _traced(node, node.target, table, whole=False)
    return None if parts is None or node.target in [each.target for each in parts.graph.nodes] else parts


def _has_results(node: fx.Node, parts: fx.GraphModule) -> bool:
    """Return whether ``parts`` computes every result that is read. A formula may leave out some, as None."""
    (found,) = next(each for each in parts.graph.nodes if each.op == "output").args
    return isinstance(found, fx.Node) or all(found[each.args[1]] is not None for each in node.users if each.users)


@cache
def _torch_table() -> Mapping[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions

    found: Any = core_aten_decompositions()
    return dict(found.items())


def _traced(node: fx.Node, function: Callable[..., Any], table: Any, *, whole: bool) -> fx.GraphModule | None:
    """Return the graph of ``function`` on the arguments of ``node``; None if torch cannot trace it.

    whole: keep composite operators, such as linear, as they are.
    """
    sources = node.all_input_nodes

    def run(*values: Tensor) -> Any:
        known = dict(zip(sources, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        return function(*args, **kwargs)

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        values = [torch.empty(tuple(each.meta["val"].shape), dtype=each.meta["val"].dtype) for each in sources]
        try:
            with enable_python_dispatcher():
                return make_fx(run, decomposition_table=table, pre_dispatch=whole)(*values)
        except Exception as error:  # noqa: BLE001  # the decompositions of torch raise any type
            logging.getLogger(__name__).debug("cannot decompose %s: %s", node.target, error)
            return None


def _inline(module: fx.GraphModule, node: fx.Node, parts: fx.GraphModule) -> list[fx.Node]:
    """Put the calls of ``parts`` in the place of ``node``, and return them. They inherit its meta data."""
    known: dict[fx.Node, Any] = {}
    sources = iter(node.all_input_nodes)
    made: list[fx.Node] = []
    for part in parts.graph.nodes:
        if part.op == "placeholder":
            known[part] = next(sources)
        elif part.op == "get_attr":
            known[part] = constant(module, node, "formula", getattr(parts, part.target))
            made.append(known[part])
        elif part.op == "call_function" and part.target in _COPIES:
            known[part] = known[part.args[0]]
        elif part.op == "call_function":
            with module.graph.inserting_before(node):
                known[part] = module.graph.node_copy(part, known.__getitem__)
            known[part].target = _functional(part)
            known[part].meta = {ORIGIN: operator_name(node), **node.meta, "val": part.meta.get("val")}
            made.append(known[part])
        elif part.op == "output":
            _replace(node, fx.map_arg(part.args[0], known.__getitem__))
    return made


def _functional(part: fx.Node) -> Any:
    """Return the target of a call that writes in place as one that does not, if nothing else reads what it writes to.

    Decompositions of torch write in place into values of their own.
    """
    target = part.target
    writes = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
    if writes and len(part.all_input_nodes[0].users) == 1:
        _, name, overload = str(target).split(".")
        return getattr(getattr(aten, name.removesuffix("_"), None), overload, target)
    return target


def _replace(node: fx.Node, result: Any) -> None:
    """Let the readers of ``node`` read ``result``: one value, or several for an operator with several results."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            assert operator_name(user) == "getitem"
            user.replace_all_uses_with(result[user.args[1]])
            user.graph.erase_node(user)
    node.graph.erase_node(node)
