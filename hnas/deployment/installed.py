"""Compare the installed packages with the ranges that hnas states and with the versions that it was run with."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files

_PYTHON = "Python"


def remarks() -> list[str]:
    """Return a line for each package that is outside the range of hnas, or newer than any version it was run with.

    1. Outside the range: pip lets a later installation break a range, with a warning only.
    2. Newer than the newest minor version in ``assets/tested.json``, which ``make matrix`` writes; Python too.

    Example:
        remarks()  # ["torch 2.5.1 is installed, hnas needs torch<3,>=2.6; pip install 'torch<3,>=2.6'"]
    """
    found: list[str] = []
    record = _tested()
    for name, wanted in (*_ranges(), (_PYTHON, "")):
        installed = platform.python_version() if name == _PYTHON else versions_of([name]).get(name)
        if installed is None:
            continue
        low, high = record.get(name, ("", ""))
        if not admits(wanted, installed):
            found.append(f"{name} {installed} is installed, hnas needs {name}{wanted}; pip install '{name}{wanted}'")
        elif high and _release(installed)[:2] > _release(high)[:2]:
            found.append(f"{name} {installed} is newer than any version that hnas was run with ({low} to {high})")
    return found


def admits(wanted: str, installed: str) -> bool:
    """Return whether the range ``wanted`` admits the version ``installed``; only the numbers of a release count.

    wanted: ``>=``, ``<`` and ``==`` with whole releases or a last part of ``*``, joined by commas; "" admits all.

    Raises:
        ValueError: another comparison.
    """
    got = _release(installed)
    for part in filter(None, wanted.replace(" ", "").split(",")):
        compared = re.fullmatch(r"(>=|<|==)(\d+(?:\.\d+)*)(\.\*)?", part)
        if compared is None:
            raise ValueError(f"cannot compare with {part!r}; known: >=1.2, <2, ==1.2 and ==1.2.*")
        sign, limit, prefix = compared[1], _release(compared[2]), compared[3]
        width = len(limit) if prefix else max(len(limit), len(got))
        left, right = _padded(got, width), _padded(limit, width)
        if not {">=": left >= right, "<": left < right, "==": left == right}[sign]:
            return False
    return True


def _tested() -> dict[str, tuple[str, str]]:
    """Return the lowest and the newest version that hnas was run with, of each package and of Python."""
    record = json.loads((files("hnas") / "assets" / "tested.json").read_text("utf-8"))
    return {name: (low, high) for name, (low, high) in record.items()}


def _ranges() -> Iterator[tuple[str, str]]:
    """Yield the name and the range of each dependency of the installed hnas."""
    try:
        lines = requires("hnas") or []
    except PackageNotFoundError:  # run from the tree, not installed
        return
    seen = set()
    for line in lines:
        parts = re.match(r"([\w.-]+)(?:\[[\w,\s-]+\])?([^;]*)", line)
        assert parts is not None
        if parts[1] != "hnas" and "extra == 'dev'" not in line.replace('"', "'") and parts[0] not in seen:
            seen.add(parts[0])
            yield parts[1], parts[2].strip()


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> its version, of those ``packages`` that are installed, in the given order.

    Example: ``versions_of(["torch", "timm"])`` is ``{"torch": "2.13.0"}`` where timm is missing.
    """
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _release(text: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: (2, 13, 0) of "2.13.0+cpu"."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def _padded(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    return (release + (0,) * width)[:width]
