"""The suites of this project's own CI: what may fail the job, and what is information."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests import gates

TIMED = {"at_least", "same_within", "measure"}


def claims(suite: str) -> list[dict[str, object]]:
    return tomllib.loads((gates.SUITES / suite).read_text("utf-8"))["claim"]


def test_a_clock_fails_no_job() -> None:
    assert not [claim for claim in claims("gates.toml") if TIMED & set(claim)]
    assert all(set(claim) == {"name", "artifact", "baseline", "at_least"} for claim in claims("times.toml"))


def test_every_artifact_has_its_bounds() -> None:
    built = {f"../build/gates/{target}-{precision}" for target in gates.TARGETS for precision in gates.PRECISIONS}
    assert [claim["artifact"] for claim in claims("gates.toml")] == sorted(built)
    every = {"precision", "precisions", "max_size", "max_kernels", "max_qdq", "max_reformats"}
    more = {"onnxruntime": {"max_macs"}, "tflite": {"max_partitions", "max_undelegated"}}
    for claim in claims("gates.toml"):
        runtime = Path(str(claim["artifact"])).name.partition("-")[0]
        assert set(claim) == {"name", "artifact", *every, *more.get(runtime, ())}, claim["name"]


@pytest.mark.parametrize(
    ("hard", "times", "code"),
    [(0, 0, 0), (0, 1, 0), (0, 4, 0), (0, 2, 2), (0, 70, 70), (1, 0, 1), (4, 0, 4), (3, 1, 3)],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hard: int, times: int, code: int) -> None:
    monkeypatch.setattr(gates, "BUILT", tmp_path / "built")
    monkeypatch.setattr(gates, "build", lambda folder: None)
    monkeypatch.setattr(gates, "run", {"gates.toml": hard, "times.toml": times}.__getitem__)
    assert gates.main() == code


def test_ci_runs_them() -> None:
    assert "\nmake gates\n" in (gates.SUITES / "run").read_text("utf-8")
