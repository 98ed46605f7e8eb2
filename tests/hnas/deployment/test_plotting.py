"""The plot of a deployment: the front, every artifact with its interval, and the kept one marked."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from hnas.deployment.plotting import plot_deployment
from hnas.export.device.errors import Unavailable


def artifact(subnet: str, precision: str, accuracy: float, latency: float, verdict: str) -> dict[str, Any]:
    """Return a row of the table, predicted at four times the measured latency."""
    measured, predicted = (
        {"value": value, "low": 0.9 * value, "high": 1.1 * value} for value in (latency, 4 * latency)
    )
    figures = {"latency_ms": measured, "predicted_ms": predicted, "sqnr_db": 30.0}
    return {"subnet": subnet, "precision": precision, "accuracy": accuracy, "verdict": verdict, **figures}


TABLE: dict[str, Any] = {
    "target": "openvino-cpu",
    "searched": "int8",
    "rows": [
        artifact("largest", "fp32", 0.93, 2.0, "baseline"),
        artifact("abc", "int8", 0.92, 1.0, "kept"),
    ],
    "front": [
        {"arch": {}, "metrics": {"latency_ms": 1.5, "accuracy": 0.91}},
        {"arch": {}, "metrics": {"latency_ms": 0.5, "accuracy": 0.8}},
        {"arch": {}, "metrics": {"latency_ms": 0.4}},
    ],
}


def test_the_front_and_every_artifact_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    ax = plot_deployment(TABLE)
    front = ax.get_lines()[0]
    assert (list(front.get_xdata()), list(front.get_ydata())) == ([0.5, 1.5], [80.0, 91.0])
    handles, names = ax.get_legend_handles_labels()
    assert names == ["front of the search (int8, search images)", "largest, fp32", "abc, int8 (kept)"]
    assert len(handles) == 3
    assert "measured latency" in ax.get_xlabel()
    assert "top-1" in ax.get_ylabel()
    assert ax.get_title() == "openvino-cpu"


def test_a_network_without_labels_and_without_measurement() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    rows = [{**row, "accuracy": None, "latency_ms": None} for row in TABLE["rows"]]
    own = Figure().add_subplot()
    assert plot_deployment({"target": "jetson", "rows": rows}, own) is own
    assert "predicted latency" in own.get_xlabel()
    assert "signal-to-noise" in own.get_ylabel()


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unavailable, match=r"matplotlib is not installed; pip install 'hnas\[plot\]'"):
        plot_deployment(TABLE)
