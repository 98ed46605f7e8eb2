"""Test the baselines on a GPU as far as a machine without one can: the refusals, and the order of events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hnas.benchmarks import cuda  # noqa: E402  # needs torch


def test_without_a_gpu_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> Any:
        raise ValueError(f"target {name} is the GPU of this machine, and it has none: not run on a device here; mend")

    monkeypatch.setattr(cuda.hw_profiles, "load", refuse)
    assert cuda.main([]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(cuda.hw_profiles, "load", lambda _: SimpleNamespace(title="GPU"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.main([]) == 3
    assert "has no CUDA: not run on a device here" in capsys.readouterr().err


def test_each_call_is_timed_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            self.record, self.synchronize = lambda: said.append("event"), lambda: said.append("wait")

        def elapsed_time(self, end: object) -> float:
            return 1.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert cuda.time_on_gpu(lambda: said.append("call"), 2) == [1.5, 1.5]
    assert said[cuda._LEAD :] == ["event", "call", "event", "wait"] * 2
