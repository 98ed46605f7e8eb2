"""Draw bars as SVG: one for each layer, or a histogram of times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hnas.pages.shell import text

_WIDTH, _ROW, _NAMES = 720, 20, 300
_BINS, _HEIGHT = 48, 150


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Return horizontal bars from (name, value, what stands behind the bar); values are 0 or more."""
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    room = _WIDTH - _NAMES - 130
    drawn = "".join(
        f'<text x="{_NAMES - 8}" y="{at * _ROW + 14}" text-anchor="end">{text(_short(name))}'
        f"<title>{text(name)}</title></text>"
        f'<rect class="bar" x="{_NAMES}" y="{at * _ROW + 3}" width="{room * value / longest:.1f}" height="{_ROW - 6}"/>'
        f'<text x="{_NAMES + room * value / longest + 6:.1f}" y="{at * _ROW + 14}">{text(said)}</text>'
        for at, (name, value, said) in enumerate(rows)
    )
    height = max(1, len(rows)) * _ROW
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" aria-label="{text(title)}">{drawn}</svg>'


def histogram(series: Mapping[str, Sequence[float]], unit: str, title: str) -> str:
    """Return up to two histograms on one axis. The slowest 1 % of the values are counted in the last bin."""
    values = sorted(value for each in series.values() for value in each)
    low, high = values[0], values[min(len(values) - 1, math.ceil(0.99 * len(values)))]
    step = (high - low) / _BINS or 1.0
    counts = {name: _count(each, low, step) for name, each in series.items()}
    tallest = max(max(each) for each in counts.values())
    width = _WIDTH / _BINS
    drawn = "".join(
        f'<rect class="bar {"two" if index else "one"}" x="{at * width:.1f}" width="{width - 1:.1f}" '
        f'y="{_HEIGHT - _HEIGHT * count / tallest:.1f}" height="{_HEIGHT * count / tallest:.1f}"/>'
        for index, each in enumerate(counts.values())
        for at, count in enumerate(each)
    )
    ends = (
        f'<text x="0" y="{_HEIGHT + 16}">{low:.4g} {text(unit)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">{low + _BINS * step:.4g} {text(unit)} and more</text>'
    )
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT + 22}" width="{_WIDTH}"'
    return f'<svg {size} role="img" aria-label="{text(title)}">{drawn}{ends}</svg>'


def _count(values: Sequence[float], low: float, step: float) -> list[int]:
    found = [0] * _BINS
    for value in values:
        found[min(_BINS - 1, int((value - low) / step))] += 1
    return found


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:20]}...{name[-20:]}"
