"""Read device profiles: one TOML file for each device, found by its name. Imports neither torch nor numpy.

``hw_profiles.load("jetson", power="MAXN_SUPER").backend`` is "tensorrt".

A profile states the backends, precisions and peak speed of a device, and the origin of these figures. It contains no
measurements: measured times are in bundles. Efficiencies that were fitted on published times are in ``fitted/``; the
module ``calibration`` reads them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from hnas.hw_profiles.at_hand import NAME as GPU_HERE
from hnas.hw_profiles.at_hand import gpu_figures

KINDS = ("cpu", "gpu", "board", "phone")
RANGES = ("minmax", "percentile", "entropy", "mse", "unseen")
_FOLDER = Path(__file__).parent
_LARGEST = 1e12


@dataclass(frozen=True)
class Override:
    """Describe changes to the int8 policy of a backend for one device, for which a measurement showed a gain.

    leave_float: operators that stay in float, by the names that the backend uses.
    ranges: one of ``RANGES``; empty keeps the policy.
    """

    leave_float: tuple[str, ...] = ()
    ranges: str = ""


@dataclass(frozen=True)
class PowerMode:
    """Describe the clocks of a device in one power mode.

    mhz: clock of the GPU in MHz.
    gpu: share of the GPU that is switched on, above 0 and at most 1.
    bandwidth: memory bandwidth in GB/s.
    """

    mhz: float
    gpu: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Device:
    """Describe the backends, precisions and peak speed of a device, and the origin of these figures.

    name: name of the profile, which is its file name.
    title: name for messages.
    kind: one of ``KINDS``.
    backend: the default backend.
    backends: all backends that can be used.
    precisions: all precisions that can be used, fp32 first. w8 has int8 weights and fp32 activations.
    precision: the default precision; "auto" tries all.
    threads: default number of CPU threads of a run.
    peaks: peak speed by precision, dense, of all ``threads`` or of the whole GPU in ``power_mode``: GFLOP/s, or GOP/s
        for int8. A multiply-add counts as two operations.
    bandwidth: memory bandwidth in GB/s.
    memory: size of the memory in MB.
    launch_us: time of the smallest kernel, in microseconds.
    band: two factors. A predicted latency times these factors is its error band where no published row covers it.
    local: True for this machine, whose latency is measured. The latency of other devices is predicted.
    aliases: other names of the profile.
    power_mode: power mode that the figures assume, in words.
    power: name of the power mode that the figures belong to; empty if the profile has no ``power_modes``.
    power_modes: all power modes, by the name that the device uses.
    calibration: name of the fitted efficiencies in ``fitted/``; empty if there are none.
    compute_capability: compute capability of the GPU, such as "8.7"; empty without an NVIDIA GPU.
    toolchain: versions of the software of the device, by name.
    quantisation: changes to the int8 policy, by backend.
    sources: the origin of the figures.
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
    power: str = ""
    power_modes: Mapping[str, PowerMode] = field(default_factory=dict, hash=False)
    calibration: str = ""
    compute_capability: str = ""
    toolchain: Mapping[str, str] = field(default_factory=dict, hash=False)
    quantisation: Mapping[str, Override] = field(default_factory=dict, hash=False)
    sources: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the name of every device that has a profile, in alphabetical order, without aliases."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load(name: str, power: str | None = None) -> Device:
    """Return the device with the name or alias ``name``.

    power: name of a power mode of the device; None: the default mode of the profile.

    Raises:
        ValueError: the name or the power mode is unknown; "cuda", the GPU of this machine, and there is none.
    """
    device = (
        Device(**gpu_figures())
        if name == GPU_HERE
        else next((found for found in map(_read, names()) if name == found.name or name in found.aliases), None)
    )
    if device is None:
        raise ValueError(f"no device {name!r}{_suggestion(name)}; known: {', '.join((*names(), GPU_HERE))}")
    return device if power is None else _in_power_mode(device, power)


def _in_power_mode(device: Device, power: str) -> Device:
    """Return the device with the peaks and the bandwidth of one power mode. MODE_30W and 30w are 30W."""
    if not device.power_modes:
        raise ValueError(f"{device.name} has no power modes; leave the power mode out")
    wanted = power.upper().removeprefix("MODE_")
    if wanted not in device.power_modes:
        known = (f"{mode} (default)" if mode == device.power else mode for mode in device.power_modes)
        raise ValueError(f"no power mode {power!r} of {device.name}; known: {', '.join(known)}")
    mode, given = device.power_modes[wanted], device.power_modes[device.power]
    faster = (mode.mhz * mode.gpu) / (given.mhz * given.gpu)
    share = "" if mode.gpu == 1 else f", {mode.gpu:.3g} of it switched on"
    return replace(
        device,
        peaks={precision: peak * faster for precision, peak in device.peaks.items()},
        bandwidth=mode.bandwidth,
        power=wanted,
        power_mode=f"{wanted}, GPU at {mode.mhz:g} MHz{share}, memory {mode.bandwidth:g} GB/s",
    )


# Words for a group of devices -> the kinds and backends of the group.
_GROUPS = {
    "cpu": ("cpu",),
    "gpu": ("gpu",),
    "nvidia": ("gpu",),
    "phone": ("phone",),
    "android": ("phone",),
    "mobile": ("phone",),
    "board": ("board",),
}


