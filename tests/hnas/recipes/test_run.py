"""An experiment: a recipe over a folder of data leaves a supernet; it resumes, shrinks, and is alone in its folder."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch

import hnas
from hnas.data.images import write_idx
from hnas.files import locked
from hnas.recipes import Recipe, run
from hnas.recipes import load as load_recipe
from hnas.recipes.run import RunOptions, named_arch, run_recipe, task_of
from hnas.recipes.schema import decode_recipe
from hnas.sampling.draws import alphas, types
from hnas.shrinking import evidence
from hnas.shrinking.edits import Edit, replay
from hnas.strategies import evolution, proxylessnas
from hnas.strategies.evolution import EvolutionOptions
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training import checkpoint
from hnas.training.folder import load_supernet, save_supernet
from tests.hnas import tiny
from tests.hnas.planted import latency
from tests.hnas.training.test_training import equal, one_line


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A folder of IDX files of 12 x 12 images, with small held-out splits."""
    monkeypatch.setattr("hnas.data.images.HELD", {"calibration": 32, "search": 32})
    folder = tmp_path / "data"
    folder.mkdir()
    for prefix, n in (("train", 192), ("t10k", 32)):
        found = tiny.data(n, n)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", found.images[..., 0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", found.labels.astype(np.uint8))
    return folder


def recipe(**train_keys) -> Recipe:
    arguments = {key: value for key, value in tiny.ARGUMENTS.items() if key != "classes"}
    space = {"name": "hybrid_vision", **{key: spaces_plain(value) for key, value in arguments.items()}}
    return Recipe("tiny", space, {"size": 12}, {"strategy": "sandwich", "epochs": 1, "batch": 32, **train_keys})


def spaces_plain(value):
    return [spaces_plain(v) for v in value] if isinstance(value, tuple) else value


def test_an_experiment_writes_what_load_reads_and_is_not_repeated(tmp_path, source):
    out, steps = tmp_path / "out", []
    record = run_recipe(recipe(), source, out, on_step=lambda done, of, loss: steps.append((done, of)))
    assert steps == [(k, 4) for k in range(1, 5)]
    assert sorted(f.name for f in out.iterdir()) == ["supernet.json", "supernet.safetensors"]
    supernet, found = load_supernet(out)
    assert found["accuracy"] == record["accuracy"]
    assert set(record["accuracy"]) == {"smallest", "largest"}
    assert supernet.space.largest["resolution"] == 12
    with pytest.raises(FileExistsError, match="choose another --out or --resume"):
        run_recipe(recipe(), source, out)
    before = (out / "supernet.safetensors").stat().st_mtime_ns
    assert run_recipe(recipe(), source, out, RunOptions(resume=True)) == found
    assert (out / "supernet.safetensors").stat().st_mtime_ns == before
    for other, said in (({"seed": 1}, "seed"), ({"epochs": 2.0}, "epochs"), ({"alone": "smallest"}, "alone")):
        with pytest.raises(ValueError, match=f"holds the supernet of a run with other {said}; choose another --out"):
            run_recipe(recipe(), source, out, RunOptions(resume=True, **other))


