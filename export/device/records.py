"""Strict JSON for records: what was read is checked against a frozen dataclass, field by field, before anybody uses it.

A file that came from elsewhere is hostile until then. The dataclass is the only statement of its schema.
"""

from __future__ import annotations

import json
import math
import os
import types
import typing
from collections import abc
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

JSON = Any  # whatever json.loads may give: narrow it before use
T = TypeVar("T")

_MAX_BYTES = 16 * 2**20  # a record is small; a larger file is not one
_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))  # X | Y is younger than some devices
_NAMES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def read_json(path: Path) -> JSON:
    """The JSON value in ``path``; ValueError in one line for anything else: size, encoding, NaN, a key given twice."""

    def pairs(items: list[tuple[str, JSON]]) -> dict[str, JSON]:
        found = dict(items)
        if len(found) != len(items):
            twice = next(key for key, _ in items if [k for k, _ in items].count(key) > 1)
            raise ValueError(f"key {twice!r} is given twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a plain file")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair would fail later, wherever it is shown
        return value
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except RecursionError:
        raise ValueError(f"{path} is not readable JSON: nested too deeply") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None


def write_json(path: Path, value: JSON) -> None:
    """Write ``value`` to ``path`` in one step: a reader sees the old file or the whole new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def encode(value: object) -> JSON:
    """``value`` as plain JSON: dataclasses and mappings become objects, tuples lists; the order of keys is kept."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, abc.Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: JSON, file: str, at: str = "", **given: object) -> T:
    """A ``kind`` (a dataclass) from ``value``; ``given`` are fields that do not come from the file.

    Every type is checked: str, int, float (a finite number), bool, None, ``X | Y``, Literal, ``tuple[X, ...]``,
    ``tuple[X, Y]``, ``Mapping[str, X]`` and dataclasses of those. Missing and unknown keys are refused; a field with a
    default may be missing. A ValueError of the dataclass itself gets the file and the place put before it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {at or 'the whole'} is {_show(value)}, expected an object")
    hints = typing.get_type_hints(kind)
    members = {field.name: field for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    for name in value:
        if name not in members:
            raise ValueError(f"{file}: {_join(at, name)} is not known; known: {', '.join(members)}")
    read = dict(given)
    for name, field in members.items():
        if name in value:
            read[name] = _decode(hints[name], value[name], file, _join(at, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{file}: {_join(at, name)} is missing")
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{file}: {_join(at, str(error))}") from None


def check_version(value: JSON, file: str, known: int) -> None:
    """Take the key ``schema`` out of ``value``; ValueError if it is another version than ``known``."""
    if not isinstance(value, dict):
        raise ValueError(f"{file}: the whole is {_show(value)}, expected an object")
    found = value.pop("schema", None)
    if type(found) is not int or found != known:
        raise ValueError(f"{file}: schema is {_show(found)}, known: {known}; use the hnas that wrote it")


def _decode(hint: Any, value: JSON, file: str, at: str) -> Any:
    """``value`` as the type ``hint``, or a ValueError that names the file and the place."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, file, at)
    if origin in _UNIONS:
        if value is None and type(None) in args:
            return None
        (hint,) = (arg for arg in args if arg is not type(None))  # the records only use "X | None"
        return _decode(hint, value, file, at)
    if origin is Literal and isinstance(value, str) and value in args:
        return value
    if origin is tuple and isinstance(value, list) and (args[-1] is Ellipsis or len(args) == len(value)):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_decode(kind, item, file, f"{at}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if origin is abc.Mapping and isinstance(value, dict):
        return {key: _decode(args[1], item, file, _join(at, key)) for key, item in value.items()}
    if hint is float and type(value) in (int, float) and _finite(value):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise ValueError(f"{file}: {at} is {_show(value)}, expected {_expected(hint)}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _show(value: JSON) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _expected(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return "a list" if args[-1] is Ellipsis else f"a list of {len(args)}"
    return _NAMES.get(hint, "an object")
