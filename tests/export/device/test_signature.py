"""Test that inputs are taken in order or by name, and outputs read by index or name."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hnas.export.device.artifact import Artifact, TensorSpec
from hnas.export.device.signature import leaves, name_outputs, read_inputs

IDS, MASK, KEY = np.zeros((1, 3), np.int64), np.ones((1, 3), bool), np.ones((1, 2), np.float32)


def artifact(inputs=("ids", "mask", "past.0.key")) -> Artifact:
    kinds = {"ids": ((1, 3), "int64"), "mask": ((1, 3), "bool"), "past.0.key": ((1, 2), "float32")}
    specs = tuple(TensorSpec(name, *kinds[name]) for name in inputs)
    outputs = (TensorSpec("logits", (2,), "float32"), TensorSpec("found", (2,), "bool"))
    return Artifact(Path(), "reference", "fp32", "x", 1, specs, outputs, {"model": "0" * 64})


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ((IDS, MASK, KEY), {}),
        ((IDS, MASK, [{"key": KEY}]), {}),
        ((IDS,), {"mask": MASK, "past": [{"key": KEY}]}),
        ((), {"past.0.key": KEY, "mask": MASK, "ids": IDS}),
    ],
)
def test_inputs_are_taken_in_order_or_by_name(inputs, named):
    found = read_inputs(artifact(), inputs, named)
    assert all(np.shares_memory(a, b) for a, b in zip(found, (IDS, MASK, KEY), strict=True))


@pytest.mark.parametrize(
    ("inputs", "named", "line"),
    [
        ((IDS,), {"mask": MASK}, "missing past.0.key; the artifact takes mask, past.0.key"),
        ((IDS,), {"mask": MASK, "past.0.key": KEY, "typo": KEY}, "unknown typo; the artifact takes mask"),
        ((IDS, MASK, KEY), {"ids": IDS}, "unknown ids; the artifact takes no further input"),
        ((IDS, MASK, 3), {}, "inputs must be numpy arrays, got int"),
        ((IDS, MASK), {}, r"inputs are int64\[1, 3\], bool\[1, 3\], the artifact takes int64"),
        ((MASK, IDS, KEY), {}, r"inputs are bool\[1, 3\], int64"),
    ],
)
def test_wrong_inputs_are_one_line(inputs, named, line):
    with pytest.raises(ValueError, match=line) as caught:
        read_inputs(artifact(), inputs, named)
    assert "\n" not in str(caught.value)


def test_a_bare_file_takes_inputs_in_order_alone():
    assert len(read_inputs(artifact(()), (IDS,), {})) == 1
    with pytest.raises(ValueError, match="a bare model file takes its inputs in order"):
        read_inputs(artifact(()), (), {"ids": IDS})


def test_a_scalar_stays_a_scalar():
    assert read_inputs(artifact(()), (np.array(2.0, np.float32),))[0].shape == ()


def test_outputs_are_a_tuple_that_takes_names():
    got = name_outputs(artifact(), [np.ones(2, np.float32), np.array([0, 1], np.uint8)])
    logits, found = got
    assert got["logits"] is logits is got[0]
    assert found.dtype == bool
    assert found.tolist() == [False, True]
    assert len(got[:1]) == 1
    with pytest.raises(KeyError, match="no output 'loss'; known: logits, found"):
        got["loss"]


def test_an_integer_is_never_made_of_a_float():
    got = name_outputs(artifact(), [np.ones(2, np.float32), np.ones(2, np.float32)])
    assert got["found"].dtype == np.float32  # the check of the types then refuses it


def test_leaves_have_dotted_names():
    @dataclass
    class Part:
        key: int

    assert dict(leaves({"a": [1, (2, {"b": 3})], "c": Part(4)})) == {"a.0": 1, "a.1.0": 2, "a.1.1.b": 3, "c.key": 4}
