"""Growth that cannot be is refused in one line: calls, records, rules, spaces and data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hnas import spaces
from hnas.cli import train_main
from hnas.recipes.run import RunOptions, run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.supernet import Supernet
from hnas.training.folder import save_supernet
from tests.hnas.growth.test_loop import LORENZ, RECIPE, study


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-latency", "2ms"], "give both --target and --max-latency"),
        ([], "say how far to grow"),
        (["--max-weights", "9"], "no folder"),
        (["--target", "toaster", "--max-latency", "2ms"], "toaster"),
        (["--max-weights", "9", "--threads", "0"], "threads is 0, expected 1 to"),  # an internal error of torch
        (["--max-weights", "9", "--seed", "-1"], "seed is -1; it is 0 or more"),
        (["--max-weights", "9", "--epochs", "nan"], "epochs is nan"),
        (["--max-weights", "9", "--data", "nowhere"], "no folder nowhere; --data takes "),
        (["--max-weights", "9", "--resume"], "out holds no training to continue; leave out --resume"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, capsys, words, message):
    assert train_main(["grow", "--supernet", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (5, "does not say which recipe trained it"),
        ({**RECIPE.to_json(), "train": []}, "does not say which recipe trained it"),
        ({**RECIPE.to_json(), "grow": [1]}, "does not say which recipe trained it"),
        ({**RECIPE.to_json(), "train": {**RECIPE.train, "rate": "fast"}}, "rate is"),
        ({**RECIPE.to_json(), "train": {**RECIPE.train, "rate": [1]}}, "rate is"),
    ],
)
def test_a_record_that_was_tampered_with_is_one_line(tmp_path, capsys, recipe, message):
    (tmp_path / "supernet.json").write_text(json.dumps({"recipe": recipe}))
    words = ["grow", "--supernet", str(tmp_path), "--max-weights", "900", "--out", str(tmp_path / "out")]
    assert train_main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grow", "message"),
    [
        ({"stages": 0}, "grow.stages is 0"),
        ({"mode": "upwards"}, 'grow.mode is "upwards", expected "alternate" or "prune_last"'),
        ({"device": "openvino-cpu"}, "give .grow. both of max_latency_ms and device"),
        ({"edits": 3}, r"\[grow\] has no key 'edits'"),
    ],
)
def test_wrong_rules_are_one_line(grow, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_recipe(replace(RECIPE, grow=grow))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "mend"),
    [
        ({"strategy": "sandwich"}, 'give train.strategy = "spos"'),
        ({"options": {"paths": 2}}, "leave train.options out"),
        ({"combine": "project"}, 'give train.combine = "sum"'),
        ({"restarts": [[100, 0.01]]}, "leave train.restarts out"),
    ],
)
def test_keys_that_growth_does_not_use_are_refused(train, mend):
    with pytest.raises(ValueError, match=f"lorenz: with .grow. each step trains the open part alone; {mend}$"):
        decode_recipe(replace(RECIPE, train={**RECIPE.train, **train}))


def test_a_supernet_of_another_space_does_not_grow(tmp_path):
    space = spaces.load("recurrent_cell")(widths=[4], nodes=[1])
    save_supernet(Supernet(space), tmp_path / "other", {"task": {"digests": {"series": LORENZ.digest}}})
    with pytest.raises(ValueError, match="another space"):
        run_recipe(RECIPE, None, tmp_path / "out", RunOptions(grown_from=tmp_path / "other"))


@pytest.mark.parametrize("record", [{}, {"task": 3}, {"task": {"digests": {"series": "0"}}}])
def test_a_supernet_of_other_data_does_not_grow(tmp_path, record):
    """It was scaled by the mean and deviation of other rows, and nothing was said."""
    save_supernet(own := study().supernet, tmp_path / "net", record)
    recipe = replace(RECIPE, space=own.space.to_json()["arguments"] | {"name": "recurrent_cell"})
    with pytest.raises(ValueError, match=r"this is not the data that .*net was trained on; give --data as in that"):
        run_recipe(recipe, None, tmp_path / "out", RunOptions(grown_from=tmp_path / "net"))
