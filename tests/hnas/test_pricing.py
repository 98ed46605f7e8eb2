"""Whole subnets, timed by their runtime in turns with the largest one."""

from __future__ import annotations

from pathlib import Path

import pytest

import hw_profiles
from export import backends
from hnas.deployment import pricing
from hnas.deployment.pricing import Measured
from hnas.study import Study
from hnas.supernet import Supernet
from tests.conftest import need
from tests.hnas import tiny


@pytest.mark.slow
def test_a_subnet_is_measured_once_and_its_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pricing, "BLOCKS", 2)
    study = Study(Supernet(tiny.space()), tiny.task())
    made = Measured(study, hw_profiles.load("onnxruntime-cpu"), 1)
    smallest, largest = study.supernet.space.smallest, study.supernet.space.largest
    first = made(smallest)
    assert (first.kind, first.unit) == ("measured", "ms")
    assert 0 < first.low <= first.value <= first.high
    assert made(largest).value == study.journal.entries["baseline_ms"]
    monkeypatch.setattr(pricing, "compare", pytest.fail)
    assert made(smallest) == first
    folder = made._turns.folder
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["baseline"]
    made.close()
    assert not folder.exists()
    again = Measured(study, hw_profiles.load("onnxruntime-cpu"), 1)  # another run, the same cache
    assert again(smallest) == first
    again.close()