def test_a_subnet_trains_alone_and_loads(tmp_path, source):
    run_recipe(recipe(), source, tmp_path / "out", RunOptions(alone="random:3"))
    supernet, record = load_supernet(tmp_path / "out")
    assert supernet.space.size == 1
    assert record["accuracy"]["smallest"] == record["accuracy"]["largest"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (recipe(smoothng=0.1), r"\[train\] has no key 'smoothng'; known: strategy, epochs, rate, restarts, batch"),
        (
            Recipe("tiny", recipe().space, {"sise": 12}, recipe().train),
            r"\[data\] has no key 'sise'; known: reader, size",
        ),
        (Recipe("tiny", recipe().space, {}, {"strategy": "sandwich"}), r"\[train\] lacks 'epochs'"),
        (Recipe("tiny", {"name": "hybrid_vision", "depth": 1}, {"size": 12}, recipe().train), "does not take"),
    ],
)
def test_a_recipe_with_a_wrong_key_is_one_line(tmp_path, source, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        run_recipe(given, source, tmp_path / "out")
    assert one_line(caught)


# --- shrinking between cycles -----------------------------------------------------------------------------------------

SHRINK = {"evidence": "one_shot_accuracy", "drop": 3, "keep": 2}


def shrinking(**rules) -> Recipe:
    return replace(recipe(restarts=[[1, 0.1]]), shrink={**SHRINK, **rules})


def test_a_recipe_that_shrinks_leaves_a_smaller_space_and_its_log(tmp_path, source):
    record = run_recipe(shrinking(), source, tmp_path / "out")
    supernet, found = load_supernet(tmp_path / "out")
    whole = named_arch(supernet.space, "largest") and load_space()
    assert len(record["edits"]) == 3 == len(found["edits"])
    assert 0 < supernet.space.size < whole.size
    for edit in found["edits"]:
        assert edit["option"] not in supernet.space.choices[edit["choice"]].options
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["supernet.json", "supernet.safetensors"]


def load_space():
    arguments = {key: value for key, value in tiny.ARGUMENTS.items() if key != "classes"}
    return tiny.space(**arguments)


@pytest.mark.parametrize("at", [2, 6], ids=["before", "after"])
def test_a_run_that_shrinks_and_is_interrupted_resumes_to_the_same(tmp_path, source, monkeypatch, at):
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)

    def die(done: int, steps: int, loss: float) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(shrinking(), source, tmp_path / "cut", on_step=die)
    with pytest.raises(FileExistsError, match="continue it with --resume"):
        run_recipe(shrinking(), source, tmp_path / "cut")
    run_recipe(shrinking(), source, tmp_path / "cut", RunOptions(resume=True))
    run_recipe(shrinking(), source, tmp_path / "whole")
    cut, whole = load_supernet(tmp_path / "cut"), load_supernet(tmp_path / "whole")
    assert equal(cut[0], whole[0])
    assert cut[1]["edits"] == whole[1]["edits"]
    assert cut[0].space.to_json() == whole[0].space.to_json()


HOSTED = {
    "evidence": {**SHRINK, "evidence": "angle"},
    "padnas": {"method": "padnas", "evaluations": 8, "population": 4, "ranks": 2, "threshold": 0.1, "force": True},
    "pwsnas": {"method": "pwsnas", "samples": 20, "drop": 4, "until": 10, "form": "standardised"},
}


@pytest.mark.parametrize("shrink", HOSTED)
def test_proxylessnas_hosts_a_space_that_shrinks_and_its_logits_survive_a_kill(tmp_path, source, monkeypatch, shrink):
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    stages = recipe(strategy="proxylessnas", options={"warmup": 0.0}, restarts=[[0.5, 0.05], [0.5, 0.05]])
    given = replace(stages, shrink=HOSTED[shrink])

    def die(done: int, steps: int, loss: float) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(given, source, tmp_path / "cut", on_step=die)
    cut = run_recipe(given, source, tmp_path / "cut", RunOptions(resume=True))
    whole = run_recipe(given, source, tmp_path / "whole")
    assert cut["edits"] == whole["edits"] != []
    assert cut["logits"] == whole["logits"]
    assert equal(load_supernet(tmp_path / "cut")[0], load_supernet(tmp_path / "whole")[0])
    left = load_supernet(tmp_path / "whole")[0].space
    assert {slot: list(logits) for slot, logits in whole["logits"].items()} == {
        slot: list(types(left, slot)) for slot in left.slots
    }
    assert any(logit for logits in whole["logits"].values() for logit in logits.values())


