"""The gate as a function of Python: `hnas.check("runs/openvino-cpu/bundle")`. It imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.benchmarks.gate.records import GateReport

_UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def check(
    bundle: str | os.PathLike[str],
    *,
    min_speedup: float | None = None,
    max_time: str | float = "60s",
    processes: int = 5,
    here: bool = False,
    data: str | os.PathLike[str] | None = None,
    host: str | None = None,
    seed: int = 0,
    on: Callable[[str, float], None] | None = None,
) -> GateReport:
    """Check on this machine whether a bundle is as fast and as accurate as it claims. ``hnas-bench check`` does this.

    Args:
        bundle: the folder that `hnas.deploy` wrote
        min_speedup: speedup to reach; None: 0.9 of the low end of the claim
        max_time: time limit of the whole check, "60s" or a number of seconds
        processes: fresh processes of each artifact
        here: judge by this machine, even if the claim is for another CPU model
        data: folder of images that hnas does not ship
        host: run on this device: ssh://[user@]device[:port][/path/of/python] or adb://[serial]
        seed: seed of inputs, order and bootstrap
        on: called with (current step, finished fraction)

    Return the report: ``report.outcome`` is "holds", "fails" or "inconclusive"; ``report.verdict.parts`` say why.

    Example:
        assert hnas.check("runs/photos/bundle", data="photos/").outcome == "holds"

    Raises:
        ValueError, FileNotFoundError: an option is not understood, or the bundle is broken.
        Unavailable: the runtime or the host is missing.
    """
    from hnas.benchmarks.gate.check import CheckOptions, check_claim
    from hnas.units import path_text

    folder = path_text(bundle, "bundle")
    if min_speedup is not None:
        min_speedup = positive_number(min_speedup, "min_speedup")
    if processes < 1:
        raise ValueError(f"processes is {processes}, expected a whole number of 1 or more")
    options = CheckOptions(
        min_speedup=min_speedup,
        max_time=parse_seconds(max_time, "max_time"),
        processes=processes,
        here=here,
        data=None if data is None else Path(path_text(data, "data")),
        seed=seed,
        host=host,
    )
    return check_claim(Path(folder), options, on or _silent)


def _silent(_step: str, _fraction: float) -> None:
    """Ignore the progress of a check."""


def parse_seconds(value: str | float, name: str = "") -> float:
    """Return the seconds of a duration such as 60s, 500ms, 2m, 1h, or of a plain number.

    name: the name of the option, for the message.

    Raises:
        ValueError: ``value`` is not a duration above 0.
    """
    text = str(value)
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    return positive_number(text.removesuffix(unit), name) * _UNITS.get(unit, 1.0)


def positive_number(value: str | float, name: str = "") -> float:
    """Return a finite number above 0. Raise ValueError for anything else; ``name`` is that of the option."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{f'{name} is ' if name else ''}{value!r}{',' if name else ' is'} not a number above 0")
    return number
