"""Compare figures with known values, and test every way to fail."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from hnas.export.proof.verification import LIMITS, Check, check

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
    found = check(SCORES, shifted(0), "fp32")
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


def test_agreement_is_judged_from_50_samples_on():
    got = [(sample[0].copy(),) for sample in SCORES]
    for (scores,) in got[:4]:
        scores[0, scores.argmin()] = scores.max() + 0.01
    many, few = check(SCORES, got, "int8"), check(SCORES[:20], got[:20], "int8")
    assert many.agreement == pytest.approx(56 / 60)
    assert few.agreement == pytest.approx(16 / 20)
    relaxed = Check("int8", few.max_error, 99.0, few.agreement, few.n, few.limits)
    assert relaxed.passed
    assert "not judged" in relaxed.line()
    assert not Check("int8", many.max_error, 99.0, many.agreement, many.n, many.limits).passed


def test_agreement_needs_classes():
    maps = [(RNG.normal(size=(1, 2, 4, 4)),)]
    assert check(maps, maps, "fp32").agreement is None
    assert check([(np.ones((1, 1)),)], [(np.ones((1, 1)),)], "fp32").agreement is None


def test_batches_count_their_rows_and_ties_count_as_kept():
    tied = np.array([[1.0, 1.0, 0.0]] * 3)
    found = check([(tied,)], [(tied + np.array([0.0, 1e-9, 0.0]),)], "fp32")
    assert (found.agreement, found.n) == (1.0, 3)


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