def _suggestion(name: str) -> str:
    """Return "; did you mean ...?" for a word that names a group, begins a name, or is close to a name; else "".

    A word begins a name if a hyphen or a digit follows: pi begins pi5, and not pixel-8.
    """
    import re
    from difflib import get_close_matches

    devices = [_read(known) for known in names()]
    wanted = _GROUPS.get(name.lower(), (name.lower(),))
    near = [each.name for each in devices if each.kind in wanted or each.backend in wanted]
    if not near:
        words = {word: each.name for each in devices for word in (each.name, *each.aliases)}
        begin = re.compile(re.escape(name.lower()) + r"[-\d]")
        near = list(dict.fromkeys(words[word] for word in words if begin.match(word)))
    if not near:
        near = [words[word] for word in get_close_matches(name.lower(), words, n=1)]
    if not near:
        return ""
    return f"; did you mean {near[0]}?" if len(near) == 1 else f"; did you mean one of {', '.join(near)}?"


def local_devices() -> dict[str, Device]:
    """Return the profiles of this machine, by backend."""
    found: dict[str, Device] = {}
    for device in map(_read, names()):
        if device.local:
            found.setdefault(device.backend, device)
    return found


def parse_profile(name: str, text: str) -> Device:
    """Return the device that the TOML ``text`` describes.

    Raises:
        ValueError: a key is unknown, missing or of the wrong type, or figures contradict each other.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"profile {name}: not TOML: {reason}") from None
    known = {each.name: each for each in fields(Device) if each.name != "name"}
    for key in table:
        if key not in known:
            raise ValueError(f"profile {name}: unknown key {key!r}; known: {', '.join(known)}")
    for key, each in known.items():
        if key not in table and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"profile {name}: {key} is missing; it is a {_WORDS[str(each.type)]}")
    values = {key: _value(name, key, str(known[key].type), value) for key, value in table.items()}
    device = Device(name=name, **values)
    _check_figures(device)
    return device


@cache
def _read(name: str) -> Device:
    return parse_profile(name, (_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


# The annotations of Device are the schema. This table names them in messages.
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
    "Mapping[str, PowerMode]": "table of tables, each with mhz, gpu and bandwidth",
}


def _is_number(value: object) -> bool:
    """Return whether ``value`` is a number that a figure of a device can have; NaN and infinity are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "int": lambda value: isinstance(value, int) and _is_number(value),
    "float": _is_number,
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "tuple[float, float]": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
    "Mapping[str, float]": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "Mapping[str, str]": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
}
_CONVERTED: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "tuple[str, ...]": tuple,
    "tuple[float, float]": lambda value: (float(value[0]), float(value[1])),
    "Mapping[str, float]": lambda value: {item: float(number) for item, number in value.items()},
    "Mapping[str, str]": dict,
}


def _value(name: str, key: str, kind: str, value: Any) -> Any:
    """Return ``value`` as the type that ``Device`` declares for ``key``. Raise ValueError if it does not fit."""
    if kind == "Mapping[str, Override]" and isinstance(value, dict):
        return {item: _override(name, f"{key}.{item}", table) for item, table in value.items()}
    if kind == "Mapping[str, PowerMode]" and isinstance(value, dict):
        return {item: _power_mode(name, f"{key}.{item}", table) for item, table in value.items()}
    if kind in _FITS and _FITS[kind](value):
        return _CONVERTED.get(kind, lambda same: same)(value)
    raise ValueError(f"profile {name}: {key}={repr(value)[:60]} is not a {_WORDS[kind]}")


def _override(name: str, key: str, table: Any) -> Override:
    """Return the changes that the table of one backend describes. Raise ValueError for an unknown or wrong key."""
    known = {each.name: str(each.type) for each in fields(Override)}
    if not isinstance(table, dict):
        raise ValueError(f"profile {name}: {key}={table!r} is not a table of {', '.join(known)}")
    for item in table:
        if item not in known:
            raise ValueError(f"profile {name}: unknown key {f'{key}.{item}'!r}; known: {', '.join(known)}")
    return Override(**{item: _value(name, f"{key}.{item}", known[item], value) for item, value in table.items()})


def _power_mode(name: str, key: str, table: Any) -> PowerMode:
    """Return the power mode that a table describes. Raise ValueError unless it has exactly the three numbers."""
    known = [each.name for each in fields(PowerMode)]
    if not isinstance(table, dict) or sorted(table) != sorted(known) or not all(map(_is_number, table.values())):
        raise ValueError(f"profile {name}: {key}={repr(table)[:60]} is not a table with mhz, gpu and bandwidth")
    return PowerMode(**{item: float(number) for item, number in table.items()})


def _check_figures(device: Device) -> None:
    """Raise ValueError if figures of the profile contradict each other."""
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
        (device.power in (device.power_modes or ("",)), f"power={device.power!r} is not one of power_modes"),
        (
            all(each.mhz > 0 and 0 < each.gpu <= 1 and each.bandwidth > 0 for each in device.power_modes.values()),
            "power_modes need mhz and bandwidth above 0, and gpu above 0 and at most 1",
        ),
        (
            all(
                each.bandwidth == device.bandwidth for name, each in device.power_modes.items() if name == device.power
            ),
            "bandwidth is not that of the default power mode",
        ),
        (bool(device.sources), "sources is empty; say where the figures come from"),
    )
    for holds, fault in laws:
        if not holds:
            raise ValueError(f"profile {device.name}: {fault}")
