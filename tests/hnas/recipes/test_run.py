"""A run of a recipe writes a supernet; it resumes, shrinks its space, and locks its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hnas
from hnas.files import locked
from hnas.recipes import Recipe
from hnas.recipes import load as load_recipe
from hnas.recipes.parts import named_arch, open_task_of
from hnas.recipes.run import RunOptions, run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.recipes.shrinking import predicted_costs
from hnas.sampling.draws import slot_types
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


def test_a_space_of_other_channels_than_the_images_is_refused(tmp_path, source):
    other = replace(recipe(), space={**recipe().space, "channels": 3}, data={"size": 12, "channels": 1})
    with pytest.raises(ValueError, match=r"space.channels is 3, and the images have 1; give data.channels and"):
        run_recipe(other, source, tmp_path / "out")


@pytest.mark.parametrize("name", ["", "random:\u00b2"])
def test_a_name_of_no_subnet_trains_nothing(tmp_path, source, name):
    with pytest.raises(ValueError, match=f"no architecture '{name}'; known: smallest"):
        run_recipe(recipe(), source, tmp_path / "out", RunOptions(alone=name))
    assert not (tmp_path / "out").exists()


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
        slot: list(slot_types(left, slot)) for slot in left.slots
    }
    assert any(logit for logits in whole["logits"].values() for logit in logits.values())


def test_the_latency_of_a_device_decides_where_it_weighs_most(tmp_path, source):
    """A recipe names a device; its profile gives the latency of each type in each slot."""
    options = {"latency": "pixel-3", "weight": 1e6, "warmup": 0.0}
    given = recipe(strategy="proxylessnas", options=options, epochs=6, rate=0.0)
    record = run_recipe(given, source, tmp_path / "out")
    space = load_supernet(tmp_path / "out")[0].space
    study = Study(Supernet(space), tiny.task(), predicted_costs(Supernet(space), "pixel-3"))
    table = proxylessnas.latencies(study, space).types
    for slot, logits in record["logits"].items():
        assert table[slot][max(logits, key=logits.__getitem__)] == min(table[slot].values())
    with pytest.raises(ValueError, match="no device 'abacus'; known: "):
        run_recipe(recipe(strategy="proxylessnas", options={"latency": "abacus"}), source, tmp_path / "other")


def test_a_subnet_of_a_shrunken_space_trains_alone_by_its_name_there(tmp_path, source):
    run_recipe(shrinking(), source, tmp_path / "shrunken")
    space = load_supernet(tmp_path / "shrunken")[0].space
    run_recipe(shrinking(), source, tmp_path / "alone", RunOptions(alone="random:5", among=space))
    assert load_supernet(tmp_path / "alone")[0].space.largest == named_arch(space, "random:5")


PUBLISHED = {
    "padnas": {"evaluations": 8, "population": 4, "ranks": 2, "threshold": 0.1, "force": True},
    "pwsnas": {"samples": 20, "drop": 4, "until": 10, "form": "standardised", "p_max": 1.5},
}


def published(method: str, **rules) -> Recipe:
    stages = recipe(strategy="spos", restarts=[[0.5, 0.02], [0.5, 0.02]])
    return replace(stages, shrink={"method": method, **PUBLISHED[method], **rules})


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_method_leaves_the_space_that_a_search_takes(tmp_path, source, monkeypatch, method):
    """From the recipe to the search: dropped options are not offered, copies are loaded, a kill changes nothing."""
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
    study = Study(supernet, open_task_of(decode_recipe(published(method)), source), {"size": latency})
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
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="another run is using") as caught:
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


@pytest.mark.parametrize(("takes", "own", "expected"), [(True, {}, 5), (True, {"seed": 3}, 3), (False, {}, None)])
def test_the_seed_of_the_run_is_passed_to_a_task_that_takes_it(
    monkeypatch: pytest.MonkeyPatch, takes: bool, own: dict[str, int], expected: int | None
) -> None:
    """A seed in [data] goes first: it was overwritten. A task without seeds was refused."""
    seen: list[int | None] = []

    def seeded(folder: Path | None, *, batch_size: int = 1, seed: int = 0) -> None:
        seen.append(seed)

    def fixed(folder: Path | None, *, batch_size: int = 1) -> None:
        seen.append(None)

    file = SimpleNamespace(open_task=seeded if takes else fixed)
    monkeypatch.setattr("hnas.tasks.names", lambda: ("mine",))
    monkeypatch.setattr("hnas.tasks.load", lambda _: file)
    open_task_of(decode_recipe(replace(recipe(), data={"task": "mine", **own})), None, 5)
    assert seen == [expected]


def test_a_seed_for_a_task_that_names_none_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"\[data\] has no key 'seed'; known: "):
        decode_recipe(replace(recipe(), data={"seed": 3}))
