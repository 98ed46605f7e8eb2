"""Plant slices that are lost, and see each of them named; networks with honest noise lose none."""

import numpy as np
import pytest

from hnas.export.proof.slices import OutputSlice, worst_slice
from hnas.export.proof.verification import LIMITS, Limits, check

SEEDS = range(10)


def rows(values):
    """Return the samples of an array, each a batch of one, in float32."""
    return [row[None] for row in np.asarray(values, np.float32)]


def quantised(values):
    """Return the values on one grid of 256 levels, as an int8 output with one scale has them."""
    step = (max(values.max(), 0) - min(values.min(), 0)) / 255
    return np.round(values / step) * step


def found(want, have, steps=255):
    return worst_slice("out", rows(want), rows(have), steps)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def detections(rng):
    """Return four rows of boxes in pixels and five rows of scores, 64 places each."""
    boxes, scores = rng.normal(size=(32, 4, 64)) * 0.2, rng.normal(size=(32, 5, 64)) * 0.2
    return np.concatenate([sigmoid(boxes) * 640, sigmoid(scores)], axis=1)


def heads(rng):
    """Return two heads in one row, after an average that hardly varies: boxes of 300 +- 3, scores of 0.45 +- 0.005."""
    boxes = 300 + 50 * rng.normal(size=(1, 4)) + 3 * rng.normal(size=(64, 4))
    return np.concatenate([boxes, 0.45 + 0.05 * rng.normal(size=(1, 5)) + 0.005 * rng.normal(size=(64, 5))], axis=1)


def linear(rng):
    """Return the outputs of one linear layer with large and small rows in turn."""
    return rng.normal(size=(64, 100)) * np.tile([1.0, 0.005], 50)


def one_small(rng):
    """Return a thousand outputs, one of them small."""
    return rng.normal(size=(64, 1000)) * np.where(np.arange(1000) == 417, 0.003, 1.0)


def hundredth(rng):
    """Return maps, some channels of which are scores times 1/100."""
    return rng.normal(size=(8, 12, 7, 7)) * np.where(np.arange(12) < 8, 1.0, 0.005)[:, None, None]


@pytest.mark.parametrize("outputs", [detections, heads, linear, one_small, hundredth])
def test_small_parts_on_a_shared_scale_are_seen(outputs):
    for seed in SEEDS:
        want = outputs(np.random.default_rng(seed))
        have = quantised(want)
        whole = check(rows_of(want), rows_of(have), "int8")
        assert whole.sqnr_db > 35
        assert not whole.passed
        assert whole.worst.axis == 1
        assert whole.worst.sqnr_db < 6
        assert np.abs(want[:, whole.worst.index]).max() < np.abs(want).max() / 50
        assert "lost beside the rest" in whole.line()


def rows_of(values):
    return [(row,) for row in rows(values)]


@pytest.mark.parametrize("lost", ["zero", "mean", "shuffled"])
@pytest.mark.parametrize("shape", [(64, 10), (64, 1000), (16, 64, 7, 7), (16, 40, 48)])
@pytest.mark.parametrize("precision", list(LIMITS))
def test_a_slice_of_common_size_is_named(lost, shape, precision):
    rng = np.random.default_rng(0)
    for axis in sorted({1, len(shape) - 1}):
        want = rng.normal(size=shape)
        noise = 10 ** (-(LIMITS[precision].sqnr_db + 20) / 20)
        have = want + noise * rng.normal(size=shape)
        index = int(rng.integers(shape[axis]))
        at = (slice(None),) * axis + (index,)
        have[at] = {"zero": 0 * want[at], "mean": want[at].mean(), "shuffled": rng.permutation(want[at])}[lost]
        result = check(rows_of(want), rows_of(have), precision)
        assert not result.passed
        assert (result.worst.axis, result.worst.index) == (axis, index)
        assert result.worst.sqnr_db < 1


def test_most_slices_may_be_lost():
    rng = np.random.default_rng(0)
    want = rng.normal(size=(64, 84)) * np.where(np.arange(84) < 4, 5.0, 0.2)
    have = want + 0.02 * rng.normal(size=want.shape)
    have[:, 4:] = 0
    assert found(want, have).sqnr_db < 1


def test_float_outputs_of_unlike_size_are_judged_by_their_own():
    rng = np.random.default_rng(0)
    want = rng.normal(size=(32, 9, 16)) * np.where(np.arange(9) < 4, 640, 1e-3)[:, None]
    have = want * (1 + 1e-7 * rng.normal(size=want.shape))
    assert check(rows_of(want), rows_of(have), "fp32").passed
    have[:, 7] = np.float32(want[:, 7].mean())
    assert str(check(rows_of(want), rows_of(have), "fp32").worst) == "output_0[:, 7]"


def honest(rng, shape, spread, level):
    """Return outputs that vary by ``spread`` about means of size 1, and the same with noise at ``level`` dB."""
    channel = (1, shape[1], *(1,) * (len(shape) - 2))
    want = rng.normal(size=channel) + spread * rng.normal(size=shape) * np.exp(0.3 * rng.normal(size=channel))
    noise = 10 ** (-level / 20) * np.sqrt(np.mean(want**2))
    bias = 0.7 * rng.normal(size=channel)  # int8 also moves means
    return want, want + noise * (0.7 * rng.normal(size=shape) + bias)


