"""Read the marks of a program: nodes that stay in float, and a draft. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.export.graph.program import Program

FLOAT = "hnas_float"  # key in a node's meta; `hnas.export.int8.mixed.keep_float` sets it
_DRAFT = ("draft", 1)  # in the field ``fired`` of a program


def kept_float(program: Program) -> tuple[str, ...]:
    """Return the names of the nodes that are marked to stay in float."""
    return tuple(node.name for node in program.module.graph.nodes if node.meta.get(FLOAT))


def as_draft(program: Program) -> Program:
    """Return the program, marked as one that is only timed: converters leave out what changes values but not speed."""
    return replace(program, fired=(*program.fired, _DRAFT))


def is_draft(fired: Sequence[tuple[str, int]]) -> bool:
    """Return whether a program with the field ``fired`` is only timed."""
    return _DRAFT in fired
