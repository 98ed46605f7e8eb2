"""Test that the optional figure of a deployment does not end it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hnas.deployment import flow
from hnas.export.device.errors import ExportError


def test_a_failure_of_the_optional_measurement_keeps_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ExportError("the worker died")

    told: list[str] = []
    monkeypatch.setattr(flow, "tell", told.append)
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(site=object(), open=fail),
        journal=SimpleNamespace(call=lambda _, measure: measure()),
        sample_of=lambda _: (),
    )
    network = SimpleNamespace(key="net", preprocessing=None)
    artifact = SimpleNamespace(digest="0" * 64)
    kept = SimpleNamespace(built=SimpleNamespace(artifact=artifact))
    proof: Any = SimpleNamespace(kept=kept, network=network, make=lambda: network)
    assert flow._with_ends(run, proof) is proof
    assert told == ["the call from end to end was not measured: the worker died"]
