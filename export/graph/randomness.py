"""Refuse a graph that draws random numbers: ``refuse_randomness(capture(net, inputs))``."""

import torch
from torch import fx

from hnas.export.device.errors import ExportError
from hnas.export.graph.nodes import bound
from hnas.export.graph.program import Program

_SWITCHES = ("train", "training")  # parameters that switch the randomness of an operator off
_RATES = ("p", "dropout_p")  # parameters that are 0 where an operator drops nothing


def refuse_randomness(program: Program) -> None:
    """Raise ExportError in one line that names the random operators, and the modules that call them.

    1. A random operator whose result reaches an output: refused. No two calls of such a network are equal.
    2. Dropout in eval mode, or at a rate of 0: allowed.
    3. A random value that reaches no output: allowed.
    """
    reached = _reached(program.module.graph)
    found = [node for node in program.module.graph.nodes if node in reached and _is_random(node)]
    if not found:
        return
    named = sorted({f"{str(node.target).removesuffix('.default')} in {_module_of(node)}" for node in found})
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    raise ExportError(
        f"the network draws random numbers in eval mode: {', '.join(named[:3])}{more}; {_mend(str(found[0].target))}"
    )


def _mend(operator: str) -> str:
    if "attention" in operator:
        return "pass dropout_p=0.0 in eval mode"
    if "dropout" in operator:
        return "pass training=self.training to F.dropout, which drops by default even in eval mode"
    return "draw them outside of the network and pass them as an input"


def _reached(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output depends on."""
    reached: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(node.all_input_nodes)
    return reached


def _is_random(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    values = bound(node)
    idle = any(values.get(name) is False for name in _SWITCHES) or any(values.get(name) == 0 for name in _RATES)
    return not idle  # idle: case 2


def _module_of(node: fx.Node) -> str:
    """Return the path of the module that calls the operator, such as ``encoder.layers.3.attn``."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return stack[-1] if stack else "the network itself"
