"""Plot the Pareto front and the artifacts of a deployment with matplotlib. Call `plot_deployment(table)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hnas.export.device.errors import needing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Point = Mapping[str, Any]


def plot_deployment(table: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Plot accuracy over latency: the front of the search, and each artifact with its interval.

    Without labelled images, the vertical axis has the signal-to-noise ratio of each artifact.

    table: the table of a deployment, as ``to_json`` returns it.
    ax: the axes to draw on; None: those of a new figure.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    with needing("plot"):
        from matplotlib.figure import Figure

    if ax is None:
        ax = _new_axes(Figure)
    judged = any(row["accuracy"] is not None for row in table["rows"])
    if front := table.get("front", ()):
        points = [each["metrics"] for each in front if "accuracy" in each["metrics"]]
        spots = sorted((point["latency_ms"], 100 * point["accuracy"]) for point in points)
        ax.plot(*_columns(spots), "o-", color="0.6", label=f"front of the search ({table['searched']}, search images)")
    for row in table["rows"]:
        _draw_artifact(ax, row, judged=judged)
    measured = any(row.get("latency_ms") for row in table["rows"])
    ax.set_xlabel("measured latency, ms, with 95 % interval" if measured else "predicted latency, ms, with its band")
    ax.set_ylabel("top-1 on the test images, %" if judged else "signal-to-noise ratio of the worst slice, dB")
    ax.set_title(str(table["target"]))
    ax.legend(fontsize="small")
    return ax


def _draw_artifact(ax: Axes, row: Mapping[str, Any], *, judged: bool) -> None:
    """Draw one row of the table with the interval of its latency."""
    latency = row.get("latency_ms") or row["predicted_ms"]
    height = 100 * row["accuracy"] if judged else row["sqnr_db"]
    around = [[latency["value"] - latency["low"]], [latency["high"] - latency["value"]]]
    kept = row["verdict"].startswith("kept")
    name = f"{row['subnet']}, {row['precision']}{' (kept)' if kept else ''}"
    ax.errorbar([latency["value"]], [height], xerr=around, fmt="*" if kept else "s", label=name, capsize=3)


def _new_axes(figure: type) -> Axes:
    """Return the axes of a new figure: one that pyplot shows where pyplot is in use, as in a notebook."""
    import sys

    if "matplotlib.pyplot" in sys.modules or "ipykernel" in sys.modules:
        import matplotlib.pyplot as plt

        return plt.subplots()[1]
    axes: Axes = figure().add_subplot()
    return axes


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
