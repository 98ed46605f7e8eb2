"""Test that a call may have any size in the range of the artifact, and no other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hnas.export.device.artifact import Artifact, TensorSpec
from hnas.export.device.dynamic import DynamicSize
from hnas.export.device.signature import check_outputs, expected_outputs, read_inputs

SPECS = (TensorSpec("x", (1, 3), "float32"), TensorSpec("mask", (1, 2), "bool"))
SIZE = DynamicSize("batch", 1, 8, (0, 0), (0,))


def artifact(note) -> Artifact:
    notes = {} if note is None else {"dynamic": note}
    outputs = (TensorSpec("y", (1, 5), "float32"),)
    return Artifact(Path(), "reference", "fp32", "x", 1, SPECS, outputs, {"model": "0" * 64}, notes=notes)


def call(count, other=None):
    return np.zeros((count, 3), np.float32), np.ones((other or count, 2), bool)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_a_size_in_the_range_is_taken(count):
    made = artifact(SIZE.to_json())
    assert [value.shape for value in read_inputs(made, call(count))] == [(count, 3), (count, 2)]
    check_outputs([np.zeros((count, 5), np.float32)], expected_outputs(made, call(count)))
    with pytest.raises(Exception, match="the artifact states"):
        check_outputs([np.zeros((count + 1, 5), np.float32)], expected_outputs(made, call(count)))


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        (call(9), "the inputs have a batch of 9, the artifact takes a batch of 1 to 8"),
        (call(3, 2), r"inputs are float32\[3, 3\], bool\[2, 2\], the artifact takes float32\[3, 3\], bool\[3, 2\]"),
    ],
)
def test_another_size_is_one_line(inputs, line):
    with pytest.raises(ValueError, match=line):
        read_inputs(artifact(SIZE.to_json()), inputs)


def test_without_the_note_the_size_is_that_of_the_examples():
    assert DynamicSize.of(artifact(None)) is None
    with pytest.raises(ValueError, match="the artifact takes"):
        read_inputs(artifact(None), call(2))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        "batch",
        {**SIZE.to_json(), "inputs": [0]},
        {**SIZE.to_json(), "inputs": [0, 2]},
        {**SIZE.to_json(), "outputs": [-1]},
        {**SIZE.to_json(), "low": 0},
        {**SIZE.to_json(), "high": 0},
        {**SIZE.to_json(), "more": 1},
    ],
)
def test_a_wrong_note_is_one_line(wrong):
    with pytest.raises(ValueError, match=r"artifact\.json: ") as caught:
        read_inputs(artifact(wrong), call(1))
    assert "\n" not in str(caught.value)


def test_an_open_range_has_no_end():
    made = artifact(replace(SIZE, high=None).to_json())
    assert read_inputs(made, call(1000))[0].shape == (1000, 3)
