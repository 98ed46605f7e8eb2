"""Read efficiencies that were fitted on published latencies: one file ``fitted/NAME.toml`` for several devices.

``calibration.of(hw_profiles.load("jetson"))`` returns them. `hnas.cost.roofline` multiplies the data sheet's figures
by them. ``python -m hnas.benchmarks.jetson`` fits them again and prints the errors.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hnas.hw_profiles import Device

_FOLDER = Path(__file__).parent / "fitted"


@dataclass(frozen=True, kw_only=True)
class RowErrors:
    """Describe the published rows of one device in one power mode, and how far the predictions are from them.

    device: name of the profile.
    power: name of the power mode; empty if the profile has none.
    method: "leave-one-model-out", or "held out" if no row of this device was used in the fit.
    timing: the time that the rows state, such as "GPU only".
    rows: number of rows.
    models: number of networks.
    mean: mean of the absolute relative errors.
    worst: largest absolute relative error.
    low: smallest quotient of published and predicted latency.
    high: largest quotient.
    gflop: smallest and largest number of operations of a call, in 1e9.
    """

    device: str
    power: str = ""
    method: str
    timing: str
    rows: int
    models: int
    mean: float
    worst: float
    low: float
    high: float
    gflop: tuple[float, float]

    def line(self) -> str:
        """Return the evidence in words."""
        error = f"mean error {self.mean:.0%}, worst {self.worst:.0%}"
        return f"{self.method} on {self.rows} published rows of {self.models} networks ({self.timing}): {error}"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Hold fitted efficiencies. A share of 1 means the figure of the data sheet.

    name: name of the file.
    fitted: date of the fit, and the rows it used.
    compute: share of the peak by precision, of convolutions and matrix products.
    bandwidth: share of the memory bandwidth.
    depthwise: share of that bandwidth which depthwise convolutions reach.
    elementwise: share of the time of a pass over memory that an activation costs; the rest is fused.
    launch_us: time of the smallest kernel, in microseconds.
    kinds: the kinds of kernel that the rows contain.
    evidence: the errors, one entry for each device and power mode.
    """

    name: str
    fitted: str
    compute: Mapping[str, float] = field(hash=False)
    bandwidth: float
    depthwise: float
    elementwise: float
    launch_us: float
    kinds: tuple[str, ...]
    evidence: tuple[RowErrors, ...]

    def evidence_of(self, device: Device) -> RowErrors | None:
        """Return the evidence for the device in its power mode, or None."""
        here = (device.name, device.power)
        return next((each for each in self.evidence if (each.device, each.power) == here), None)


def names() -> tuple[str, ...]:
    """Return the name of every file of fitted efficiencies, in alphabetical order."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def of(device: Device) -> Calibration | None:
    """Return the fitted efficiencies that the profile of ``device`` names; None if it names none.

    Raises:
        ValueError: the profile names a file that does not exist.
    """
    if not device.calibration:
        return None
    try:
        return _read(device.calibration)
    except FileNotFoundError:
        known = ", ".join(names())
        raise ValueError(f"profile {device.name}: no calibration {device.calibration!r}; known: {known}") from None


@cache
def _read(name: str) -> Calibration:
    return parse(name, (_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Calibration:
    """Return the efficiencies that the TOML ``text`` describes.

    Raises:
        ValueError: a key is unknown or missing, or a share is not above 0.
    """
    table: dict[str, Any] = tomllib.loads(text)
    try:
        evidence = tuple(
            RowErrors(**{**each, "gflop": (float(each["gflop"][0]), float(each["gflop"][1]))})
            for each in table.pop("evidence")
        )
        found = Calibration(name=name, evidence=evidence, **{**table, "kinds": tuple(table["kinds"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"calibration {name}: {error}") from None
    shares = (*found.compute.values(), found.bandwidth, found.depthwise, found.launch_us)
    if min(shares) <= 0 or not 0 <= found.elementwise <= 1:
        raise ValueError(f"calibration {name}: a share is not above 0, or elementwise is not from 0 to 1")
    return found
