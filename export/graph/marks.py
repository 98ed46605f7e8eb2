"""Mark nodes of a program that stay in float. No torch: backends read marks before they import it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.export.graph.program import Program

FLOAT = "hnas_float"  # the key in a node's meta that keeps it out of int8; `hnas.export.int8.mixed` sets it


def kept_float(program: Program) -> tuple[str, ...]:
    """Return the names of the nodes that are marked to stay in float."""
    return tuple(node.name for node in program.module.graph.nodes if node.meta.get(FLOAT))
