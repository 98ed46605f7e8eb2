"""Draw points with their intervals as SVG: ``scatter(marks, ("latency, ms", "accuracy, %"))``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hnas.pages.shell import text

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 14, 48
_MOST_RATIO = 20  # largest over smallest value: beyond it the axis is logarithmic
_END = ' text-anchor="end"'
_SHAPES = ("circle", "square", "diamond", "triangle")
COLOURS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Mark:
    """One point of a chart.

    ``x``, ``y``: (value, low, high); low and high are those of the interval, or the value itself.
    ``key``: identifies the point on the page. ``said``: what a screen reader and a pointer get.
    ``kind``: 0 to 3; the kinds differ in colour and in shape.
    ``name``: text beside the point, if any. ``kept``: the point is drawn larger.
    ``group``: what a filter of the page hides together.
    """

    x: tuple[float, float, float]
    y: tuple[float, float, float]
    key: str
    said: str
    kind: int = 0
    name: str = ""
    kept: bool = False
    group: str = ""


class _Axis:
    """Map values to pixels, linear or logarithmic, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        self._log = low > 0 and high / low > _MOST_RATIO
        if self._log:
            low, high = math.log10(low), math.log10(high)
        pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        self._low, self._high, self._start, self._end = low - pad, high + pad, start, end

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        place = math.log10(value) if self._log else value
        return self._start + (place - self._low) / (self._high - self._low) * (self._end - self._start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return (pixel, label) of round values."""
        if self._log:
            tens = range(math.floor(self._low), math.ceil(self._high) + 1)
            values = [
                m * 10.0**e for e in tens for m in (1, 2, 5) if self._low <= math.log10(m * 10.0**e) <= self._high
            ]
        else:
            step = _round_step((self._high - self._low) / 6)
            first = math.ceil(self._low / step)
            values = [step * n for n in range(first, math.floor(self._high / step) + 1)]
        return [(self.at(value), f"{value:.10g}") for value in values]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough)


def scatter(
    marks: Sequence[Mark],
    axes: tuple[str, str],
    *,
    title: str,
    joined: Sequence[tuple[float, float]] = (),
    opens: bool = False,
) -> str:
    """Return an SVG figure of at least one mark. Each mark can be reached with the keyboard and has its text.

    ``axes``: the labels of x and y. ``joined``: points of a line behind the marks. ``title``: for a screen reader.
    ``opens``: whether the page has a section for each mark, which a click opens.
    """
    x = _Axis([v for m in marks for v in m.x] + [a for a, _ in joined], _LEFT, _WIDTH - _RIGHT)
    y = _Axis([v for m in marks for v in m.y] + [b for _, b in joined], _HEIGHT - _BOTTOM, _TOP)
    grid = [
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{label}</text>'
        for at, label in x.ticks()
    ] + [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
        for at, label in y.ticks()
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 14 {middle[1]})"'
    named = [
        f'<text x="{middle[0]}" y="{_HEIGHT - 8}" text-anchor="middle">{text(axes[0])}</text>',
        f'<text x="14" y="{middle[1]}" {turned}>{text(axes[1])}</text>',
    ]
    points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in joined)
    path = f'<polyline class="path" points="{points}"/>' if joined else ""
    role = "button" if opens else "img"
    drawn = "".join(_draw(mark, x, y, role) for mark in marks)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="group" aria-label="{text(title)}">'
        f"{''.join(grid)}{''.join(named)}{path}{drawn}</svg>"
    )


def _draw(mark: Mark, x: _Axis, y: _Axis, role: str) -> str:
    """Return one mark: its intervals, its shape, its text."""
    a, b = x.at(mark.x[0]), y.at(mark.y[0])
    lines = ""
    if mark.x[1] != mark.x[2]:
        lines += f'<line x1="{x.at(mark.x[1]):.1f}" x2="{x.at(mark.x[2]):.1f}" y1="{b:.1f}" y2="{b:.1f}"/>'
    if mark.y[1] != mark.y[2]:
        lines += f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{y.at(mark.y[1]):.1f}" y2="{y.at(mark.y[2]):.1f}"/>'
    right = a < _WIDTH * 0.7
    name = f'<text x="{a + (12 if right else -12):.1f}" y="{b - 8:.1f}"{"" if right else _END}>{text(mark.name)}</text>'
    attributes = f'data-key="{text(mark.key)}" data-group="{text(mark.group)}" aria-label="{text(mark.said)}"'
    return (
        f'<g class="mark {COLOURS[mark.kind]}" tabindex="0" role="{role}" {attributes}>'
        f"<title>{text(mark.said)}</title>{lines}"
        f'<circle class="hit" cx="{a:.1f}" cy="{b:.1f}" r="14"/>{_shape(mark, a, b)}{name if mark.name else ""}</g>'
    )


def _shape(mark: Mark, a: float, b: float) -> str:
    """Return the shape of a kind: kinds stay apart in print and for those who see few colours."""
    r = 8 if mark.kept else 5
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "diamond": [(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)],
        "triangle": [(0, -r - 1), (r + 1, r), (-r - 1, r)],
    }
    kind = _SHAPES[mark.kind]
    if kind == "circle":
        return f'<circle class="shape" cx="{a:.1f}" cy="{b:.1f}" r="{r}"/>'
    points = " ".join(f"{a + dx:.1f},{b + dy:.1f}" for dx, dy in corners[kind])
    return f'<polygon class="shape" points="{points}"/>'
