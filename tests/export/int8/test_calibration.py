"""Test each calibration method on values whose range is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hnas import hw_profiles
from hnas.export.device.errors import ExportError
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.ranges import BINS, METHODS
from hnas.export.int8.simulation import grid, quantised
from tests.export import nets
from tests.export.programs import normal_noise


class Pass(nn.Module):
    """Return the input, and the input after ReLU."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 1.5, torch.relu(x)


def calls(program: Program, count: int) -> list[tuple[np.ndarray, ...]]:
    return [tuple(value.numpy() for value in normal_noise(program.inputs, seed)) for seed in range(count)]


def of(values: np.ndarray, method: str) -> tuple[float, float]:
    """Return the range of an input with these values, a quarter of them in each sample."""
    program = capture(Pass(), torch.zeros(1, len(values) // 4))
    data = [(part.astype(np.float32).reshape(1, -1),) for part in np.split(values, 4)]
    return activation_ranges(program, data, method)["x"]


@pytest.mark.parametrize("name", nets.SHAPES)
def test_every_float_value_has_a_range_that_its_values_lie_in(name: str) -> None:
    program = fuse(capture(*nets.build(name)))
    data = calls(program, 3)
    ranges = activation_ranges(program, data)
    values = [n for n in program.module.graph.nodes if n.op in ("placeholder", "call_function")]
    assert set(ranges) == {node.name for node in values if node.meta["val"].is_floating_point()}
    first = next(node.name for node in values)
    assert ranges[first] == (min(float(call[0].min()) for call in data), max(float(call[0].max()) for call in data))
    for call in data:
        last = program(*(torch.from_numpy(part) for part in call))[-1]
        low, high = list(ranges.values())[-1]
        assert low <= float(last.min())
        assert float(last.max()) <= high


@pytest.mark.parametrize("method", METHODS)
def test_no_method_goes_far_beyond_what_was_seen(method: str) -> None:
    beyond = 1.3 if method == "unseen" else 1.0
    program = fuse(capture(*nets.build("resnet")))
    data = calls(program, 2)
    seen = activation_ranges(program, data)
    for name, (low, high) in activation_ranges(program, data, method).items():
        least, most = seen[name]
        assert min(least, least * beyond) - 1e-6 <= low <= high <= max(most, most * beyond) + 1e-6, name


def test_methods_are_those_that_profiles_may_name() -> None:
    assert tuple(METHODS) == hw_profiles.RANGES


def test_percentile_leaves_out_one_in_ten_thousand_and_keeps_the_pile_at_zero() -> None:
    values = np.concatenate([np.zeros(9_000), np.linspace(0.0, 1.0, 10_990), np.full(1, 1000.0), np.zeros(9)])
    low, high = of(values, "percentile")
    assert low == 0.0
    assert 0.9 < high < 2.0
    assert of(values, "minmax") == (0.0, 1000.0)


def error(values: np.ndarray, found: tuple[float, float]) -> float:
    tensor = torch.from_numpy(values.astype(np.float32))
    return float((quantised(tensor, found) - tensor).square().mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["normal", "laplace", "exponential"])
def test_mse_is_at_least_as_good_as_minmax(seed: int, shape: str) -> None:
    values = getattr(np.random.default_rng(seed), shape)(size=4000)
    assert error(values, of(values, "mse")) <= 1.05 * error(values, of(values, "minmax"))


def test_mse_clips_an_outlier_in_a_million() -> None:
    counts, _ = np.histogram(np.random.default_rng(0).normal(size=1_000_000), BINS, (-30.0, 30.0))
    counts[-1] += 1
    reduce = METHODS["mse"]
    assert reduce is not None
    low, high = reduce(counts.astype(np.float64), (-30.0, 30.0))
    assert -6 < low < -3
    assert 3 < high < 15  # the outlier's own error grows with the distance


def test_unseen_expects_larger_values_but_none_beyond_a_bound() -> None:
    """Samples of 3 and 4 leave room for larger ones; a ReLU6 that two samples reach leaves none."""
    values = np.random.default_rng(0).uniform(0, 1, (4, 1000)) * np.array([3.0, 4.0, 3.5, 3.0])[:, None]
    low, high = of(values.ravel(), "unseen")
    assert abs(low) < 1e-3
    assert 4.3 < high <= values.max() * 1.3
    bounded = np.minimum(values * 3, 6.0)
    assert of(bounded.ravel(), "unseen")[1] <= 6.0
    larger = values.ravel() * 1.25  # other samples
    assert error(larger, (low, high)) < 0.2 * error(larger, of(values.ravel(), "mse"))


def test_entropy_clips_a_long_tail_and_keeps_a_short_one() -> None:
    rng = np.random.default_rng(0)
    tailed = np.concatenate([rng.normal(size=19_990), np.full(10, 60.0)])
    low, high = of(tailed, "entropy")
    assert 2.0 < high < 30.0
    assert low == pytest.approx(tailed.min())
    flat = rng.uniform(-1, 1, 20_000)
    assert of(flat, "entropy")[1] > 0.9


def test_infinities_are_left_out_and_constants_take_no_bins() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.masked_fill(x > 0, -math.inf), -1) + torch.full_like(x, -math.inf).exp()

    program = capture(Masked(), -torch.rand(1, 8) - 0.1)
    for method in METHODS:
        ranges = activation_ranges(program, [(-np.linspace(0.1, 0.9, 8, dtype=np.float32)[None],)] * 2, method)
        assert all(math.isfinite(low) and math.isfinite(high) for low, high in ranges.values())
        assert (0.0, 0.0) in ranges.values()


def test_nan_names_its_value() -> None:
    class Rooted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(x)

    program = capture(Rooted(), torch.ones(1, 2))
    with pytest.raises(ExportError, match=r"^value sqrt is NaN on a calibration sample"):
        activation_ranges(program, [(np.array([[1.0, -1.0]], np.float32),)])


def test_wrong_use_is_one_line() -> None:
    program = capture(Pass(), torch.zeros(1, 10))
    with pytest.raises(
        ValueError, match=r"^no calibration method 'median'; known: minmax, percentile, entropy, mse, unseen$"
    ):
        activation_ranges(program, [(np.zeros((1, 10), np.float32),)], "median")
    with pytest.raises(ValueError, match="int8 needs calibration inputs"):
        activation_ranges(program, [])


@given(st.floats(-1e3, 0), st.floats(0, 1e3))
def test_zero_is_a_level_of_every_grid(low: float, high: float) -> None:
    step, zero = grid((low, high))
    assert 0 <= zero <= 255
    assert float(quantised(torch.zeros(1), (low, high))) == 0.0
    if high - low > 1e-30:
        assert step * 255 == pytest.approx(high - low)
