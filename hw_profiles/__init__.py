"""Devices as data: one TOML file each, found by its name; neither torch nor numpy is imported here.

A profile says what a device can run and how fast it can be at best. It holds no measurement: what is measured on the
machine at hand travels with its bundle. Every figure has its origin in ``sources``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

KINDS = ("cpu", "gpu", "board", "phone")
RANGES = ("minmax", "percentile", "entropy", "mse")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Override:
    """How int8 differs on a device from its backend's policy, because it was measured to be better there.

    ``leave_float`` are operators, in the backend's own words, that stay in float; ``ranges`` is one of RANGES; empty
    leaves the policy as it is.
    """

    leave_float: tuple[str, ...] = ()
    ranges: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device runs, what it can reach at best, and where those figures come from.

    ``precisions`` begin with fp32; w8 is int8 for the weights alone. ``peaks`` are dense GFLOP/s (GOP/s for int8, one
    multiply-add is two) of ``threads`` CPU threads or of the whole GPU in ``power_mode``; ``bandwidth`` is GB/s,
    ``memory`` MB, ``launch_us`` the floor of one kernel in microseconds.
    ``quantisation`` has overrides of the int8 policy by backend.
    ``band`` holds the factors that turn a predicted latency into its error band. ``local`` devices are the machine at
    hand, whose latency is measured; the latency of every other one is predicted.
    """

    name: str
    title: str
    kind: str
    backend: str
    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    precision: str = "auto"
    threads: int = 1
    peaks: Mapping[str, float] = field(hash=False)
    bandwidth: float
    memory: float
    launch_us: float
    band: tuple[float, float]
    local: bool = False
    aliases: tuple[str, ...] = ()
    power_mode: str = ""
    compute_capability: str = ""
    toolchain: Mapping[str, str] = field(default_factory=dict, hash=False)
    quantisation: Mapping[str, Override] = field(default_factory=dict, hash=False)
    sources: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Every device there is a profile of, in alphabetical order, without the aliases."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load(name: str) -> Device:
    """The device of that name or alias; ``ValueError`` names the known ones."""
    if name in names():
        return _read(name)
    for known in names():
        if name in _read(known).aliases:
            return _read(known)
    raise ValueError(f"no device {name!r}; known: {', '.join(names())}")


def local_devices() -> dict[str, Device]:
    """Return the profile of this machine for each backend that has one."""
    found: dict[str, Device] = {}
    for device in map(_read, names()):
        if device.local:
            found.setdefault(device.backend, device)
    return found


def parse(name: str, text: str) -> Device:
    """The profile in ``text``; whatever is unknown, missing, mistyped or contradictory is a one-line ``ValueError``."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"profile {name}: not TOML: {error}") from None
    known = {each.name: each for each in fields(Device) if each.name != "name"}
    for key in table:
        if key not in known:
            raise ValueError(f"profile {name}: unknown key {key!r}; known: {', '.join(known)}")
    for key, each in known.items():
        if key not in table and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"profile {name}: {key} is missing; it is a {_WORDS[str(each.type)]}")
    values = {key: _value(name, key, str(known[key].type), value) for key, value in table.items()}
    device = Device(name=name, **values)
    _judge(device)
    return device


@cache
def _read(name: str) -> Device:
    return parse(name, (_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


# The annotations of Device, which are the schema, in words for a person.
_WORDS = {
    "str": "string",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "tuple[str, ...]": "list of strings",
    "tuple[float, float]": "list of two numbers",
    "Mapping[str, float]": "table of numbers",
    "Mapping[str, str]": "table of strings",
    "Mapping[str, Override]": "table of tables, one a backend",
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(name: str, key: str, kind: str, value: Any) -> Any:
    """``value`` as the type that ``Device`` declares for ``key``."""
    match kind:
        case "str" if isinstance(value, str):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "float" if _is_number(value):
            return float(value)
        case "tuple[str, ...]" if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        case "tuple[float, float]" if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            return (float(value[0]), float(value[1]))
        case "Mapping[str, float]" if isinstance(value, dict) and all(map(_is_number, value.values())):
            return {item: float(number) for item, number in value.items()}
        case "Mapping[str, str]" if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
        case "Mapping[str, Override]" if isinstance(value, dict):
            return {item: _override(name, f"{key}.{item}", table) for item, table in value.items()}
    raise ValueError(f"profile {name}: {key}={value!r} is not a {_WORDS[kind]}")


def _override(name: str, key: str, table: Any) -> Override:
    """One backend's table of overrides."""
    known = {each.name: str(each.type) for each in fields(Override)}
    if not isinstance(table, dict):
        raise ValueError(f"profile {name}: {key}={table!r} is not a table of {', '.join(known)}")
    for item in table:
        if item not in known:
            raise ValueError(f"profile {name}: unknown key {f'{key}.{item}'!r}; known: {', '.join(known)}")
    return Override(**{item: _value(name, f"{key}.{item}", known[item], value) for item, value in table.items()})


def _judge(device: Device) -> None:
    """Refuse a profile whose figures contradict each other."""
    uncovered = [precision for precision in device.precisions if precision not in device.peaks]
    positive = (*device.peaks.values(), device.bandwidth, device.memory, device.threads)
    laws = (
        (device.kind in KINDS, f"kind={device.kind!r} is not one of {', '.join(KINDS)}"),
        (device.backend in device.backends, f"backend={device.backend!r} is not in backends"),
        (device.precisions[:1] == ("fp32",), "precisions must start with fp32"),
        (device.precision in (*device.precisions, "auto"), f"precision={device.precision!r} is not in precisions"),
        (not uncovered, f"no peak for {', '.join(uncovered)}"),
        (min(positive) > 0, "peaks, bandwidth, memory and threads must be above 0"),
        (device.launch_us >= 0, f"launch_us={device.launch_us} is below 0"),
        (0 < device.band[0] <= 1 <= device.band[1], f"band={list(device.band)} must enclose 1"),
        (set(device.quantisation) <= set(device.backends), "quantisation names a backend that is not in backends"),
        (
            all(each.ranges in ("", *RANGES) for each in device.quantisation.values()),
            f"quantisation has ranges that are not one of {', '.join(RANGES)}",
        ),
        (bool(device.sources), "sources is empty; say where the figures come from"),
    )
    for holds, fault in laws:
        if not holds:
            raise ValueError(f"profile {device.name}: {fault}")
