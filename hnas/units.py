"""Read quantities as people type them: 5ms, 800us, 300KB, 92%, 60s, 40evals. Call `parse_latency_ms("5ms")`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_TIME_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def _split(text: str) -> tuple[float, str] | None:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]*)\s*", text)
    # A float holds no more than 20 digits without loss.
    return (float(found[1]), found[2]) if found and len(found[1]) < 20 else None


def parse_latency_ms(text: str) -> float:
    """Return the milliseconds of "5ms", "800us" or "0.1s". Raise ValueError for other text."""
    parts = _split(text)
    if parts is None or parts[1] not in _TIME_MS or parts[0] <= 0:
        raise ValueError(f"latency {text!r} is not understood; write for example 5ms, 800us or 0.1s")
    return parts[0] * _TIME_MS[parts[1]]


def parse_size_bytes(text: str) -> float:
    """Return the bytes of "300KB", "2MB" or "1MiB". Raise ValueError for other text."""
    parts = _split(text)
    if parts is None or parts[1] not in _BYTES or parts[0] <= 0:
        raise ValueError(f"size {text!r} is not understood; write for example 300KB, 2MB or 1MiB")
    return parts[0] * _BYTES[parts[1]]


def parse_share(text: str) -> float:
    """Return the share of "92%" or "0.92", between 0 and 1. Raise ValueError for other text."""
    parts = _split(text)
    value = -1.0 if parts is None else parts[0] / 100 if parts[1] == "%" else parts[0] if parts[1] == "" else -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"accuracy {text!r} is not understood; write for example 92% or 0.92")
    return value


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """Return (evaluations, None) of "40evals", (None, seconds) of "60s" or "5min". Raise ValueError for other text."""
    parts = _split(text)
    if parts is not None and parts[0] > 0:
        if parts[1] in ("evals", "eval") and parts[0] == int(parts[0]):
            return int(parts[0]), None
        if parts[1] in ("s", "min"):
            return None, parts[0] * (60 if parts[1] == "min" else 1)
    raise ValueError(f"budget {text!r} is not understood; write for example 60s, 5min or 40evals")


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape that "1x3x224x224" means. Raise ValueError for other text."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        forms = "1x3x224x224, image=1x3x224x224, or a file (.npz, .npy, .pt)"
        raise ValueError(f"--input {text!r} is not understood; write a shape, batch first: {forms}")
    return tuple(map(int, text.split("x")))


def path_text(value: object, name: str) -> str:
    """Return the text of a path. Raise ValueError for anything else; ``name`` is that of the option."""
    if isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    raise ValueError(f"{name} is {' '.join(repr(value).split())[:60]}, expected the path of a folder")


@dataclass(frozen=True)
class Score:
    """The name and the format of a task's metric for a person.

    name: such as "top-1" or "mean squared error".
    higher: whether a higher score is better. A task's metric is always higher for a better network: if the score is an
        error, the metric is the negative error.
    form: the format of the score, such as ".2%".

    Example: ``Score("mean squared error", False, ".4f").text(-0.25)`` is "0.2500".
    """

    name: str
    higher: bool
    form: str

    def text(self, metric: float) -> str:
        """Return the score that belongs to a metric, as text."""
        return format(metric if self.higher else -metric, self.form)
