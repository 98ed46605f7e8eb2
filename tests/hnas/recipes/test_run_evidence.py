"""A recipe gives the options of its evidence; the run gives the seed and the logits."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

import pytest
import torch

from hnas.recipes import Recipe
from hnas.recipes.run import RunOptions, run_recipe
from hnas.sampling.draws import new_logits, slot_types
from hnas.shrinking import evidence
from hnas.strategies import proxylessnas
from hnas.training import checkpoint
from tests.hnas.recipes.test_run import load_space, recipe
from tests.hnas.training.test_training import one_line


def scoring(kind: str, **options) -> Recipe:
    return replace(recipe(restarts=[[1, 0.1]], epochs=0.1), shrink={"evidence": kind, "drop": 1, **options})


@pytest.fixture
def asked(monkeypatch) -> dict[str, dict]:
    """Record the arguments of each evidence by its name."""
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
    assert whole in (None, {"parts": called, "load": evidence.load})


def test_magnitude_in_a_recipe_goes_by_the_logits_of_its_strategy(tmp_path, source, asked, monkeypatch):
    """Nothing searches in the warm-up, so the logits are those that were planted."""
    whole = load_space()
    slot = whole.slots[0]
    for given in (scoring("magnitude"), scoring("rank_sum", parts={"magnitude": {}})):
        made = new_logits(whole)
        with torch.no_grad():
            made[slot][1] = -3.0
        monkeypatch.setattr(proxylessnas, "extra", lambda _, made=made: made)
        train = {**given.train, "strategy": "proxylessnas", "options": {"warmup": 1.0}}
        record = run_recipe(replace(given, train=train), source, tmp_path / given.shrink["evidence"])
        assert asked["magnitude"]["logits"] is made
        [edit] = record["edits"]
        assert (edit["choice"], edit["option"]) == (f"{slot}.op", slot_types(whole, slot)[1])


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