def test_the_latency_of_a_device_decides_where_it_weighs_most(tmp_path, source):
    """In a recipe a device is named; what its types cost in a slot comes from the profile."""
    options = {"latency": "pixel-3", "weight": 1e6, "warmup": 0.0}
    given = recipe(strategy="proxylessnas", options=options, epochs=6, rate=0.0)
    record = run_recipe(given, source, tmp_path / "out")
    space = load_supernet(tmp_path / "out")[0].space
    study = Study(Supernet(space), tiny.task(), run._costs(Supernet(space), "pixel-3"))
    table = proxylessnas.latencies(study, space)
    for slot, logits in record["logits"].items():
        assert table[slot][max(logits, key=logits.__getitem__)] == min(table[slot].values())
    with pytest.raises(ValueError, match="no device 'abacus'; known: "):
        run_recipe(recipe(strategy="proxylessnas", options={"latency": "abacus"}), source, tmp_path / "other")


def test_a_subnet_of_a_shrunken_space_trains_alone_by_its_name_there(tmp_path, source):
    run_recipe(shrinking(), source, tmp_path / "shrunken")
    space = load_supernet(tmp_path / "shrunken")[0].space
    run_recipe(shrinking(), source, tmp_path / "alone", RunOptions(alone="random:5", among=space))
    assert load_supernet(tmp_path / "alone")[0].space.largest == named_arch(space, "random:5")


def scoring(kind: str, **options) -> Recipe:
    return replace(recipe(restarts=[[1, 0.1]], epochs=0.1), shrink={"evidence": kind, "drop": 1, **options})


@pytest.fixture
def asked(monkeypatch) -> dict[str, dict]:
    """What each evidence was called with, by its name."""
    found: dict[str, dict] = {}

    def listen(name: str, scores):
        @wraps(scores)
        def heard(study, space, **options):
            found[name] = options
            return scores(study, space, **options)

        return heard

    for name in evidence.names():
        module = evidence.load(name)
        monkeypatch.setattr(module, "scores", listen(name, module.scores))
    return found


@pytest.mark.parametrize(
    ("given", "called"),
    [
        (
            scoring("angle", form="block", samples=4, balance="mbconv"),
            {"angle": {"form": "block", "samples": 4, "balance": "mbconv", "seed": 7}},
        ),
        (scoring("chance"), {"chance": {"seed": 7}}),
        (scoring("chance", seed=0), {"chance": {"seed": 0}}),
        (scoring("one_shot_accuracy", samples=1), {"one_shot_accuracy": {"samples": 1, "seed": 7}}),
        (scoring("magnitude", standardised=True), {"magnitude": {"standardised": True}}),
        (
            scoring("rank_sum", parts={"angle": {"samples": 4, "form": "standardised"}, "chance": {"seed": 2}}),
            {"angle": {"samples": 4, "form": "standardised", "seed": 7}, "chance": {"seed": 2}},
        ),
        (scoring("rank_sum"), {"angle": {"seed": 7}, "one_shot_accuracy": {"seed": 7}}),
    ],
)
def test_an_evidence_gets_the_options_of_its_recipe_and_the_seed_of_the_run(tmp_path, source, asked, given, called):
    run_recipe(given, source, tmp_path / "out", RunOptions(seed=7))
    whole = asked.pop("rank_sum", None)
    assert asked == called
    assert whole in (None, {"parts": called})


def test_magnitude_in_a_recipe_goes_by_the_logits_of_its_strategy(tmp_path, source, asked, monkeypatch):
    """Nothing searches in the warm-up, so the logits are those that were planted."""
    whole = load_space()
    slot = whole.slots[0]
    for given in (scoring("magnitude"), scoring("rank_sum", parts={"magnitude": {}})):
        made = alphas(whole)
        with torch.no_grad():
            made[slot][1] = -3.0
        monkeypatch.setattr(proxylessnas, "extra", lambda _, made=made: made)
        train = {**given.train, "strategy": "proxylessnas", "options": {"warmup": 1.0}}
        record = run_recipe(replace(given, train=train), source, tmp_path / given.shrink["evidence"])
        assert asked["magnitude"]["logits"] is made
        [edit] = record["edits"]
        assert (edit["choice"], edit["option"]) == (f"{slot}.op", types(whole, slot)[1])


