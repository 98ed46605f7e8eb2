"""Time by file size instead of by the clock, so that no verdict depends on the load of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.benchmarks.gate import session
from hnas.export.device.artifact import Artifact


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every call take a nanosecond for each byte of the model."""

    def compare(
        baseline: Artifact, candidates: Sequence[Artifact], inputs: Any, *, blocks: int, seed: int
    ) -> list[Any]:
        a, *rest = (artifact.size_bytes * 1e-9 for artifact in (baseline, *candidates))
        timed = SimpleNamespace(times=(a,) * blocks)
        return [
            SimpleNamespace(a=timed, b=SimpleNamespace(times=(b,) * blocks), pairs=((a, b),) * blocks) for b in rest
        ]

    monkeypatch.setattr(session, "compare_fresh", compare)
