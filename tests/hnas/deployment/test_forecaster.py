"""Forecasts and texts by the step of a recurrent network: functions stand for its artifact."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hnas import tasks
from hnas.cli.commands import _continue, make_run_parser
from hnas.data.series import Table
from hnas.deployment.forecaster import Forecaster


def forecaster(run, **said):
    """Return a forecaster over a function in place of an artifact."""
    made = object.__new__(Forecaster)
    made.bundle = SimpleNamespace(path="bundle")
    made.kind, made._run, made._state = "series", run, (1, 2)
    made._said = {"features": ["a", "b"], "targets": ["a", "b"], "horizon": 2, **said}
    made._said.setdefault("scaling", {"a": [10.0, 2.0], "b": [0.0, 1.0]})
    return made


def test_a_forecast_longer_than_the_horizon_reads_itself():
    """The stand-in network adds 2 to the row: it is exact for a series that rises by 1 a row, with a horizon of 2."""

    def run(x, h):
        return x * np.float32([2.0, 1.0]) / np.float32([2.0, 1.0]) + np.float32([1.0, 2.0]), h

    rows = np.arange(20, dtype=np.float32)
    table = Table(("b", "a"), np.stack([rows + 5, rows], 1))
    for steps, expected in ((None, 2), (1, 1), (7, 7)):
        targets, values = forecaster(run).forecast(table, steps)
        assert targets == ("a", "b")
        assert values.shape == (expected, 2)
        np.testing.assert_allclose(values[:, 0], 20 + np.arange(expected), rtol=1e-5)
        np.testing.assert_allclose(values[:, 1], 25 + np.arange(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "steps", "message"),
    [
        ({"targets": ["a"]}, 3, "because it does not forecast all of its features"),
        ({"horizon": 0}, 3, "because it needs the features of the same row"),
        ({}, 0, "steps is 0"),
        ({"horizon": 50}, None, "20 rows are too few for a forecast 50 rows ahead"),
        ({"features": ["a", "c"], "scaling": {name: [0.0, 1.0] for name in "abc"}}, None, "no column 'c'"),
    ],
)
def test_a_forecast_that_cannot_be_is_one_line(said, steps, message):
    table = Table(("a", "b"), np.zeros((20, 2), np.float32))
    with pytest.raises(ValueError, match=message):
        forecaster(lambda x, h: (x, h), **said).forecast(table, steps)


def test_a_forecast_of_large_values_keeps_its_small_steps():
    """As float32 all forecasts were equal."""
    said = {"features": ["a"], "targets": ["a"], "horizon": 1, "scaling": {"a": [1.7e9, 2.0]}}
    table = Table(("a",), 1.7e9 + np.arange(6.0)[:, None])
    _, found = forecaster(lambda x, h: (x + np.float32(0.5), h), **said).forecast(table, 3)
    assert found[:, 0].tolist() == [1.7e9 + k for k in (6, 7, 8)]


def test_a_forecast_reads_its_file_as_the_training_did(tmp_path, monkeypatch, capsys):
    """The column of timestamps was a column of numbers for ``hnas-deploy run``, which refused the file."""
    file, days = tmp_path / "power.csv", np.datetime64("2024-01-01") + np.arange(400)
    file.write_text("a,day\n" + "".join(f"{k % 7},{day}\n" for k, day in enumerate(days)))
    task = tasks.load("series").open_task(file, time="day", window=10, burn=3)
    said = json.loads(json.dumps(task.to_json()))
    made = forecaster(lambda x, h: (x, h), **said)
    assert made.read(file).digest == task.digest
    monkeypatch.setattr("hnas.deployment.forecaster.Forecaster", lambda *_: made)
    parsed = make_run_parser().parse_args(["bundle", "--csv", str(file), "--json"])
    _continue(made.bundle, None, parsed)
    assert json.loads(capsys.readouterr().out) == [{"a": pytest.approx(399 % 7, abs=1e-5)}]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"horizon": None}, r"manifest.json: input.preprocessing.horizon is missing, expected an integer"),
        ({"features": []}, "features or targets are empty"),
        ({"scaling": {"a": [0.0, 1.0]}}, "scaling has no mean and no deviation above 0 of column 'b'"),
        ({"scaling": {"a": [0.0, 0.0], "b": [0.0, 1.0]}}, "no deviation above 0 of column 'a'"),
    ],
)
def test_a_manifest_that_lacks_a_key_is_one_line(said, message):
    """A KeyError was an internal error of the command."""
    table = Table(("a", "b"), np.zeros((20, 2), np.float32))
    with pytest.raises(ValueError, match=message):
        forecaster(lambda x, h: (x, h), **said).forecast(table)
    made = forecaster(lambda x, h: (x, h))
    del made._said["horizon"]
    with pytest.raises(ValueError, match=r"bundle/manifest.json: input.preprocessing.horizon is missing$"):
        made.forecast(table)


def test_a_state_of_another_shape_is_one_line():
    table = Table(("a", "b"), np.zeros((20, 2), np.float32))
    with pytest.raises(ValueError, match=r"returned a state of \[1, 3\], expected \[1, 2\]"):
        forecaster(lambda x, h: (x, np.zeros((1, 3), np.float32))).forecast(table)


def test_a_text_is_continued_by_the_likeliest_character():
    made = forecaster(lambda x, h: (np.roll(x, 1, 1) * 9, h), alphabet="abc")
    assert made.continue_text("ab", 5, temperature=0) == "cabca"
    assert made.continue_text("ab", 5, seed=1) == made.continue_text("ab", 5, seed=1)
    for wrong, message in ((("", 5), "is empty"), (("ab", 0), "characters is 1"), (("xy", 5), "'x'")):
        with pytest.raises(ValueError, match=message):
            made.continue_text(*wrong)
