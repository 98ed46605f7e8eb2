"""A recipe is decoded into records; anything else is refused in one line, before data is read or a net is trained."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import msgspec
import pytest

from hnas import recipes, strategies
from hnas.recipes.schema import decode_recipe, options_of
from hnas.recipes.wording import describe
from hnas.shrinking import evidence
from tests.conftest import LIMIT_S
from tests.hnas.recipes.test_run import PUBLISHED, SHRINK, published, recipe
from tests.hnas.recipes.test_run_evidence import scoring
from tests.hnas.training.test_training import one_line


def test_the_options_of_every_strategy_and_evidence_are_typed():
    for module in (*map(strategies.load, strategies.names()), *map(evidence.load, evidence.names())):
        for function in {"pick", "scores"} & set(vars(module)):
            for name, kind in options_of(getattr(module, function)).items():
                default = signature(getattr(module, function)).parameters[name].default
                assert msgspec.convert(default, kind) == default
                assert describe(kind)


def test_a_recipe_of_a_series_names_its_targets():
    """A list of any length is an option too."""
    series = recipes.load("series")
    named = replace(series, data={**series.data, "targets": ["load", "price"]})
    assert decode_recipe(named).data.options["targets"] == ("load", "price")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[space", "recipe broken: "),
        ("[train]\nepochs = 1", r"no name in \[space\]"),
        ("[space]\nname = 'x'\n[other]", r"unknown section \[other\]"),
        ("a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_malformed_recipe_is_one_line(tmp_path, text, message):
    file = tmp_path / "broken.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        recipes.load(str(file))
    assert one_line(caught)
    with pytest.raises(FileNotFoundError, match="no recipe file"):
        recipes.load(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (replace(recipe(combine="project"), shrink=SHRINK), r"with \[shrink\] gradients add up; leave combine out"),
        (replace(recipe(), shrink={"method": "sandwich"}), "no method 'sandwich' to shrink by; known: padnas, pdarts"),
        (
            published("pwsnas", devise="pixel-3"),
            r"\[shrink\] has no key 'devise'; known: method, device, samples, form",
        ),
        (published("padnas", evidence="angle"), r"\[shrink\] has no key 'evidence'; known: method, device, windows"),
        (
            published("padnas", windows={"latency_ms": 3}),
            r"shrink.windows is {\"latency_ms\": 3}, expected a table of costs, each \[low, high\]",
        ),
        (published("padnas", device="abacus"), "abacus"),
        (published("pwsnas", form="round"), 'shrink.form is "round", expected "block" or "raw" or'),
        (replace(recipe(), shrink={"evidence": "pareto_frequency", "drop": 1}), "needs a search; give the method"),
        (replace(recipe(), shrink={"evidence": "angle"}), r"\[shrink\] needs evidence, and drop or threshold"),
        (replace(recipe(), shrink={**SHRINK, "evidence": "hearsay"}), "no evidence 'hearsay'"),
        (replace(recipe(), shrink={**SHRINK, "drop": 0}), "shrink.drop is 0, expected a whole number from 1 on"),
        (recipe(options={"paths": 2, "pats": 3}), r"\[train.options\] has no key 'pats'; known: paths"),
        (recipe(strategy="spos", options={"paths": 2}), r"\[train.options\] has no key 'paths'; known: none"),
        (recipe(strategy="proxylessnas", options={"extra": {}}), "has no key 'extra'; known: limit, weight, warmup"),
        (recipe(options={"paths": 2.5}), "train.options.paths is 2.5, expected a whole number from 0 to 1024"),
        (recipe(options={"paths": True}), "train.options.paths is true, expected a whole number from 0 to 1024"),
        (
            recipe(strategy="hybrid_union", options={"paths": "2"}),
            'train.options.paths is "2", expected a whole number from 0 to 1024',
        ),
        (
            recipe(strategy="hybrid_progressive", options={"imitate": [1]}),
            r"train.options.imitate is \[1\], expected a share between 0 and 1",
        ),
        (
            recipe(strategy="proxylessnas", options={"weight": float("nan")}),
            "train.options.weight is NaN, expected a finite number",
        ),
        (
            recipe(strategy="proxylessnas", options={"latency": 3}),
            "train.options.latency is 3, expected a name in quotes",
        ),
        (scoring("angle", sample=3), r"\[shrink\] has no key 'sample'; known: evidence, .*, samples, form, vectors"),
        (scoring("angle", samples=2.5), "shrink.samples is 2.5, expected a whole number from 1 on"),
        (scoring("angle", form="round"), 'shrink.form is "round", expected "block" or "raw" or'),
        (scoring("angle", vectors=1), "shrink.vectors is 1, expected true or false"),
        (scoring("angle", graph="cell"), r"\[shrink\] has no key 'graph'"),
        (scoring("magnitude", logits={}), r"\[shrink\] has no key 'logits'; known: evidence, .*, until, standardised"),
        (scoring("one_shot_accuracy", split="test"), 'shrink.split is "test", expected "calibration" or "search"'),
        (scoring("rank_sum", parts=["angle"]), r'shrink.parts is \["angle"\], expected a table, each a table'),
        (scoring("rank_sum", parts={"angles": {}}), "no evidence 'angles'; known: angle, chance"),
        (
            scoring("rank_sum", parts={"angle": {"seeds": 1}}),
            r"\[shrink.parts.angle\] has no key 'seeds'; known: samples",
        ),
        (
            scoring("rank_sum", parts={"angle": {"samples": "3"}}),
            'shrink.parts.angle.samples is "3", expected a whole number from 1 on',
        ),
        (scoring("rank_sum", parts={"pareto_frequency": {}}), "pareto_frequency needs a search; give the method"),
        (recipe(strategy="evolution"), "the strategy 'evolution' searches, it does not train"),
        (recipe(combine="max"), 'train.combine is "max", expected "project" or "sum"'),
        (recipe(divergence="js"), 'train.divergence is "js", expected "alpha" or "kl"'),
    ],
)
def test_a_recipe_that_asks_for_what_is_not_there_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_recipe(given)
    assert one_line(caught)


@pytest.mark.parametrize("method", [*PUBLISHED, "proxylessnas"])
def test_the_recipe_of_a_published_method_in_its_page_is_one(tmp_path, method):
    page = Path(__file__).parents[3] / "docs/methods" / f"{method}.md"
    (tmp_path / f"{method}.toml").write_text(page.read_text().split("```toml\n")[1].split("```")[0])
    shown = recipes.load(str(tmp_path / f"{method}.toml"))
    decode_recipe(shown)
    assert method in (shown.shrink.get("method"), shown.train["strategy"])


def test_only_a_recipe_needs_msgspec():
    """Deploying a user's network works without msgspec; a bundle and the command line do not even look for it."""
    blocked = "import sys; sys.modules['msgspec'] = None; import hnas.deployment, hnas.study, hnas.training.folder"
    light = "import sys, hnas.cli; from hnas import export; export.load; assert 'msgspec' not in sys.modules"
    for code in (blocked, light):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_key_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"\[train\] has no key ''; known: strategy"):
        decode_recipe(recipe(**{"": 1}))


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bytes.toml is no UTF-8 text"):
        recipes.load(str(tmp_path / "bytes.toml"))
