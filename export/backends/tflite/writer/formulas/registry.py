"""Collect formulas: operators written as functions of torch, in terms of operators that the writer has.

A formula names those parameters of its operator that it reads, as the ATen schema does; the first one is called ``x``.
``decomposition`` traces a formula in the place of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import fx

from hnas.export.backends.tflite.writer.lowering import operator_name

_Formula = Callable[..., Any]
_Condition = Callable[[fx.Node], bool]
_FORMULAS: dict[str, tuple[_Formula, _Condition]] = {}


def formula(*names: str, when: _Condition = lambda _: True) -> Callable[[_Formula], _Formula]:
    """Register a function as the formula of operators, by their ATen names, such as ``mish`` or ``max.dim``.

    when: the calls that need the formula; all others are left to the writer.
    """

    def register(function: _Formula) -> _Formula:
        for name in names:
            assert name not in _FORMULAS, name
            _FORMULAS[name] = function, when
        return function

    return register


def find(node: fx.Node) -> _Formula | None:
    """Return the formula of a call, as a function of the arguments of the call; None if there is none."""
    name = operator_name(node)
    for key in (f"{name}.{str(node.target).rpartition('.')[2]}", name):
        if key in _FORMULAS:
            function, when = _FORMULAS[key]
            return _by_name(node.target, function) if when(node) else None
    return None


def _by_name(target: Any, function: _Formula) -> _Formula:
    schema = target._schema.arguments
    names = ["x", *(argument.name for argument in schema[1:])]
    defaults = {name: argument.default_value for name, argument in zip(names, schema, strict=True)}
    read = signature(function).parameters

    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        return function(**{name: value for name, value in given.items() if name in read})

    return call
