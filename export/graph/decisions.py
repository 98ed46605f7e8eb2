"""Tell whether a graph ends in a decision between classes: ``ends_in_decision(program)``."""

from torch import fx

from hnas.export.graph.nodes import aten
from hnas.export.graph.program import Program

_DECISIONS = {
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.argmax.default,
}


def ends_in_decision(program: Program) -> bool:
    """Return whether the first output is that of a softmax or an argmax: only then its largest value is an answer."""
    output = next(node for node in program.module.graph.nodes if node.op == "output")
    value = output.args[0]
    first = value[0] if isinstance(value, tuple | list) else value
    return isinstance(first, fx.Node) and first.target in _DECISIONS
