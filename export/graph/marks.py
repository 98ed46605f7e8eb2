"""Read the marks of a program: nodes that stay in float. This module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.export.graph.program import Program

FLOAT = "hnas_float"  # key in a node's meta; `hnas.export.int8.mixed.keep_float` sets it


def kept_float(program: Program) -> tuple[str, ...]:
    """Return the names of the nodes that are marked to stay in float."""
    return tuple(node.name for node in program.module.graph.nodes if node.meta.get(FLOAT))
