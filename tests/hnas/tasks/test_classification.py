"""Batches of the classification task, and their augmentation."""

from __future__ import annotations

import numpy as np

from hnas.data.images import ImageData
from hnas.tasks.classification import _statistics, _zoomed
from tests.hnas import tiny


def test_a_batch_depends_on_its_step_alone_and_an_epoch_sees_every_image_once():
    task = tiny.task(shift=0)
    first = [task.batch(step) for step in range(8)]
    for step in (5, 0, 7):
        again = task.batch(step)
        assert np.array_equal(again[0], first[step][0])
        assert again[1].equal(first[step][1])
    for epoch in (first[:4], first[4:]):
        seen = sorted(image.tobytes() for batch, _ in epoch for image in batch)
        assert seen == sorted(image.tobytes() for image in task.splits["train"].images)


def test_augmentation_flips_and_shifts_with_edges_repeated():
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1).repeat(64, 0)
    moved = tiny.task(flip=True, shift=2)._augment(pixels, np.random.default_rng(0))
    possible = {
        np.pad(image, ((2, 2), (2, 2)), mode="edge")[y : y + 8, x : x + 8].tobytes()
        for image in (pixels[0, :, :, 0], pixels[0, :, ::-1, 0])
        for y in range(5)
        for x in range(5)
    }
    assert {image.tobytes() for image in moved} <= possible
    assert len({image.tobytes() for image in moved}) > 20


def test_zoom_takes_parts_of_at_least_its_share():
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (24, 24))
    pixels = np.stack([ramp, ramp.T], 2)[None].repeat(64, 0)
    zoomed = tiny.task(flip=False, shift=0, zoom=0.5)._augment(pixels, np.random.default_rng(0))
    assert zoomed.shape == pixels.shape
    assert zoomed.dtype == np.uint8
    spans = zoomed.astype(int).max((1, 2)) - zoomed.astype(int).min((1, 2))  # of rows and columns
    assert spans.min() >= 0.5 * 230 - 10
    assert spans.max() <= 230
    assert len({tuple(span) for span in spans}) > 40
    assert all((np.diff(image[:, 0, 0].astype(int)) >= 0).all() for image in zoomed)
    assert np.array_equal(tiny.task(flip=False, shift=0)._augment(pixels, np.random.default_rng(0)), pixels)
    whole = _zoomed(pixels, np.ones((64, 2)), np.zeros((64, 2)))
    assert np.array_equal(whole, pixels)


def test_mean_and_deviation_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    pixels = images.reshape(-1, 3) / 255
    means, stds = _statistics(ImageData(images, np.zeros(5, np.int64), ("a",)))
    assert means == tuple(np.round(pixels.mean(0), 4))
    assert stds == tuple(np.round(pixels.std(0), 4))
