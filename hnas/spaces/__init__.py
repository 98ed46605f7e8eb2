"""Search spaces. Each file of this folder defines one space by a function that has the name of the file.

``spaces.load("hybrid_vision")(classes=10)`` returns a ``Space``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from hnas.space import Space

_LARGEST, _DEEPEST, _LONGEST = 2**16, 256, 1024  # sizes, layers of a stage, options of a choice


def names() -> tuple[str, ...]:
    """Return the name of every space, which is the name of its file."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> Callable[..., Space]:
    """Return the function that makes the space ``name``, imported only now. Raise ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"no space {name!r}; known: {', '.join(names())}")
    return cast(Callable[..., Space], getattr(importlib.import_module(f"{__name__}.{name}"), name))


def check_arguments(value: Any, at: str = "") -> None:
    """Raise ValueError for a number or a list in the arguments of a space that is larger than any network has."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_arguments(inner, str(key))
    elif isinstance(value, list | tuple):
        if len(value) > _LONGEST:
            raise ValueError(f"{at[:60]} is a list of {len(value)}, at most {_LONGEST}")
        for inner in value:
            check_arguments(inner, at)
    elif isinstance(value, int | float) and not abs(value) <= (_DEEPEST if at in ("depths", "cells") else _LARGEST):
        raise ValueError(f"{at[:60]} is {str(value)[:40]}, which is larger than a network has")


def restore(record: Mapping[str, Any]) -> Space:
    """Return the space that ``Space.to_json`` described, without its removed options.

    Raises:
        ValueError: the record is malformed, or it belongs to another version of the space.

    Example: ``restore(read_json(Path("supernet.json"))["space"])``
    """
    try:
        name, arguments = str(record["name"]), dict(record["arguments"])
        options = {key: [_option(o) for o in listed] for key, listed in dict(record["options"]).items()}
    except (KeyError, TypeError, ValueError):
        raise ValueError("a space is recorded as name, arguments and options; this record is not") from None
    check_arguments(arguments)
    try:
        space = load(name)(**arguments)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"the space {name!r} does not take these arguments: {error}") from None
    if record.get("lone"):
        if any(len(listed) != 1 for listed in options.values()):
            raise ValueError(f"the record of space {name!r} says it has one member, yet a choice has several options")
        return space.alone(space.arch({key: listed[0] for key, listed in options.items()}))
    return _narrowed(space, options)


def _narrowed(space: Space, options: Mapping[str, list[Any]]) -> Space:
    """Return the space with these options alone. Raise ValueError if a choice or an option is unknown."""
    if list(options) != list(space.choices):
        raise ValueError(f"the record of space {space.name!r} names other choices than this version of it has")
    choices = {}
    for key, choice in space.choices.items():
        kept = tuple(option for option in choice.options if option in options[key])
        if not kept or len(kept) != len(options[key]):
            raise ValueError(f"{key}: {options[key]} are not options of the space {space.name!r}")
        choices[key] = replace(choice, options=kept)
    return replace(space, choices=choices)


def _option(value: Any) -> Any:
    """Return ``value`` as an option: JSON has lists where options are tuples."""
    return tuple(value) if isinstance(value, list) else value
