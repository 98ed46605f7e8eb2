"""Describe the type of an option in words, for error messages: ``describe(int | None)`` is "a whole number"."""

from __future__ import annotations

import json
from typing import Any

from msgspec import inspect

from hnas.ranges import LARGEST

_PLAIN = {inspect.BoolType: "true or false", inspect.StrType: "a name in quotes", inspect.AnyType: ""}


def describe(kind: Any) -> str:
    """Return a description of the values of type ``kind``, such as "a whole number from 1 on"."""
    return _words(inspect.type_info(kind))


def is_toml(kind: Any) -> bool:
    """Return whether a TOML file can express a value of type ``kind``: numbers, names, lists and tables of them."""
    return _is_toml(inspect.type_info(kind))


def _words(info: inspect.Type) -> str:
    if isinstance(info, inspect.Metadata):
        described = (info.extra_json_schema or {}).get("description")
        return str(described) if described else _words(info.type)
    if isinstance(info, inspect.UnionType):  # TOML has no null
        return " or ".join(_words(part) for part in info.types if not isinstance(part, inspect.NoneType))
    if isinstance(info, inspect.LiteralType):
        return " or ".join(map(json.dumps, info.values))
    if isinstance(info, inspect.DictType):
        inner = _words(info.value_type)
        return f"a table, each {inner}" if inner else "a table"
    if isinstance(info, inspect.IntType):
        return "a whole number" + _range(info)
    if isinstance(info, inspect.FloatType):
        return "a share between 0 and 1" if (info.ge, info.le) == (0, 1) else _number(info)
    return _PLAIN.get(type(info), "a list")


def _number(info: inspect.FloatType) -> str:
    finite = "finite " if info.le == LARGEST else ""
    if info.gt is not None:
        return f"a {finite}number above {info.gt:g}"
    return f"a {finite}number" + ("" if info.ge is None else f" from {info.ge:g} on")


def _range(info: inspect.IntType) -> str:
    if info.ge is None:
        return ""
    return f" from {info.ge} on" if info.le in (None, LARGEST) else f" from {info.ge} to {info.le}"


def _is_toml(info: inspect.Type) -> bool:
    if isinstance(info, inspect.Metadata):
        return _is_toml(info.type)
    if isinstance(info, inspect.UnionType):
        given = [part for part in info.types if not isinstance(part, inspect.NoneType)]
        return all(map(_is_toml, given))
    if isinstance(info, inspect.DictType):
        return _is_toml(info.value_type)
    if isinstance(info, inspect.TupleType):
        return all(map(_is_toml, info.item_types))
    if isinstance(info, inspect.VarTupleType):
        return _is_toml(info.item_type)
    plain = inspect.IntType | inspect.FloatType | inspect.BoolType | inspect.StrType | inspect.LiteralType
    return isinstance(info, plain | inspect.AnyType)
