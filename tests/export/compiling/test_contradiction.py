"""Calibration of another scale than the example inputs is found, and honest calibration never is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from hnas.export.compiling.contradiction import carries_nothing, contradiction, is_placeholder

Draw = Callable[[Generator], NDArray[np.float32]]
MEAN, SPREAD = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def photograph(rng: Generator) -> NDArray[np.float32]:
    """Return patches of a few colours in 0..1; one of twenty is dark."""
    patches = np.kron(rng.random((3, 4, 4)), np.ones((1, 8, 8))) * rng.uniform(0.5, 1)
    dark = 0.3 if rng.random() < 0.05 else 1.0
    return np.clip(patches * dark + rng.normal(0, 0.03, patches.shape), 0, 1)[None].astype(np.float32)


IMAGES: dict[str, Draw] = {
    "normal noise": lambda rng: rng.standard_normal((1, 3, 32, 32)).astype(np.float32),
    "uniform noise": lambda rng: rng.random((1, 3, 32, 32)).astype(np.float32),
    "photograph": photograph,
    "normalised": lambda rng: ((photograph(rng) - MEAN) / SPREAD).astype(np.float32),
    "-1 to 1": lambda rng: photograph(rng) * 2 - 1,
}


@pytest.mark.parametrize("count", [1, 4, 32])
@pytest.mark.parametrize("calibration", IMAGES)
@pytest.mark.parametrize("example", IMAGES)
def test_honest_images_are_not_refused(example: str, calibration: str, count: int) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = contradiction([(IMAGES[calibration](rng),) for _ in range(count)], (IMAGES[example](rng),))
        assert found is None or not found.certain, found


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: (rng.normal(3, 1, 24) * 10.0 ** np.arange(-4, 4).repeat(3))[None],  # a table of unlike columns
        lambda rng: np.exp(rng.normal(0, 2, (1, 16))),  # heavy tails
        lambda rng: rng.normal(0, 10 ** rng.uniform(-2, 0), (1, 1, 400)),  # loud and quiet audio
        lambda rng: rng.normal(-5, 3, (1, 1, 20, 20)),  # log spectra
        lambda rng: np.eye(12)[rng.integers(12)][None],  # one of twelve
        lambda rng: rng.random((1, 1)) * 1000,  # a time step
    ],
)
def test_honest_samples_of_other_kinds_are_not_refused(draw: Callable[[Generator], NDArray[np.float64]]) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = contradiction([(draw(rng).astype(np.float32),) for _ in range(8)], (draw(rng).astype(np.float32),))
        assert found is None or not found.certain, found


@pytest.mark.parametrize("example", IMAGES)
@pytest.mark.parametrize("factor", [255.0, 1 / 255, 0.0])
def test_another_scale_is_found_and_both_ranges_are_said(example: str, factor: float) -> None:
    rng = np.random.default_rng(0)
    draw = IMAGES[example]
    found = contradiction([(draw(rng) * np.float32(factor),) for _ in range(16)], (draw(rng),))
    assert found is not None
    assert found.certain
    assert " in calibration and " in found.words
    assert ("constant 0 in calibration" in found.words) == (factor == 0.0)


def test_an_example_without_statistics_is_not_judged() -> None:
    images = [(np.random.default_rng(0).random((1, 3, 8, 8)) * 255,)]
    for value in (np.zeros((1, 3, 8, 8)), np.ones((1, 3, 8, 8)), np.full((1, 3, 8, 8), 0.5)):
        assert contradiction(images, (value,)) is None
        assert carries_nothing((value,))
    assert not carries_nothing((images[0][0], np.zeros(3)))


def test_tokens_and_masks_are_not_judged_by_scale() -> None:
    tokens, mask = np.arange(16)[None], np.ones((1, 16), np.int64)
    padded = np.where(np.arange(16) < 9, 1, 0)[None]
    assert contradiction([(tokens * 1000, mask)], (tokens, padded)) is None


def test_another_layout_is_found_where_the_sizes_agree() -> None:
    rng = np.random.default_rng(0)
    means = np.linspace(-3, 3, 8)[:, None, None]

    def draw() -> NDArray[np.float32]:
        return (rng.normal(0, 1, (1, 8, 8, 8)) + means).astype(np.float32)

    right, example = [(draw(),) for _ in range(8)], draw()
    wrong = [(np.ascontiguousarray(value.transpose(0, 2, 3, 1)),) for (value,) in right]
    noise = rng.standard_normal((1, 8, 8, 8)).astype(np.float32)
    found = contradiction(wrong, (example,))
    assert found is not None
    assert found.certain
    assert "another axis" in found.words
    for samples, value in ((right, example), (right, noise), (wrong, noise)):
        honest = contradiction(samples, (value,))
        assert honest is None or not honest.certain


def test_noise_is_a_placeholder_and_a_photograph_is_none() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        assert is_placeholder((IMAGES["normal noise"](rng),))
        assert is_placeholder((IMAGES["uniform noise"](rng),))
        assert not is_placeholder((photograph(rng),))
