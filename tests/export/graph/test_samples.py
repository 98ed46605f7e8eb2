"""Test the forms of samples: with labels, by name, nested, unbatched, in other types; wrong ones are one line."""

import logging

import numpy as np
import pytest
import torch

from hnas.export.graph.samples import to_sample, to_samples

IMAGE, IDS, MASK = np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 4), np.int64), np.ones((1, 4), bool)
BATCH = np.arange(96, dtype=np.float32).reshape(8, 3, 2, 2)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.from_numpy(BATCH), torch.arange(8)),
        [BATCH, np.arange(8)],
        (BATCH, ["cat"] * 8),
        (BATCH, 3),
        {"x": BATCH, "label": np.arange(8)},
        {"label": torch.arange(8), "x": torch.from_numpy(BATCH)},
    ],
)
def test_cases_1_and_2_labels_are_dropped_and_said_once(batch, caplog):
    with caplog.at_level(logging.WARNING, "hnas.export"):
        found = to_samples([batch, batch], (IMAGE,), "calibration", ["x"])
    assert len(found) == 16
    assert np.array_equal(np.concatenate([sample[0] for sample in found[:8]]), BATCH)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("calibration: ")
    assert "is dropped, since the network has no such input" in line


def test_case_1_inputs_are_taken_by_name():
    batch = {"mask": MASK.repeat(2, 0), "past": [{"ids": IDS.repeat(2, 0)}]}
    found = to_samples([batch], (IDS, MASK), "evidence", ["past.0.ids", "mask"])
    assert [[part.dtype.name for part in sample] for sample in found] == [["int64", "bool"]] * 2
    with pytest.raises(ValueError, match=r"evidence has no past\.0\.ids; it holds ids, mask"):
        to_samples([{"ids": IDS, "mask": MASK}], (IDS, MASK), "evidence", ["past.0.ids", "mask"])


def test_two_inputs_lose_none(caplog):
    found = to_samples([(IDS, MASK)], (IDS, MASK), "calibration", ["ids", "mask"])
    assert len(found) == 1
    assert len(found[0]) == 2
    assert not caplog.records


def test_case_3_constants_of_a_nested_sample_are_dropped():
    assert len(to_samples([(IDS, [{"m": MASK}], 3, None)], (IDS, MASK), "calibration")[0]) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_case_4_floats_become_those_of_the_examples(dtype):
    (sample,) = to_samples([torch.ones(1, 3, 2, 2, dtype=dtype)], (IMAGE,), "calibration")
    assert sample[0].dtype == np.float32


@pytest.mark.parametrize(
    "value", [np.zeros((1, 3, 2, 2), np.uint8), np.zeros((1, 3, 2, 3), np.float32), (IMAGE, IMAGE, IMAGE), ()]
)
def test_other_shapes_and_kinds_are_one_line(value):
    with pytest.raises(ValueError, match=r"calibration inputs are .*, the example inputs float32\[1, 3, 2, 2\]"):
        to_samples([value], (IMAGE,), "calibration")


def test_case_4_integers_are_never_narrowed():
    with pytest.raises(ValueError, match="int64"):
        to_samples([IDS], (IDS.astype(np.int32),), "calibration")
    assert to_samples([IDS.astype(np.int32)], (IDS,), "calibration")[0][0].dtype == np.int64


def test_a_network_without_batches_takes_a_batch_as_several_samples():
    examples = (np.zeros(3, np.float32), np.zeros((), np.float32))
    rows, numbers = np.zeros((5, 3), np.float32), np.zeros(5, np.float32)
    found = to_samples([(rows, numbers)], examples, "calibration")
    assert [tuple(part.shape for part in sample) for sample in found] == [((3,), ())] * 5
    assert to_sample(torch.tensor(2.0))[0].shape == ()
    with pytest.raises(ValueError, match="the example inputs"):
        to_samples([(rows, numbers[:4])], examples, "calibration")
