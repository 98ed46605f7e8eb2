"""The artifact that is kept: the cases of ``judge_artifacts``, ``build_each``, ``build_once`` and ``build_within``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas import hw_profiles
from hnas.cost import Price
from hnas.deployment import flow
from hnas.deployment.build import Built, build_each, build_once, build_within
from hnas.deployment.judge import judge_artifacts, objection_of, wilson_interval
from hnas.deployment.options import SearchOptions
from hnas.deployment.plan import resolve
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.int8.policy import LADDER
from hnas.export.proof.measurement import Comparison, Measurement
from hnas.export.proof.verification import LIMITS, Check
from hnas.journal import Journal


def built(precision: str, accuracy: float | None = None) -> Built:
    artifact = Artifact(Path("nowhere"), "reference", precision, "any", 1, (), (), {"model": "0" * 64}, {}, {})
    check = Check(precision, 0.0, 100.0, 1.0, 100, LIMITS[precision])
    return Built(artifact, check, {} if accuracy is None else {"search": accuracy, "test": accuracy})


def compared(ratio: float) -> Comparison:
    slow = Measurement((2e-3 * ratio,) * 4, batch=1, threads=1, warmup=1)
    fast = Measurement((2e-3,) * 4, batch=1, threads=1, warmup=1)
    pairs = ((2e-3 * ratio, 2e-3),) * 4
    return Comparison(a=slow, b=fast, ratio=ratio, low=ratio, high=ratio, pairs=pairs, processes=1, confidence=0.95)


@pytest.mark.parametrize(
    ("tried", "best", "verdicts"),
    [
        # 1. the guard comes before speed
        ([("fp32", 0.90, 2.0), ("int8", 0.88, 9.0)], 0, ["kept", "loses 2.0 points on the search images (guard 1)"]),
        ([("fp32", 0.90, 2.0), ("int8", 0.89, 3.0)], 1, ["1.50x the time of int8", "kept"]),
        # 3. the highest speedup of the rest
        ([("fp32", 0.90, 2.0), ("int8", 0.90, 1.0)], 0, ["kept", "2.00x the time of fp32"]),
        (
            [("fp32", 0.90, 2.0), ("bf16", 0.90, 3.0), ("int8", 0.90, 2.5)],
            1,
            ["1.50x", "kept", "1.20x the time of bf16"],
        ),
        # 3. predicted: the lowest precision
        (
            [("fp32", 0.90, None), ("fp16", 0.90, None), ("int8", 0.90, None)],
            2,
            ["a lower precision", "a lower", "kept"],
        ),
        (
            [("fp32", 0.90, None), ("fp16", 0.90, None), ("int8", 0.8, None)],
            1,
            ["a lower precision", "kept", "loses 10"],
        ),
        # 4. nothing is left
        ([("int8", 0.80, 9.0)], None, ["loses 10.0 points"]),
        # 5. no accuracy is known
        ([("fp32", None, 1.0), ("int8", None, 2.0)], 1, ["2.00x the time of int8", "kept"]),
    ],
)
def test_the_fastest_that_keeps_its_accuracy(tried, best: int | None, verdicts: list[str]):
    artifacts = [built(precision, accuracy) for precision, accuracy, _ in tried]
    comparisons = [None if ratio is None else compared(ratio) for *_, ratio in tried]
    found, rows = judge_artifacts(artifacts, comparisons, 0.90, 0.01)
    assert found == best
    assert [row.built for row in rows] == artifacts
    for row, said in zip(rows, verdicts, strict=True):
        assert said in row.verdict
        assert (row.verdict == "kept") == (said == "kept")
        assert row.allowed is not said.startswith("loses")


def test_a_loss_of_exactly_the_guard_is_kept():
    best, _ = judge_artifacts([built("int8", 0.89)], [None], 0.90, 0.01)
    assert best == 0


def test_case_2_an_artifact_that_misses_a_bound_is_refused_with_the_reason():
    def objection(each: Built, comparison: Comparison | None) -> str | None:
        return "its file has 9 KB (asked: 5)" if each.artifact.precision == "fp32" else None

    tried = [built("fp32", 0.9), built("int8", 0.9)]
    best, rows = judge_artifacts(tried, [compared(9.0), compared(2.0)], 0.9, 0.01, objection)
    assert best == 1
    assert rows[0].verdict == "not taken: its file has 9 KB (asked: 5)"
    assert [row.allowed for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("half", "int8", "predicted", "best", "said"),
    [
        (2.0, 2.2, 3.0, 0, "not taken: int8 is hardly faster here: 1.10x of fp16, measured (1.15x is worth it)"),
        (2.0, 2.4, 1.0, 1, "kept"),  # a measurement counts more than the prediction
        (None, None, 1.09, 0, "not taken: int8 is hardly faster here: 1.09x of fp16, predicted (1.15x is worth it)"),
        (None, None, 1.52, 1, "kept"),
    ],
)
def test_case_6_int8_on_a_gpu_must_be_clearly_faster(half, int8, predicted: float, best: int, said: str):
    tried = [built("fp16", 0.9), built("int8", 0.9)]
    comparisons = [None if ratio is None else compared(ratio) for ratio in (half, int8)]
    latencies = {"fp16": predicted, "int8": 1.0}
    found, rows = judge_artifacts(tried, comparisons, 0.9, 0.01, predicted=latencies)
    assert (found, rows[1].verdict) == (best, said)
    assert all(row.allowed for row in rows)  # it may be kept if fp16 fails later


def test_case_6_int8_stays_where_fp16_is_refused_or_missing():
    latencies = {"fp16": 1.0, "int8": 1.0}
    assert judge_artifacts([built("fp16", 0.5), built("int8", 0.9)], [None] * 2, 0.9, 0.01, predicted=latencies)[0] == 1
    assert judge_artifacts([built("int8", 0.9)], [None], 0.9, 0.01, predicted=latencies)[0] == 0


@pytest.mark.parametrize(("half", "told"), [(1.09, ["1.09x of fp16, predicted"]), (1.52, [])])
def test_int8_alone_is_built_on_a_gpu_and_it_is_said_where_it_is_hardly_faster(
    half: float, told: list[str], monkeypatch, caplog, tmp_path
):
    """Only "auto" compared the two: int8 alone was kept silently."""
    (tmp_path / "model").write_bytes(b"m")
    kept = built("int8")
    monkeypatch.setattr(
        flow, "build_precision", lambda *_: replace(kept, artifact=replace(kept.artifact, path=tmp_path))
    )
    latencies = {"fp16": Price(half, "ms", half, half, "predicted"), "int8": Price(1.0, "ms", 1.0, 1.0, "predicted")}
    record = SimpleNamespace(mixable=False, accuracy={})
    network = SimpleNamespace(name="net", calibration=(), record=record, predict=lambda _, name: latencies[name])
    plan = SimpleNamespace(precision="int8", precisions=("int8",), mixes=False, measured=False, bounds=())
    for name, said in (("jetson", told), ("onnxruntime-cpu", [])):
        plan.device = hw_profiles.load(name)
        run = SimpleNamespace(plan=plan, notify=lambda *_: None)
        caplog.clear()
        proof = flow._prove(run, SimpleNamespace(built=built("fp32")), lambda: network)
        assert [row.verdict for row in proof.rows] == ["kept"]
        assert len(caplog.messages) == len(said)
        for line, part in zip(caplog.messages, said, strict=True):
            assert line.startswith("net: int8 is hardly faster here: ")
            assert part in line


# --- build_each, build_once -------------------------------------------------------------------------------------------


def test_a_precision_that_fails_is_kept_with_its_reason():
    def make(precision: str) -> Built:
        if precision == "int8":
            raise ExportError("no")
        return built(precision)

    steps: list[int] = []
    found, refused = build_each(("fp32", "int8"), make, steps.append)
    assert [b.artifact.precision for b in found] == ["fp32"]
    assert [(r.precision, r.reason) for r in refused] == [("int8", "no")]
    assert steps == [1, 2]


def test_the_only_precision_that_fails_is_the_error_itself():
    def make(precision: str) -> Built:
        raise Unavailable(f"{precision} is not here")

    with pytest.raises(Unavailable, match="int8 is not here"):
        build_each(("int8",), make, lambda _: None)
    with pytest.raises(ExportError, match="fp32 is not here; int8 is not here"):
        build_each(("fp32", "int8"), make, lambda _: None)


def test_what_was_built_is_built_again_only_when_its_bytes_are_gone(tmp_path: Path):
    path, calls = tmp_path / "arch" / "fp32", []

    def make(at: Path) -> Built:
        calls.append(at)
        at.mkdir(parents=True, exist_ok=True)
        (at / "model").write_bytes(b"weights")
        from hnas.export.device.artifact import digest_files

        artifact = Artifact(at, "reference", "fp32", "any", 1, (), (), digest_files(at, "model"), {}, {})
        artifact.write()
        return Built(artifact, built("fp32").check, {"search": 0.9, "test": 0.8})

    journal = Journal(tmp_path / "journal.jsonl")
    first = build_once(journal, path, make)
    assert build_once(journal, path, make) == first
    assert len(calls) == 1
    (path / "model").unlink()
    (path / "artifact.json").unlink()
    path.rmdir()
    assert build_once(journal, path, make) == first
    assert len(calls) == 2
    (path / "model").write_bytes(b"changed")
    assert build_once(journal, path, make) == first
    assert len(calls) == 3
    journal.close()


# --- interval ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "tried", "taken"),
    [
        ({None: 0.92}, [None], 0.92),  # 1. the plain one
        ({None: 0.80, "bias": 0.85, "equalise": 0.91, "round": 0.95}, [None, "bias", "equalise"], 0.91),  # 2. the first
        (
            {None: 0.80, "bias": 0.85, "equalise": 0.83, "round": 0.84, "finetune": 0.82},
            [None, *LADDER],
            0.85,
        ),  # 3. the best
        ({None: None, "bias": 0.90}, [None, "bias"], 0.90),  # 4. a build that fails is a miss
    ],
)
def test_the_cheapest_recovery_that_reaches_the_floor(reached, tried: list[str | None], taken: float):
    made: list[str | None] = []

    def make(rung: str | None) -> Built:
        made.append(rung)
        if reached[rung] is None:
            raise ExportError("int8 fails")
        return built("int8", reached[rung])

    assert build_within(0.90, make).accuracy["search"] == taken
    assert made == tried


def test_where_every_rung_fails_the_first_reason_is_told():
    def make(rung: str | None) -> Built:
        raise ExportError(f"{rung} fails")

    with pytest.raises(ExportError, match="None fails"):
        build_within(0.90, make)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_interval_of_a_share_holds_it_and_stays_a_share(n: int, share: float):
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1


def test_the_interval_is_wilsons():
    """The published example: 81 of 263 (Newcombe 1998, table I)."""
    low, high = wilson_interval(81 / 263, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=2e-4), pytest.approx(0.3662, abs=2e-4))
    assert wilson_interval(1.0, 20)[0] < 0.85
    assert wilson_interval(0.9, 100)[0] < wilson_interval(0.9, 10_000)[0]


def test_a_predicted_latency_is_bounded_in_the_precision_that_is_kept(tmp_path):
    (tmp_path / "model").write_bytes(b"m")
    tried = [built("fp32", 0.90), built("int8", 0.80)]
    tried = [replace(each, artifact=replace(each.artifact, path=tmp_path)) for each in tried]
    predicted = {"fp32": Price(3.0, "ms", 1.0, 9.0, "predicted"), "int8": Price(1.0, "ms", 0.5, 3.0, "predicted")}
    for bound, kept in (("2ms", None), ("4ms", 0)):
        plan = resolve(SearchOptions("raspberry-pi-5", max_latency=bound))
        best, rows = judge_artifacts(tried, [None, None], 0.90, 0.01, objection_of(plan, predicted))
        assert best == kept
    assert "loses 10.0 points" in rows[1].verdict
    assert objection_of(resolve(SearchOptions("raspberry-pi-5", max_latency="2ms")), predicted)(tried[0], None) == (
        "it is predicted to take 3 ms (asked: 2)"
    )