@pytest.mark.parametrize("spread", [0.003, 0.03, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(64, 10), (48, 1000), (16, 64, 7, 7), (16, 40, 48)])
def test_no_false_alarm_where_noise_is_alike(shape, spread):
    """Untrained networks hardly vary, and have means near zero by chance: there noise alone exceeds a slice."""
    for seed in SEEDS:
        for level in (20, 30, 100):
            want, have = honest(np.random.default_rng(seed), shape, spread, level)
            result = check(rows_of(want), rows_of(have), "fp32" if level == 100 else "int8")
            assert result.passed


@pytest.mark.parametrize("outputs", [(64, 84), (16, 84, 40)])
def test_a_lost_part_is_seen_where_all_slices_have_the_same_noise(outputs):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        sizes = np.where(np.arange(84) < 4, 25.0, 0.5).reshape(84, *(1,) * (len(outputs) - 2))
        want = rng.normal(size=outputs) * sizes
        noise = rng.normal(size=outputs)
        lost = check(rows_of(want), rows_of(want + 0.4 * noise), "int8")  # 22 dB as a whole, scores of 2 dB
        assert lost.sqnr_db > 20
        assert not lost.passed
        assert lost.worst.axis == 1
        assert lost.worst.index >= 4
        assert check(rows_of(want), rows_of(want + 0.1 * noise), "int8").passed  # scores of 14 dB
        assert check(rows_of(want), rows_of(want + 0.4 * noise), "w8").worst.axis is None  # floats: own errors only


def test_small_classes_of_a_noisy_classifier_are_not_refused():
    """A random MobileNetV2 has 12.7 dB in every runtime, and classes of -4 dB; all are of one kind."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        want = rng.normal(size=(64, 1000)) * np.exp(0.35 * rng.normal(size=1000))
        assert check(rows_of(want), rows_of(want + 0.35 * rng.normal(size=want.shape)), "int8").passed


def test_a_low_figure_that_may_be_chance_is_not_refused():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        want = rng.normal(size=(16, 1000))
        assert check(rows_of(want), rows_of(want + 0.25 * rng.normal(size=want.shape)), "int8").passed  # 12 dB


def test_dead_channels_constants_and_few_samples_are_no_evidence():
    rng = np.random.default_rng(0)
    want = np.maximum(rng.normal(size=(8, 6, 9, 9)), 0)
    want[:, 4] = 0
    want[3, 4, 2, 2], want[5, 4, 7, 1] = 1e-4, 2e-4  # nearly dead: two small values
    want[:, 5] = 1e-3  # constant
    assert found(want, quantised(want)).sqnr_db > 30
    few = np.random.default_rng(0).normal(size=(3, 9)) * np.array([1.0] * 4 + [0.005] * 5)
    assert found(few, quantised(few)) is None or found(few, quantised(few)).axis is None


def test_outputs_without_axes_and_with_masks():
    scalars = [np.float32(value) for value in np.linspace(1, 2, 12)]
    assert worst_slice("y", scalars, scalars, 255) == OutputSlice("y", None, None, 200.0)
    assert worst_slice("y", [np.zeros((1, 0), np.float32)], [np.zeros((1, 0), np.float32)]) is None
    want = np.random.default_rng(0).normal(size=(32, 6))
    want[:, 2] = -np.inf
    have = quantised(np.where(np.isfinite(want), want, 0))
    have[:, 2] = -np.inf
    assert found(want, have).sqnr_db > 35


def test_a_regression_that_varies_is_judged_on_its_deviation():
    want = 4 + np.random.default_rng(0).normal(size=(64, 1))
    result = check(rows_of(want), rows_of(0 * want + want.mean()), "int8")
    assert result.sqnr_db > 10
    assert not result.passed
    assert "deviation of output_0" in result.line()


def test_a_slice_reads_as_an_index():
    assert str(OutputSlice("scores", 1, 7, 3.0)) == "scores[:, 7]"
    assert str(OutputSlice("scores", 2, 7, 3.0)) == "scores[:, :, 7]"
    assert str(OutputSlice("scores", None, None, 3.0)) == "scores"
    assert str(OutputSlice("\x1b[2Jscores", None, None, 3.0)) == "?[2Jscores"


def test_batches_of_other_sizes_are_one_output():
    rng = np.random.default_rng(0)
    want = [rng.normal(size=(count, 5)) for count in (1, 7, 30)]
    have = [each.copy() for each in want]
    for each in have:
        each[:, 3] = 0
    assert str(worst_slice("y", want, have)) == "y[:, 3]"


def test_a_small_slice_must_reach_the_limit_that_the_user_asks_for():
    """Noise that is equal in all slices: 53 dB of the whole output, 22 dB of a slice of a fortieth of its size."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        want = rng.uniform(-1, 1, size=(256, 8)) * np.where(np.arange(8) == 5, 0.026, 1.0)
        have = want + 0.0012 * rng.normal(size=want.shape)
        assert check(rows_of(want), rows_of(have), "int8").passed
        asked = check(rows_of(want), rows_of(have), "int8", limits=Limits.parse("30dB"))
        assert not asked.passed
        assert str(asked.worst) == "output_0[:, 5]"
        assert asked.worst.sqnr_db == pytest.approx(22, abs=1.5)
