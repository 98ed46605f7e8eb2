"""The suites of this project's own CI: what may fail the job, and what is information."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests import gates

TIMED = {"at_least", "same_within", "measure"}
LAYERS = {"max_kernels", "max_qdq", "max_reformats"}  # ONNX Runtime and OpenVINO choose them by the CPU


def claims(suite: str) -> list[dict[str, object]]:
    return tomllib.loads((gates.SUITES / suite).read_text("utf-8"))["claim"]


def test_no_clock_and_no_kind_of_cpu_fails_a_job() -> None:
    hard = claims("gates.toml")
    assert not [claim for claim in hard if TIMED & set(claim)]
    assert not [claim for claim in hard if LAYERS & set(claim) and "tflite" not in str(claim["artifact"])]


def test_latencies_and_the_layers_of_a_cpu_are_information() -> None:
    told = claims("information.toml")
    assert {key for claim in told for key in claim} == {
        "name",
        "artifact",
        "precision",
        "baseline",
        "at_least",
        *LAYERS,
    }


def test_every_artifact_has_its_bounds() -> None:
    built = {f"../build/gates/{target}-{precision}" for target in gates.TARGETS for precision in gates.PRECISIONS}
    assert [claim["artifact"] for claim in claims("gates.toml")] == sorted(built)
    every = {"precision", "precisions", "max_size"}
    more = {"onnxruntime": {"max_macs"}, "tflite": {*LAYERS, "max_partitions", "max_undelegated"}}
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
    monkeypatch.setattr(gates, "run", {"gates.toml": hard, "information.toml": times}.__getitem__)
    assert gates.main() == code


def test_ci_runs_them() -> None:
    assert "\nmake gates\n" in (gates.SUITES / "run").read_text("utf-8")
