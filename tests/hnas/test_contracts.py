"""Check the laws of tests/contracts.py for every operation, space, strategy and recipe that is found."""

from __future__ import annotations

import pytest

from hnas import ops, recipes, spaces, strategies
from hnas.sampling import complexity
from tests import contracts
from tests.hnas import tiny

LAWS_OF_OPS = [contracts.op_ends_in_out, contracts.op_with_zero_out_adds_nothing, contracts.op_twins_share_nothing]
LAWS_OF_SPACES = [
    contracts.space_samples_members,
    contracts.space_neighbours_differ_in_one_choice,
    contracts.space_without_never_admits,
    contracts.space_survives_json,
    contracts.space_members_are_slices_of_the_union,
]


def named(law):
    return law.__name__


@pytest.mark.parametrize("law", [*LAWS_OF_OPS, contracts.op_smaller_is_a_slice_of_larger], ids=named)
@pytest.mark.parametrize("name", ops.names())
def test_every_operation(name, law):
    law(name)


@pytest.mark.parametrize("law", LAWS_OF_SPACES, ids=named)
@pytest.mark.parametrize("name", spaces.names())
def test_every_space(name, law):
    law(spaces.load(name)())


@pytest.mark.parametrize("law", LAWS_OF_SPACES, ids=named)
@pytest.mark.parametrize("changes", [tiny.ARGUMENTS, tiny.OPTIONS], ids=["defaults", "options"])
def test_a_tiny_space(changes, law):
    law(tiny.space(**changes))


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy(name, monkeypatch):
    monkeypatch.setattr(complexity, "SAMPLES", 8)
    contracts.strategy_trains_or_searches(name)
    contracts.strategy_picks_paths(name, tiny.space(divisions=("convnext+mbconv",)))
    for odd in (tiny.space(), tiny.space(types=("mbconv",)), spaces.load("mobilenetv3")()):
        contracts.strategy_picks_paths_or_says_why(name, odd)
        contracts.strategy_picks_paths_or_says_why(name, odd.alone(odd.largest))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe(name):
    contracts.recipe_names_what_exists(name)


@pytest.mark.parametrize("folder", [ops, recipes, spaces, strategies], ids=lambda folder: folder.__name__)
def test_an_unknown_name_is_one_line_with_the_known_ones(folder):
    with pytest.raises(ValueError, match=f"'nothing'; known: .*{folder.names()[0]}") as caught:
        folder.load("nothing")
    assert "\n" not in str(caught.value)
