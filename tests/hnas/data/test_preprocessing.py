"""Preprocessing gives the values of its definition, and a malformed record is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas.data.images import Preprocessing, triangle_filter
from tests.hnas import tiny


def naive(pixels: np.ndarray, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Scale, filter and normalise one output value at a time, in float64."""

    def taps(old: int, new: int, k: int) -> list[tuple[int, float]]:
        step = old / new
        centre, reach = (k + 0.5) * step - 0.5, max(step, 1.0)
        found = [(j, max(0.0, 1 - abs(j - centre) / reach)) for j in range(old)]
        total = sum(w for _, w in found)
        return [(j, w / total) for j, w in found if w > 0]

    n, height, width, channels = pixels.shape
    out = np.zeros((n, channels, *size))
    for i, c, y, x in np.ndindex(*out.shape):
        rows, columns = taps(height, size[0], y), taps(width, size[1], x)
        value = sum(u * v * float(pixels[i, a, b, c]) for a, u in rows for b, v in columns)
        out[i, c, y, x] = (value / 255 - mean[c]) / std[c]
    return out


@pytest.mark.parametrize("size", [(7, 9), (5, 6), (11, 12), (3, 9)])
def test_preprocessing_equals_a_naive_loop(size):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3), np.uint8)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
    ready = Preprocessing((7, 9), size, mean, std)(pixels)
    assert ready.dtype == np.float32
    assert ready.flags.c_contiguous
    np.testing.assert_allclose(ready, naive(pixels, size, mean, std), atol=2e-6)


@given(old=st.integers(1, 60), new=st.integers(1, 60))
def test_rows_of_a_triangle_filter_sum_to_one(old, new):
    matrix = triangle_filter(old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert (matrix >= 0).all()
    if old == new:
        assert np.array_equal(matrix, np.eye(old, dtype=np.float32))


def test_an_image_alone_is_prepared_as_among_others():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), np.uint8)
    ready = Preprocessing((28, 28), (20, 24), (0.4, 0.5, 0.3), (0.2, 0.25, 0.3))
    assert np.array_equal(ready(pixels), np.concatenate([ready(pixels[i : i + 1]) for i in range(9)]))


def test_preprocessing_survives_json_bit_for_bit():
    ready = Preprocessing((28, 28), (20, 24), (0.2861,), (0.353,))
    again = Preprocessing.from_json(json.loads(json.dumps(ready.to_json())))
    assert again == ready
    assert again.at((28, 28)).size == (28, 28)
    pixels = tiny.data(4, 0, 28).images
    assert np.array_equal(again(pixels), ready(pixels))


@pytest.mark.parametrize(
    "change",
    [
        {"base": [28]},
        {"size": [0, 28]},
        {"std": [0.0]},
        {"std": [-1.0]},
        {"std": []},
        {"mean": [0.1, 0.2]},
        {"mean": ["a"]},
        {"mean": None},
        {"mean": [float("nan")]},
        {"std": [float("inf")]},
        {"base": [10**9, 10**9]},
        {"size": [4097, 28]},
        {"size": [float("inf"), 28]},
        {"mean": [0.1, 0.1], "std": [0.2, 0.2]},
    ],
)
def test_impossible_preprocessing_is_one_line(change):
    record = {**Preprocessing((28, 28), (28, 28), (0.3,), (0.4,)).to_json(), **change}
    with pytest.raises(ValueError, match="preprocessing") as caught:
        Preprocessing.from_json(record)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="recorded as base, size, mean and std"):
        Preprocessing.from_json({})


@pytest.mark.parametrize("shape", [(12, 12, 1), (2, 12, 12, 3), (2, 1, 12, 12)])
def test_pixels_of_another_shape_or_type_are_one_line(shape):
    ready = Preprocessing((12, 12), (12, 12), (0.3,), (0.4,))
    with pytest.raises(ValueError, match=r"images are uint8 \[N, H, W, 1\]; got"):
        ready(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="got float32"):
        ready(np.zeros((2, 12, 12, 1), np.float32))
