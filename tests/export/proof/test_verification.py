"""Compare figures with known values, and test every way to fail."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from hnas.export.proof.slices import OutputSlice
from hnas.export.proof.statistics import binomial_interval
from hnas.export.proof.verification import LIMITS, Check, Limits, check, recorded_terms

RNG = np.random.default_rng(0)
SCORES = [(RNG.normal(size=(1, 10)).astype(np.float32),) for _ in range(60)]


def shifted(amount, samples=SCORES):
    return [tuple(part + np.float32(amount) for part in sample) for sample in samples]


def test_sqnr_and_max_error_are_those_of_the_textbook():
    signal = np.ones((1, 4), np.float32)
    found = check([(signal,)], [(signal + np.float32(0.01),)], "fp16")
    assert found.sqnr_db == pytest.approx(40.0, abs=1e-3)
    assert found.max_error == pytest.approx(0.01, rel=1e-4)


def test_case_1_the_worst_output_counts():
    good, bad = np.ones(4, np.float32), np.ones(4, np.float32) * 2
    found = check([(good, bad)], [(good, bad * np.float32(1.1))], "fp32")
    assert found.sqnr_db == pytest.approx(20.0, abs=0.01)
    assert not found.passed


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_case_2_not_finite_fails(broken):
    got = shifted(0)
    got[3][0][0, 0] = broken
    for precision in LIMITS:
        found = check(SCORES, got, precision)
        assert not found.passed
        assert "not finite" in found.line()


def test_case_3_infinities_of_the_module_must_be_kept():
    masked = np.array([[0.5, -math.inf]], np.float32)
    assert check([(masked,)], [(masked.copy(),)], "fp32").passed
    assert not check([(masked,)], [(np.array([[0.5, 0.0]], np.float32),)], "fp32").passed


def test_case_4_equal_outputs_are_200_db():
    found = check(SCORES, shifted(0), "fp32", classifier=True)
    assert (found.sqnr_db, found.max_error, found.agreement, found.n) == (200.0, 0.0, 1.0, 60)
    assert found.passed
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["passed"] is True


def test_silence_is_the_same_only_as_silence():
    zeros = [(np.zeros((1, 3), np.float32),)]
    assert check(zeros, zeros, "fp32").passed
    assert check(zeros, shifted(1e-6, zeros), "fp32").sqnr_db == -200.0


def test_bfloat16_does_not_pass_for_fp32():
    rounded = [((sample[0].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),) for sample in SCORES]
    assert not check(SCORES, rounded, "fp32").passed
    assert check(SCORES, rounded, "bf16").passed


def flipped(count, samples=SCORES):
    """Return the samples with another clear winner in the first ``count``, moved by a swap of two scores."""
    got = [(sample[0].copy(),) for sample in samples]
    for (scores,) in got[:count]:
        first, last = scores.argmax(), scores.argmin()
        scores[0, [first, last]] = scores[0, [last, first]]
    return got


def ranked(samples=60, lead=1.0):
    """Return class scores whose first class leads the second by ``lead`` deviations."""
    scores = np.sort(RNG.normal(size=(samples, 10)).astype(np.float32), axis=1)
    scores[:, -1] = scores[:, -2] + np.float32(lead)
    return [(row[None],) for row in scores]


def test_case_5_agreement_fails_only_where_its_whole_interval_is_below_the_limit():
    samples = ranked()
    shares = {count: check(samples, flipped(count, samples), "int8", classifier=True) for count in (4, 16, 20)}
    assert shares[4].agreement == pytest.approx(56 / 60)
    assert shares[4].decisions == 60
    low, high = shares[16].interval
    assert low < 0.8 < high
    assert shares[20].interval[1] < 0.8
    judged = [Check("int8", 1.0, 30.0, each.agreement, 60, each.limits, decisions=60) for each in shares.values()]
    assert [each.passed for each in judged] == [True, True, False]
    assert [each.grade for each in judged] == ["degraded", "degraded", "broken"]
    assert "top-1 agreement 66.7% of 60 decisions (95 % interval 53.3% to 78.3%, limit 80.0%)" in judged[2].line()


def test_case_5_a_user_asks_for_the_share_itself():
    samples = ranked(40, lead=4.0)
    strict = check(samples, flipped(2, samples), "int8", limits=Limits.parse("97%"))
    assert (strict.agreement, strict.limits) == (pytest.approx(38 / 40), Limits(10.0, 0.97, strict=True))
    assert not strict.passed
    assert check(samples, flipped(1, samples), "int8", limits=Limits.parse("5dB|97%")).limits.sqnr_db == 10.0
    maps = [(RNG.normal(size=(1, 2, 4, 4)),)]
    with pytest.raises(ValueError, match=r"needs class scores \[n, classes\]; the first output is \[1, 2, 4, 4\]"):
        check(maps, maps, "int8", limits=Limits.parse("97%"))


def test_case_5_near_ties_do_not_decide_and_a_broken_network_is_not_excused():
    samples = ranked(lead=0.05)  # noise at 30 dB moves a lead by 0.09
    got = [(sample[0].copy(),) for sample in samples]
    for (scores,) in got[:30]:
        scores[0, -2:] = scores[0, [-1, -2]]
    tied = check(samples, got, "int8", classifier=True)
    assert (tied.agreement, tied.decisions, tied.passed) == (None, 0, True)
    clear = ranked(lead=0.5)
    noise = [(sample[0] + RNG.normal(size=(1, 10)).astype(np.float32),) for sample in clear]
    broken = check(clear, noise, "int8", classifier=True)
    assert (broken.decisions, broken.interval[1] < 0.8) == (60, True)


def test_case_5_is_never_guessed():
    assert check(SCORES, flipped(60), "int8").agreement is None
    maps = [(RNG.normal(size=(1, 2, 4, 4)),)]
    assert check(maps, maps, "fp32", classifier=True).agreement is None
    assert check([(np.ones((1, 1)),)], [(np.ones((1, 1)),)], "fp32", classifier=True).agreement is None


def test_batches_count_their_rows_and_ties_are_no_decisions():
    tied = np.array([[1.0, 1.0, 0.0]] * 3)
    found = check([(tied,)], [(tied + np.array([0.0, 1e-9, 0.0]),)], "fp32", classifier=True)
    assert (found.agreement, found.decisions, found.n) == (None, 0, 3)


def test_case_6_a_network_that_amplifies_rounding_is_compared_with_itself():
    noisy = [(sample[0] + np.float32(2e-3) * RNG.normal(size=(1, 10)).astype(np.float32),) for sample in SCORES]
    assert not check(SCORES, noisy, "fp32").passed  # 54 dB
    found = check(SCORES, noisy, "fp32", sensitivity_db=60.0)
    assert (found.passed, found.limits.sqnr_db, found.grade) == (True, 45.0, "as float")
    assert "limit 45, as the network itself keeps 60 dB of its last bit" in found.line()
    assert check(SCORES, noisy, "fp32", sensitivity_db=10.0).limits.sqnr_db == 30.0  # the floor
    assert check(SCORES, noisy, "fp32", sensitivity_db=130.0).limits.sqnr_db == 90.0
    assert check(SCORES, noisy, "fp32", sensitivity_db=60.0, limits=Limits.parse("80dB")).limits.sqnr_db == 80.0
    assert check(SCORES, noisy, "int8", sensitivity_db=10.0).limits == LIMITS["int8"]


@pytest.mark.parametrize(
    ("level", "share", "grade"),
    [(31, 1.0, "as float"), (31, None, "as float"), (31, 0.98, "close"), (25, 1.0, "close"), (25, 0.94, "degraded"),
     (12, 1.0, "degraded"), (9, 1.0, "broken")],
)  # fmt: skip
def test_grades(level, share, grade):
    worst = OutputSlice("scores", 1, 7, float(level))
    assert Check("int8", 0.1, 40.0, share, 64, LIMITS["int8"], worst).grade == grade


def test_the_line_names_the_worst_slice_and_its_output():
    want = RNG.normal(size=(64, 9)) * np.array([1.0] * 4 + [0.005] * 5)
    have = want * (np.arange(9) < 4)
    samples = [([(row[None],) for row in part]) for part in (want, have)]
    found = check(*samples, "int8", names=("detections",))
    assert found.worst.output == "detections"
    assert f"worst slice detections[:, {found.worst.index}] 0.0 dB; a part of the output is lost" in found.line()
    assert json.loads(json.dumps(found.to_json()))["worst"]["index"] == found.worst.index
    assert found.to_json()["grade"] == "broken"


@pytest.mark.parametrize(
    ("text", "limits"),
    [("25dB", (25.0, 0.0)), ("97%", (0.0, 0.97)), ("25dB|97%", (25.0, 0.97)), (" 25.5 db | 97.5 % ", (25.5, 0.975))],
)
def test_limits_are_read(text, limits):
    assert Limits.parse(text) == Limits(limits[0], pytest.approx(limits[1]), strict=True)


@pytest.mark.parametrize("text", ["", "|", "25", "dB", "97%|25dB", "25dB|", "101%", "900dB", "-5dB", "nan%", "1e3dB"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(ValueError, match="limit is "):
        Limits.parse(text)


@pytest.mark.parametrize(
    ("kept", "n", "interval"),
    [
        (0, 0, (0, 1)),
        (0, 3, (0, 0.7076)),
        (62, 64, (0.8916, 0.9962)),
        (64, 64, (0.9440, 1)),
        (0, 1, (0, 0.975)),
        (10**15, 10**15, (1, 1)),
        (9_800, 10_000, (0.97706, 0.98266)),
        (9_801, 10_001, (0.97706, 0.98264)),
    ],
)
def test_intervals_are_those_of_clopper_and_pearson(kept, n, interval):
    assert binomial_interval(kept, n) == pytest.approx(interval, abs=1e-4)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="no limits for precision 'int4'"):
        check(SCORES, SCORES, "int4")
    with pytest.raises(ValueError, match="at least one sample"):
        check([], [], "fp32")
    with pytest.raises(ValueError, match="output shapes differ"):
        check([(np.ones(3),)], [(np.ones(4),)], "fp32")
    with pytest.raises(ValueError, match="number of outputs"):
        check([(np.ones(3),)], [(np.ones(3), np.ones(3))], "fp32")


def test_json_round_trip():
    found = check(SCORES, shifted(1e-3), "int8")
    assert Check.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="not a verification record"):
        Check.from_json({"precision": "fp32"})


def test_a_file_is_verified_again_under_the_limits_of_its_record():
    samples = ranked(lead=4.0)
    assert recorded_terms(None) == {}
    strict = check(samples, samples, "int8", limits=Limits.parse("25dB")).to_json()
    assert recorded_terms(strict) == {
        "classifier": False, "limits": Limits(25.0, 0.0, strict=True), "sensitivity_db": None
    }  # fmt: skip
    asked = check(samples, samples, "int8", limits=Limits.parse("97%")).to_json()
    assert not check(samples, flipped(3, samples), "int8", **recorded_terms(asked)).passed
    plain = check(samples, samples, "fp32", sensitivity_db=60.0).to_json()
    assert recorded_terms(plain) == {"classifier": False, "limits": None, "sensitivity_db": 60.0}


@pytest.mark.parametrize(
    "wrong",
    [{"agreement": 1.5}, {"n": -1}, {"decisions": 61},
     {"worst": {"output": "o", "axis": 10**12, "index": 0, "sqnr_db": 1}},
     {"worst": {"output": "o", "axis": "1", "index": 0, "sqnr_db": 1}}, {"worst": 3}, {"limits": None}],
)  # fmt: skip
def test_a_record_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|not a verification record"):
        Check.from_json({**check(SCORES, SCORES, "int8").to_json(), **wrong})


def test_a_record_of_0_1_0_is_read():
    limits = {"sqnr_db": 10.0, "agreement": 0.97}
    record = {"precision": "int8", "max_error": 0.1, "sqnr_db": 35.0, "agreement": 0.985, "n": 2000, "limits": limits}
    found = Check.from_json({**record, "passed": True})
    assert (found.passed, found.worst, found.decisions, found.grade) == (True, None, None, "close")
    assert "top-1 agreement 98.5% of 2000 decisions" in found.line()


def test_export_imports_no_torch():
    code = (
        "import sys\n"
        "from hnas import export\n"
        "from hnas.export import load, measure, compare, check, Worker, Artifact, Unavailable, compile\n"
        "import hnas.export.compiling.pipeline, hnas.export.backends\n"
        "[hnas.export.backends.load(name).missing() for name in hnas.export.backends.names()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
