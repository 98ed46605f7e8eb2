"""Search spaces, choices and architectures as data."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas import spaces
from hnas.sampling.draws import draw_exclusive
from hnas.space import Arch, Choice, Space
from hnas.strategies.sandwich import pick
from tests import contracts
from tests.hnas import tiny


def plain(choices: dict[str, Choice]) -> Space:
    return Space("plain", {}, choices, None, None, lambda _: (), lambda _: None)


@st.composite
def trees(draw) -> Space:
    """Draw spaces whose choices depend on earlier or later choices."""
    n = draw(st.integers(1, 5))
    sizes = [draw(st.integers(1, 3)) for _ in range(n)]
    order = draw(st.permutations(range(n)))
    choices = {}
    for place, k in enumerate(order):
        when = None
        if place and draw(st.booleans()):
            parent = order[draw(st.integers(0, place - 1))]
            woken = draw(st.sets(st.integers(0, sizes[parent] - 1), min_size=1))
            when = (f"c{parent}", tuple(sorted(woken)))
        choices[f"c{k}"] = Choice(tuple(range(sizes[k])), when)
    return plain({name: choices[name] for name in draw(st.permutations(sorted(choices)))})


@given(trees())
def test_size_counts_members_one_by_one(space):
    contracts.space_size_is_exact(space)


@given(trees())
def test_laws_of_data_hold_whatever_depends_on_what(space):
    contracts.space_samples_members(space)
    contracts.space_neighbours_differ_in_one_choice(space)
    contracts.space_without_never_admits(space)


def test_size_of_a_hybrid_space_is_exact():
    small = {"depths": ((1, 2),), "widths": ((8,),), "strides": (1,), "types": ("identity", "attention", "mbconv")}
    contracts.space_size_is_exact(tiny.space(**small))


def test_equal_networks_are_equal_archs():
    space = tiny.space()
    arch = space.smallest
    padded = {**arch, "stages.0.blocks.1.op": "mbconv", "stages.0.blocks.0.attention.heads": 2}
    known = {name: option for name, option in padded.items() if name in space.choices}
    assert space.arch(known) == arch
    assert hash(space.arch(known)) == hash(arch)


def test_an_option_that_is_equal_but_of_another_type_has_the_same_digest():
    space = tiny.space(expansions=(1, 2.0))
    loose = {name: float(v) if isinstance(v, int) else v for name, v in space.largest.items()}
    assert space.arch(loose).digest == space.largest.digest


def test_options_that_are_tuples_survive_json():
    space = plain({"c": Choice((("a",), ("a", "b")))})
    assert space.arch(json.loads(json.dumps(space.largest.to_json()))) == space.largest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages.0.depth": 7}, "stages.0.depth=7 is not an option of this space; options: 1, 2"),
        ({"stages.9.depth": 1}, "'stages.9.depth' is not a choice of space 'hybrid_vision'; known: resolution, "),
    ],
)
def test_a_foreign_choice_or_option_is_one_line(change, message):
    space = tiny.space()
    with pytest.raises(ValueError, match=message):
        space.arch({**space.smallest, **change})
    assert Arch({**space.smallest, **change}) not in space


def test_a_missing_choice_is_one_line():
    space = tiny.space()
    chosen = {name: option for name, option in space.smallest.items() if name != "resolution"}
    with pytest.raises(ValueError, match="no option for 'resolution'; options: 8, 12"):
        space.arch(chosen)


def test_the_last_option_stays():
    space = tiny.space(resolutions=(8,))
    with pytest.raises(ValueError, match="8 is the last option of 'resolution'"):
        space.without("resolution", 8)


@pytest.mark.parametrize(
    "arguments",
    [
        {"types": ("conv",)},
        {"widths": ((9,), (16,))},
        {"depths": ((1,),)},
        {"norm": "group"},
        {"activations": ("tanh",)},
        {"types": ("attention", "identity")},
    ],
)
def test_impossible_arguments_of_a_space_are_one_line(arguments):
    with pytest.raises(ValueError) as caught:
        tiny.space(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"name": "hybrid_vision", "arguments": {"depth": 3}, "options": {}},
        {"name": "hybrid_vision", "arguments": {}, "options": {}},
        {"name": "hybrid_vision", "arguments": {}, "options": [1]},
        {"name": "hybrid_vision", "arguments": {}, "options": {"resolution": 3}},
        {"name": "hybrid_vision", "arguments": {}, "options": {"resolution": [20, 24]}, "lone": True},
        {"name": "elsewhere", "arguments": {}, "options": {}},
    ],
)
def test_a_malformed_record_of_a_space_is_one_line(record):
    with pytest.raises(ValueError) as caught:
        spaces.restore(record)
    assert "\n" not in str(caught.value)


def test_the_sandwich_has_both_ends_and_types_that_differ_in_every_slot():
    space = tiny.space()
    for seed in range(10):
        first, *paths, last = [path.arch for path in pick(space, Random(seed))]
        assert (first, last) == (space.largest, space.smallest)
        assert paths == draw_exclusive(space, Random(seed), 3)
        for name in (n for n in space.choices if n.endswith(".op")):
            taken = [arch[name] for arch in paths if name in arch]
            if len(taken) == 3:
                assert len(set(taken)) == min(3, len(space.choices[name].options))