def test_a_run_is_not_resumed_with_other_options_of_its_evidence(tmp_path, source, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)

    def die(done: int, steps: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(scoring("angle", form="block"), source, tmp_path / "out", on_step=die)
    with pytest.raises(ValueError, match="choose another --out") as caught:
        run_recipe(scoring("angle", form="raw"), source, tmp_path / "out", RunOptions(resume=True))
    assert one_line(caught)


PUBLISHED = {
    "padnas": {"evaluations": 8, "population": 4, "ranks": 2, "threshold": 0.1, "force": True},
    "pwsnas": {"samples": 20, "drop": 4, "until": 10, "form": "standardised", "p_max": 1.5},
}


def published(method: str, **rules) -> Recipe:
    stages = recipe(strategy="spos", restarts=[[0.5, 0.02], [0.5, 0.02]])
    return replace(stages, shrink={"method": method, **PUBLISHED[method], **rules})


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_method_leaves_the_space_that_a_search_takes(tmp_path, source, monkeypatch, method):
    """From the recipe to the search: what was dropped is not offered, copies are loaded, a kill changes nothing."""
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    steps = []

    def die(done: int, of: int, loss: float) -> None:
        steps.append((done, of))
        if done == 7:
            raise KeyboardInterrupt

    record = run_recipe(published(method), source, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(published(method), source, tmp_path / "cut", on_step=die)
    again = run_recipe(published(method), source, tmp_path / "cut", RunOptions(resume=True))
    assert steps[-1] == (7, record["steps"])
    assert again["edits"] == record["edits"] != []
    supernet, found = load_supernet(tmp_path / "out")
    assert equal(supernet, load_supernet(tmp_path / "cut")[0])
    assert replay([Edit.from_json(edit) for edit in found["edits"]], load_space()).to_json() == supernet.space.to_json()
    assert bool(supernet.splits) == (method == "pwsnas")
    study = Study(supernet, task_of(decode_recipe(published(method)), source), {"size": latency})
    options = EvolutionOptions(cost="size", evaluations=6, population=4)
    candidates = list(evolution.search(study, supernet.space, options))
    gone = {(edit["choice"], edit["option"]) for edit in found["edits"] if edit["kind"] == "drop"}
    assert not any(gone & set(candidate.arch.items()) for candidate in candidates)


def test_a_schedule_that_outlasts_the_shrinking_is_trained_to_its_end(tmp_path, source):
    steps = []
    given = published("pwsnas", until=10**9)
    record = run_recipe(given, source, tmp_path / "out", on_step=lambda done, of, loss: steps.append(done))
    assert "edits" not in record
    assert steps == list(range(1, record["steps"] + 1))


def test_padnas_in_a_recipe_goes_by_the_window_of_a_device(tmp_path, source, monkeypatch):
    monkeypatch.setattr(evolution, "TRIES", 1)
    given = published("padnas", device="pixel-3", windows={"latency_ms": [0.0, 1e-6]})
    with pytest.raises(ValueError, match="no architecture meets latency_ms") as caught:
        run_recipe(given, source, tmp_path / "out")
    assert one_line(caught)


def test_a_folder_that_another_run_holds_is_refused(tmp_path, source):
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="another run is at work") as caught:
        run_recipe(recipe(), source, tmp_path / "out")
    assert one_line(caught)


def test_a_supernet_with_split_branches_loads_with_equal_bits(tmp_path):
    supernet = Supernet(tiny.space(), seed=3)
    supernet.split(
        "stages.1.blocks.1.mbconv", "stages.1.blocks.0.op", supernet.space.choices["stages.1.blocks.0.op"].options
    )
    with torch.no_grad():
        for parameter in supernet.union.get_submodule("copies").parameters():
            parameter.add_(1.0)
    supernet.changed()
    save_supernet(supernet, tmp_path, {})
    again, record = load_supernet(tmp_path)
    assert record["splits"]
    assert equal(supernet, again)


def test_the_shipped_recipe_is_the_one_that_made_the_shipped_supernet():
    assets = Path(hnas.__file__).parent / "assets" / "fashion"
    assert load_supernet(assets)[1]["recipe"] == load_recipe("fashion").to_json()
