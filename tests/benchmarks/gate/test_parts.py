"""Test the parts of an end-to-end claim, and the gates on what XNNPACK does not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnas.benchmarks.gate.gates import _judge_delegates
from hnas.benchmarks.gate.measures import EndsCompare, _Ends
from hnas.benchmarks.gate.suite import SuiteClaim
from hnas.export.proof.inspection import Inspection, Layer
from tests.benchmarks.bundles import network

PARTS = np.array([(5.0, 0.5, 3.0, 0.5), (5.2, 0.5, 2.8, 0.5), (9.0, 0.5, 9.0, 9.0)]) * 1e-3


@pytest.mark.parametrize("known", [True, False])
def test_the_parts_of_a_call_are_medians(tmp_path: Path, known: bool) -> None:
    artifact = network(tmp_path / "net", 4)
    found = EndsCompare({artifact.digest: (np.zeros(1),)} if known else {})
    assert found.parts(artifact) is None
    worker: Any = SimpleNamespace(artifact=artifact, time_ends=lambda arrays, runs, *, pixels: PARTS[:runs])
    assert _Ends(worker, found).time((np.zeros(1),), 3) == pytest.approx([9e-3, 9e-3, 27.5e-3])
    parts = found.parts(artifact)
    assert parts is not None
    assert (parts.run, parts.answer, parts.n) == pytest.approx((3.5, 0.5, 3))
    assert parts.prepare == (pytest.approx(5.2) if known else None)
    told = "prepare 5.2 ms, run 3.5 ms, answer 0.5 ms (medians, n=3); 62% of the time is around the run"
    assert parts.line() == (
        told if known else "run 3.5 ms, answer 0.5 ms (medians, n=3); 12% of the time is around the run"
    )


def layer(place: str) -> Layer:
    return Layer("", "Conv", "kernel", "f32", 1.0, {"x": "XNNPACK IGEMM", "b": "built-in kernel"}[place])


@pytest.mark.parametrize(
    ("ran", "partitions", "undelegated"), [("xxx", 1, 0), ("xbx", 2, 1), ("bxxbbxb", 2, 4), ("bb", 0, 2)]
)
def test_partitions_are_stretches_in_xnnpack(ran: str, partitions: int, undelegated: int) -> None:
    found = Inspection("tflite", "fp32", 1, 3, tuple(map(layer, ran)))
    for less in (0, 1):
        claim = SuiteClaim(
            "a", "b", max_partitions=max(0, partitions - less), max_undelegated=max(0, undelegated - less)
        )
        got = {part.name: part for part in _judge_delegates(claim, found)}
        for name, count in (("partitions", partitions), ("undelegated", undelegated)):
            assert got[name].outcome == ("fails" if less and count else "holds")
            assert str(count) in got[name].line
