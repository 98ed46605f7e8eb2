"""Read and write records as strict JSON. The frozen dataclass of a record is the only statement of its schema.

``decode(Manifest, read_json(path), str(path))``. A file from elsewhere is not trusted: every field is checked first.
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
from typing import Any, Literal, Tuple, TypeVar

from hnas.export.device.disk import read_bounded

JSON = Any  # a value of json.loads: narrow it before use
T = TypeVar("T")

_MAX_BYTES = 16 * 2**20  # a larger file is not a record
_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))  # Python 3.8 has no X | Y
_NAMES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def read_json(path: Path) -> JSON:
    """Return the JSON value in ``path``.

    Raises:
        ValueError: the file is missing, not plain, larger than 16 MiB or not UTF-8 JSON; it has NaN, a number beyond
        the largest, or a duplicate key.
    """

    def pairs(items: list[tuple[str, JSON]]) -> dict[str, JSON]:
        found = dict(items)
        if len(found) != len(items):
            twice = next(key for key, _ in items if [k for k, _ in items].count(key) > 1)
            raise ValueError(f"key {twice!r} is given twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    data = read_bounded(path, _MAX_BYTES, f"{path.parent} has no {path.name}")
    try:
        value = json.loads(data.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_float=_number)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair, which cannot be printed later
        return value
    except RecursionError:
        raise ValueError(f"{path} is not readable JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None


def _number(text: str) -> float:
    """Return a number. Raise ValueError if it is too large for a float, which would be read as infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the largest number")
    return value


def write_json(path: Path, value: JSON) -> None:
    """Write ``value`` to ``path`` atomically: a reader sees the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def encode(value: object) -> JSON:
    """Return ``value`` as plain JSON. Dataclasses and mappings become objects, tuples lists; keys keep their order."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, abc.Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: JSON, file: str, at: str = "", **given: object) -> T:
    """Return the dataclass ``kind`` made from ``value``.

    ``file``: the name of the file, for errors.
    ``at``: the path of ``value`` within the file, for errors.
    ``given``: fields that do not come from the file.

    Types are checked: str, int, float (finite), bool, None, ``X | None``, Literal, ``tuple[X, ...]``, ``tuple[X, Y]``,
    ``Mapping[str, X]`` and dataclasses of those.

    Raises:
        ValueError: a missing or unknown key, a wrong type, or a ValueError of the dataclass itself. A field with a
        default may be missing.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {at or 'the file'} is {_show(value)}, expected an object")
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
    """Remove the key ``schema`` from ``value``. Raise ValueError unless its value is ``known``."""
    if not isinstance(value, dict):
        raise ValueError(f"{file}: the file is {_show(value)}, expected an object")
    found = value.pop("schema", None)
    if type(found) is not int or found != known:
        raise ValueError(f"{file}: schema is {_show(found)}, known: {known}; use the version of hnas that wrote it")


def _decode(hint: Any, value: JSON, file: str, at: str) -> Any:
    """Return ``value`` as the type ``hint``. Raise ValueError that names the file and the path in it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, file, at)
    if origin in _UNIONS:
        return _decode_optional(args, value, file, at)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(_decode(kind, item, file, f"{at}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    elif origin is abc.Mapping and isinstance(value, dict):
        return {key: _decode(args[1], item, file, _join(at, key)) for key, item in value.items()}
    elif _is_plain(hint, value):
        return float(value) if hint is float else value
    raise ValueError(f"{file}: {at} is {_show(value)}, expected {_expected(hint)}")


def _decode_optional(kinds: Tuple[Any, ...], value: JSON, file: str, at: str) -> Any:
    """Decode ``X | None``, the only union that records use."""
    if value is None and type(None) in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    return _decode(kind, value, file, at)


def _is_plain(hint: Any, value: JSON) -> bool:
    """Return whether ``value`` is one of the literals ``hint``, or a string, number or bool of the type ``hint``."""
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if hint is float:
        return type(value) in (int, float) and _finite(value)
    return hint in (str, int, bool) and type(value) is hint


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
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
