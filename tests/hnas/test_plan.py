"""What a plan refuses before anything runs."""

from __future__ import annotations

import pytest

from hnas.deployment.plan import resolve


def test_a_prediction_is_for_the_threads_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert resolve("raspberry-pi-5", threads=1).threads == 1
    with pytest.raises(ValueError, match=r"raspberry-pi-5 is predicted for 1 thread\(s\); --threads is for devices"):
        resolve("raspberry-pi-5", threads=4)
