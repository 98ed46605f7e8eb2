"""Test the lines below the table that name uncertain figures: a noisy latency, and a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.cli import deploy_main
from hnas.deployment import flow
from hnas.deployment.table import _doubts
from hnas.export.bundle.bundle import read_bundle
from hnas.export.proof.load import Load
from hnas.export.proof.measurement import Comparison, Measurement


def compared(*, tail: float = 1.0, **changes: Any) -> Comparison:
    times = tuple(each * 1e-3 for each in [1.0] * 97 + [tail] * 3)
    pairs = ((1e-3, 1e-3),) * 4
    return Comparison(Measurement((1e-3,) * 100), Measurement(times), 1.0, 0.9, 1.1, pairs, **changes)


def result(**comparisons: Comparison | None) -> Any:
    rows = [SimpleNamespace(built=SimpleNamespace(label=name), comparison=c) for name, c in comparisons.items()]
    return SimpleNamespace(rows=rows, baseline=SimpleNamespace(name="largest"))


def test_a_long_tail_and_a_busy_machine_are_named() -> None:
    busy: dict[str, Any] = {"load": Load(1.6, 2), "widened": 1.15}
    assert _doubts(result(fp32=compared(**busy), int8=compared(tail=50.0, **busy))) == [
        "latency of int8: long tail: p99 is 50 times the median",
        "other programs used 1.6 of 2 cores: measured twice, intervals widened by 15%",
    ]


def test_nothing_is_said_of_quiet_or_predicted_figures() -> None:
    assert _doubts(result(fp32=compared(load=Load(0.2, 2)))) == []
    assert _doubts(result(fp32=None)) == []


@pytest.mark.slow  # it deploys
def test_a_deployment_on_a_busy_machine_says_so(
    quick: Path, deploy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(compare: Callable[[int], list[Comparison]], seed: int) -> list[Comparison]:
        return [replace(each, load=Load(1.6, 2), widened=1.15) for each in compare(seed)]

    monkeypatch.setattr(flow, "compare_again_if_busy", busy)
    assert deploy_main(deploy) == 0
    assert read_bundle(quick / "run" / "bundle").manifest.load == Load(1.6, 2)
    assert "other programs used 1.6 of 2 cores: measured twice, intervals widened by 15%" in capsys.readouterr().out
