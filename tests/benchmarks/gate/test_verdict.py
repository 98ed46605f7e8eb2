"""Test the verdict case by case: ids carry the numbers of the docstrings in ``hnas.benchmarks.gate.verdict``."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas.benchmarks.gate import verdict as gate
from hnas.benchmarks.gate.records import BundleClaim, CountedAccuracy, Evidence, Ratio

HOME = "AMD EPYC 9555"
AWAY = "Intel Xeon 8480"

CLAIM = BundleClaim(
    name="fashion",
    target="openvino-cpu",
    backend="openvino",
    precision="int8",
    cpu=HOME,
    kind="measured",
    speedup_value=2.2,
    speedup=(2.0, 2.4),
    against="largest subnet, fp32, same backend",
    has_baseline=True,
    accuracy=0.91,
    images=2000,
    versions={"openvino": "1"},
)


def ratio(low: float, high: float, processes: int = 5) -> Ratio:
    return Ratio(math.sqrt(low * high), low, high, 0.95, (((0.002, 0.001),),) * processes, processes)


QUIET = ratio(0.98, 1.02)
GOOD = CountedAccuracy(0.91, 2000, 2000, versions={"openvino": "1"})
EVIDENCE = Evidence(CLAIM, HOME, False, None, QUIET, ratio(2.1, 2.3), GOOD)


def evidence(**changes: object) -> Evidence:
    claim = {
        key: changes.pop(key) for key in list(changes) if key in BundleClaim.__dataclass_fields__ and key != "accuracy"
    }
    claim |= {"accuracy": changes.pop("claimed")} if "claimed" in changes else {}
    return replace(EVIDENCE, claim=replace(CLAIM, **claim), **changes)


@pytest.mark.parametrize(
    ("speedup", "asked", "expected"),
    [
        pytest.param((2.0, 2.4), 3.0, 3.0, id="1 the user's"),
        pytest.param(None, 3.0, 3.0, id="1 the user's, nothing claimed"),
        pytest.param((1.05, 1.2), 0.5, 0.5, id="1 the user's, even below 1"),
        pytest.param(None, None, None, id="2 nothing asked"),
        pytest.param((2.0, 2.4), None, 1.8, id="3 nine tenths of the low end"),
        pytest.param((1.05, 1.2), None, 1.0, id="3 never below 1"),
        pytest.param((1.0, 1.2), None, 0.9, id="4 the interval touches 1"),
        pytest.param((0.5, 0.6), None, 0.45, id="4 an honest slow-down"),
    ],
)
def test_threshold(speedup: tuple[float, float] | None, asked: float | None, expected: float | None) -> None:
    assert gate.threshold(replace(CLAIM, speedup=speedup), asked) == (
        None if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize(
    ("seen", "outcome", "words"),
    [
        pytest.param(evidence(speedup=None), "not checked", "claims no speedup", id="1 no claim"),
        pytest.param(
            evidence(kind="predicted", target="jetson"), "inconclusive", "predicted for jetson", id="2 predicted"
        ),
        pytest.param(
            evidence(kind="predicted", here=True, cpu=AWAY), "holds", "at least 1.80x", id="2 predicted, here: measured"
        ),
        pytest.param(evidence(has_baseline=False), "inconclusive", "no baseline", id="3 no baseline"),
        pytest.param(evidence(speed=None), "inconclusive", "nothing was measured", id="3 no speed"),
        pytest.param(evidence(noise=None), "inconclusive", "nothing was measured", id="3 no noise"),
        pytest.param(replace(EVIDENCE, cpu=AWAY), "inconclusive", "--here", id="4 another CPU"),
        pytest.param(
            replace(EVIDENCE, cpu=AWAY, min_speedup=1.5), "inconclusive", "--here", id="4 --min-speedup is no --here"
        ),
        pytest.param(replace(EVIDENCE, cpu=AWAY, here=True), "holds", "at least", id="4 another CPU, here"),
        pytest.param(EVIDENCE, "holds", "at least 1.80x", id="5 holds"),
        pytest.param(evidence(min_speedup=2.1), "holds", "at least 2.10x", id="5 as asked"),
        pytest.param(evidence(min_speedup=3.0), "fails", "below 3.00x", id="5 fails"),
    ],
)
def test_speed(seen: Evidence, outcome: str, words: str) -> None:
    part = gate.judge_speed(seen, gate.threshold(seen.claim, seen.min_speedup))
    assert (part.name, part.outcome) == ("speedup", outcome)
    assert words in part.line
    assert "\n" not in part.line


@pytest.mark.parametrize(
    ("speed", "noise", "outcome", "words"),
    [
        pytest.param(ratio(1.7, 1.9), QUIET, "inconclusive", "inside", id="1 straddles"),
        pytest.param(ratio(1.7, 1.8), QUIET, "inconclusive", "inside", id="1 the high end is the threshold"),
        pytest.param(
            ratio(1.9, 2.0), ratio(0.9, 1.01), "inconclusive", "noise", id="2 above, within the slow side of noise"
        ),
        pytest.param(
            ratio(1.9, 2.0), ratio(0.99, 1.1), "inconclusive", "noise", id="2 above, within the fast side of noise"
        ),
        pytest.param(ratio(1.6, 1.7), ratio(0.99, 1.1), "inconclusive", "noise", id="2 below, within the noise"),
        pytest.param(ratio(1.9, 2.0), ratio(1.05, 1.1), "inconclusive", "noise", id="2 noise that misses 1"),
        pytest.param(ratio(9.0, 11.0), ratio(0.5, 1.5), "holds", "at least", id="3 far above much noise"),
        pytest.param(ratio(1.9, 2.0), QUIET, "holds", "at least 1.80x", id="3 holds"),
        pytest.param(ratio(1.8, 2.0), QUIET, "holds", "at least 1.80x", id="3 the low end is the threshold"),
        pytest.param(ratio(1.9, 2.0, 1), QUIET, "inconclusive", "inside", id="3 not from one process"),
        pytest.param(ratio(2.1, 2.2, 1), QUIET, "holds", "[1.826, 2.530]", id="3 from one process, with room"),
        pytest.param(ratio(1.5, 1.7), QUIET, "fails", "below 1.80x", id="4 fails"),
        pytest.param(ratio(1.5, 1.7, 1), QUIET, "inconclusive", "inside", id="4 not from one process"),
        pytest.param(ratio(0.5, 0.6), ratio(0.5, 1.5), "fails", "below", id="4 far below much noise"),
    ],
)
def test_ratio(speed: Ratio, noise: Ratio, outcome: str, words: str) -> None:
    found, line = gate.judge_ratio(speed, noise, 1.8)
    assert found == outcome
    assert words in line


def test_another_cpu_still_shows_the_figures() -> None:
    assert "2.100, 2.300" in gate.judge_speed(replace(EVIDENCE, cpu=AWAY), 1.8).line


def counted(hits: int, version: str = "1") -> CountedAccuracy:
    return CountedAccuracy(hits / 2000, 2000, 2000, versions={"openvino": version})


@pytest.mark.parametrize(
    ("seen", "outcome", "words"),
    [
        pytest.param(evidence(claimed=None), "not checked", "claims no accuracy", id="1 no claim"),
        pytest.param(
            evidence(accuracy=CountedAccuracy(None, 0, 2000, "no images here")), "not checked", "no images", id="2"
        ),
        pytest.param(evidence(accuracy=CountedAccuracy(0.95, 100, 2000)), "inconclusive", "100 of 2000", id="3 cut"),
        pytest.param(
            evidence(accuracy=CountedAccuracy(0.5, 100, 2000)), "inconclusive", "100 of 2000", id="3 cut, when poor"
        ),
        pytest.param(evidence(accuracy=counted(1819)), "fails", "1819 of 2000 images right", id="4 one image less"),
        pytest.param(evidence(accuracy=counted(1809, "2")), "fails", "at most 10", id="4 11 less, upgraded"),
        pytest.param(evidence(accuracy=counted(1809), cpu=AWAY), "fails", "at most 10", id="4 11 less, elsewhere"),
        pytest.param(evidence(accuracy=counted(1820)), "holds", "claimed 1820", id="5 as many"),
        pytest.param(evidence(accuracy=counted(1821)), "holds", "claimed 1820", id="5 more"),
        pytest.param(evidence(accuracy=counted(1810, "2")), "holds", "openvino 2, the claim's is 1", id="5 upgraded"),
        pytest.param(evidence(accuracy=counted(1810), cpu=AWAY), "holds", "another CPU", id="5 elsewhere"),
    ],
)
def test_accuracy(seen: Evidence, outcome: str, words: str) -> None:
    part = gate.judge_accuracy(seen)
    assert (part.name, part.outcome) == ("accuracy", outcome)
    assert words in part.line


@given(st.integers(1, 5000), st.floats(0, 1))
def test_a_share_of_whole_images_is_counted_back_exactly(n: int, share: float) -> None:
    hits = round(share * n)
    claim = replace(CLAIM, accuracy=hits / n, images=n)
    assert claim.hits == CountedAccuracy(hits / n, n, n).hits == hits


SLOW, DOUBTFUL = ratio(1.0, 1.1), ratio(1.7, 1.9)
POOR, ABSENT = CountedAccuracy(0.5, 2000, 2000), CountedAccuracy(None, 0, 2000, "no images here")


@pytest.mark.parametrize(
    ("seen", "outcome", "code"),
    [
        pytest.param(evidence(speed=SLOW), "fails", 1, id="1 speed fails"),
        pytest.param(evidence(accuracy=POOR), "fails", 1, id="1 accuracy fails"),
        pytest.param(evidence(speed=DOUBTFUL, accuracy=POOR), "fails", 1, id="1 beside an inconclusive part"),
        pytest.param(replace(EVIDENCE, cpu=AWAY, accuracy=POOR), "fails", 1, id="1 accuracy is judged on any CPU"),
        pytest.param(evidence(speed=DOUBTFUL), "inconclusive", 4, id="2 speed"),
        pytest.param(evidence(accuracy=CountedAccuracy(0.9, 5, 2000)), "inconclusive", 4, id="2 accuracy"),
        pytest.param(evidence(speed=DOUBTFUL, accuracy=ABSENT), "inconclusive", 4, id="2 beside one not checked"),
        pytest.param(evidence(speedup=None, claimed=None), "inconclusive", 4, id="3 nothing checked"),
        pytest.param(EVIDENCE, "holds", 0, id="4 both hold"),
        pytest.param(evidence(accuracy=ABSENT), "holds", 0, id="4 no images"),
        pytest.param(evidence(speedup=None), "holds", 0, id="4 no speedup claimed"),
    ],
)
def test_judge(seen: Evidence, outcome: str, code: int) -> None:
    verdict = gate.judge_evidence(seen)
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)
    assert [part.name for part in verdict.parts] == ["speedup", "accuracy"]


FACTORS = st.floats(0.05, 20.0)


@given(st.tuples(FACTORS, FACTORS).map(sorted), st.tuples(FACTORS, FACTORS).map(sorted), FACTORS)
def test_a_verdict_never_improves_when_more_is_asked(speed: list[float], noise: list[float], asked: float) -> None:
    seen = replace(EVIDENCE, speed=ratio(*speed), noise=ratio(*noise))
    order = ("fails", "inconclusive", "holds")
    less, more = (order.index(gate.judge_speed(seen, x).outcome) for x in (asked, asked * 1.1))
    assert more <= less


@given(st.tuples(FACTORS, FACTORS).map(sorted), FACTORS, st.floats(1.0, 20.0), st.floats(1.0, 2.0))
def test_noise_only_ever_takes_certainty_away(speed: list[float], asked: float, spread: float, more: float) -> None:
    quiet, loud = (gate.judge_ratio(ratio(*speed), ratio(1 / x, x), asked)[0] for x in (spread, spread * more))
    assert loud in (quiet, "inconclusive")
