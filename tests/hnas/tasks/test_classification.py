"""Batches of the classification task, and their augmentation."""

from __future__ import annotations

import numpy as np

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
