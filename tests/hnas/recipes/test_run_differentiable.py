"""A differentiable search from a recipe: it ends in logits and a derived network, which trains alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hnas.cli import deploy_main, train_main
from hnas.cost.counts import counted
from hnas.deployment.derived import derive_subnet
from hnas.export.bundle.bundle import read_bundle
from hnas.files import read_json
from hnas.recipes import Recipe, load
from hnas.recipes.run import RunOptions, run_recipe
from hnas.space import Arch
from hnas.tasks import load as load_task
from hnas.training import checkpoint
from hnas.training.folder import load_supernet
from tests.hnas.training.test_training import equal

RECIPE = """
[space]
name = "nasbench201"
nodes = 3
width = 4
resolution = 8
{space}

[data]
task = "{task}"
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
    filled = {
        "space": "",
        "data": "alpha = 0.5",
        "options": "{ warmup = 0.0 }",
        "epochs": "0.5",
        "rest": "",
        "task": "digits",
    }
    filled |= parts
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


def test_a_proxylessnas_search_ends_in_a_derived_network_and_needs_no_images_of_its_own(tmp_path):
    record = run(recipe(tmp_path, "proxylessnas", data=""), tmp_path / "out")
    assert any(x for own in record["logits"].values() for x in own.values())
    for slot, own in record["logits"].items():
        assert own[record["derived"][f"{slot}.op"]] == max(own.values())
    assert "alpha" not in record["images"]


def test_an_interrupted_search_resumes_to_the_same_logits_and_network(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    file = recipe(tmp_path)

    def die(done: int, steps: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(load(str(file)), Path(), tmp_path / "killed", RunOptions(), on_step=die)
    steps: list[int] = []
    follow = lambda done, *_: steps.append(done)  # noqa: E731
    again = run_recipe(load(str(file)), Path(), tmp_path / "killed", RunOptions(resume=True), on_step=follow)
    whole = run(file, tmp_path / "whole")
    assert steps[0] == 2, "the killed step is repeated, not the whole search"
    assert (again["logits"], again["derived"]) == (whole["logits"], whole["derived"])
    assert equal(load_supernet(tmp_path / "killed")[0], load_supernet(tmp_path / "whole")[0])


def test_the_decay_of_the_logits_is_that_of_the_recipe(tmp_path):
    plain, pulled = (
        run(recipe(tmp_path, rest=f"alpha_decay = {decay}"), tmp_path / f"{decay}")["logits"] for decay in (0, 100)
    )
    sizes = [sum(abs(x) for own in found.values() for x in own.values()) for found in (plain, pulled)]
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.slow
def test_the_derived_network_trains_alone_and_is_deployed_by_one_command_each(tmp_path, source, capsys):
    file = recipe(tmp_path, data="alpha = 0.5\nsize = 8", task="classification")
    derived = run_recipe(load(str(file)), source, tmp_path / "searched", RunOptions())["derived"]
    words = ["--recipe", str(file), "--data", str(source), "--alone", "derived", "--out", str(tmp_path / "alone")]
    assert train_main([*words, "--supernet", str(tmp_path / "searched")]) == 0
    assert read_json(tmp_path / "alone" / "supernet.json")["alone"] == derived
    assert "next: hnas-deploy" in capsys.readouterr().out
    words = ["--target", "onnxruntime-cpu", "--supernet", str(tmp_path / "alone"), "--data", str(source)]
    assert (
        deploy_main([*words, "--out", str(tmp_path / "run"), "--precision", "fp32", "--budget", "1evals", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["arch"] == derived
    assert read_bundle(tmp_path / "run" / "bundle").manifest.latency.kind == "measured"


def test_limits_of_a_derived_network_need_one(tmp_path, capsys):
    words = ["--recipe", str(recipe(tmp_path)), "--data", str(tmp_path), "--out", str(tmp_path / "alone")]
    derived = ["--alone", "derived", "--supernet", str(tmp_path)]
    assert train_main([*words, *derived, "--max-memory", "much"]) == 2
    assert "size 'much' is not understood" in capsys.readouterr().err
    assert train_main([*words, "--max-macs", "1000"]) == 2
    assert "--max-macs is a limit, for the derived subnet; give --alone derived too" in capsys.readouterr().err
    assert train_main([*words, "--target", "openvino-cpu"]) == 2
    assert "--target is the device of --max-latency, for the derived subnet; give" in capsys.readouterr().err


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


def test_the_network_that_trains_alone_is_inside_the_window_of_the_search(tmp_path):
    low, high = 0.0055, 0.0061  # ten of 125 cells
    file = recipe(tmp_path, options=f'{{ cost = "weights", limit = [{low}, {high}], warmup = 0.0 }}')
    run(file, tmp_path / "out")
    supernet, record = load_supernet(tmp_path / "out")
    weights = counted(supernet.space, supernet.skeleton)["weights"]
    assert not low <= weights(Arch(record["derived"])).value <= high, "the most likely network would not show it"
    assert low <= weights(derive_subnet(supernet, record, load_task("digits").open_task())).value <= high


def test_a_limit_below_every_latency_is_said_and_refused_if_no_error_of_the_model_explains_it(tmp_path):
    line = r"^train\.options\.limit: the cheapest types of all slots cost 0\.0128 ms \(predicted\), above \[0, "
    with pytest.raises(ValueError, match=line + r"1e-06\] ms; raise the limit$"):
        run(recipe(tmp_path, options='{ latency = "openvino-cpu", limit = 1e-6 }'), tmp_path / "a")
    file, said = recipe(tmp_path, options='{ latency = "openvino-cpu", limit = 0.01 }', epochs="0.05"), list[str]()
    assert run_recipe(load(str(file)), Path(), tmp_path / "b", on_message=said.append)["derived"]
    assert [each for each in said if re.search(line + r"0\.01\] ms", each)] == said[:1]
