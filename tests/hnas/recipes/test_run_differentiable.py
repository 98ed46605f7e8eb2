"""A differentiable search from a recipe: it ends in logits and a derived network, which trains alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hnas.cli import train_main
from hnas.files import read_json
from hnas.recipes import Recipe, load
from hnas.recipes.run import RunOptions, run_recipe

RECIPE = """
[space]
name = "nasbench201"
nodes = 3
width = 4
resolution = 8
{space}

[data]
task = "digits"
{data}

[train]
strategy = "{strategy}"
options = {options}
epochs = {epochs}
batch = 64
alpha_rate = 0.05
{rest}
"""


def recipe(folder: Path, strategy: str = "msgdas", **parts: str) -> Path:
    """Write a recipe of a few steps."""
    filled = {"space": "", "data": "alpha = 0.5", "options": "{ warmup = 0.0 }", "epochs": "0.5", "rest": "", **parts}
    file = folder / f"{strategy}.toml"
    file.write_text(RECIPE.format(strategy=strategy, **filled))
    return file


def run(file: Path, out: Path, **options: Any) -> dict[str, Any]:
    found: Recipe = load(str(file))
    return run_recipe(found, Path(), out, RunOptions(**options))


@pytest.mark.parametrize("strategy", ["darts", "gdas", "msgdas"])
def test_a_search_ends_in_logits_and_the_network_that_they_name(strategy, tmp_path):
    record = run(recipe(tmp_path, strategy), tmp_path / "out")
    for slot, own in record["logits"].items():
        assert own[record["derived"][f"{slot}.op"]] == max(own.values())
        assert any(own.values())
    assert record["images"]["alpha"] == 399


def test_pdarts_drops_in_stages_and_derives_at_most_two_identities(tmp_path):
    rest = 'restarts = [[0.2, 0.05], [0.2, 0.05]]\n[shrink]\nmethod = "pdarts"'
    record = run(recipe(tmp_path, "pdarts", rest=rest), tmp_path / "out")
    assert {len(own) for own in record["logits"].values()} == {2}
    assert [edit["kind"] for edit in record["edits"]] == ["drop"] * 9
    assert list(record["derived"].values()).count("skip_connect") <= 2


def test_the_derived_network_trains_alone_by_one_command(tmp_path, capsys):
    file = recipe(tmp_path)
    record = run(file, tmp_path / "searched")
    words = ["--recipe", str(file), "--data", str(tmp_path), "--out", str(tmp_path / "alone"), "--alone", "derived"]
    assert train_main([*words, "--supernet", str(tmp_path / "searched")]) == 0
    assert read_json(tmp_path / "alone" / "supernet.json")["alone"] == record["derived"]
    assert "next: hnas-deploy" in capsys.readouterr().out


def test_derived_without_a_supernet_is_one_line(tmp_path, capsys):
    words = ["--recipe", str(recipe(tmp_path)), "--data", str(tmp_path), "--out", str(tmp_path / "alone")]
    assert train_main([*words, "--alone", "derived"]) == 2
    assert "--alone derived needs the supernet" in capsys.readouterr().err


def test_images_for_the_logits_must_be_given_and_a_cost_comes_from_a_device(tmp_path):
    with pytest.raises(ValueError, match=r"images of their own; give \[data\] alpha = 0\.5"):
        run(recipe(tmp_path, data=""), tmp_path / "a")
    with pytest.raises(ValueError, match="no device 'abacus'"):
        run(recipe(tmp_path, options='{ latency = "abacus" }'), tmp_path / "b")
    with pytest.raises(ValueError, match=r"\[first, last\], numbers above 0"):
        run(recipe(tmp_path, options="{ tau = [1.0, 0.0] }"), tmp_path / "c")
    record = run(recipe(tmp_path, options='{ latency = "openvino-cpu", limit = 0.01, warmup = 0.0 }'), tmp_path / "d")
    assert record["derived"]
