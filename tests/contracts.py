"""Laws that every operation, space, strategy and recipe keeps; the tests run them over all that are found.

A law takes a name (or a space) and asserts; its docstring is the law.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from random import Random
from typing import Any

import torch
from torch import nn

from hnas import ops, recipes, spaces, strategies
from hnas.ops.slot import Slot
from hnas.recipes.schema import decode_recipe
from hnas.space import Arch, Choice, Option, Space
from hnas.supernet import Supernet
from hnas.training.step import SubnetPath

# The sizes an operation may be asked for, from smallest to largest.
SIZES: dict[str, tuple[Option, ...]] = {"kernel": (3, 5, 7), "expansion": (1, 2, 4), "heads": (1, 2, 3)}
MEMBERS = 6  # samples of a space that a law looks at


# --- operations -------------------------------------------------------------------------------------------------------


def operation(name: str) -> Space:
    """Return a space of one operation over its widths and sizes, as its only module ``op``."""
    taken = [size for size in inspect.signature(ops.load(name).build).parameters if size in SIZES]
    choices = {"width": Choice((8, 16)), **{size: Choice(SIZES[size]) for size in taken}}

    def build(arch: Any) -> nn.Module:
        width, sizes = arch["width"], {size: arch[size] for size in taken}
        built: nn.Module = ops.build(name, width, width, 1, act="relu", **sizes)
        return Slot({"op": built}, residual=False)

    def union() -> nn.Module:
        return build({key: choice.options[-1] for key, choice in choices.items()})

    return Space(name, {}, choices, build, union, lambda arch: ((int(str(arch["width"])), 6, 6),), lambda _: None)


def op_ends_in_out(name: str) -> None:
    """The last layer of an operation is called ``out`` and has weights to zero; or there is no layer at all."""
    op = ops.build(name, 8, 8, 1, act="relu", **_smallest_sizes(name))
    if not op.state_dict():
        assert not list(op.children())
        return
    last = list(dict(op.named_children()))[-1]
    assert last == "out"
    assert isinstance(op.get_submodule("out").weight, nn.Parameter)


def op_with_zero_out_adds_nothing(name: str) -> None:
    """In a residual slot an operation whose ``out`` is zero is exactly the identity, in training and evaluation."""
    op = ops.build(name, 8, 8, 1, act="relu", **_smallest_sizes(name))
    if not op.state_dict():
        return  # it has nothing to zero; spaces offer it in slots without a residual
    for parameter in op.get_submodule("out").parameters():
        nn.init.zeros_(parameter)
    slot, x = Slot({name: op}, residual=True), torch.randn(2, 8, 6, 6)
    for mode in (True, False):
        assert torch.equal(slot.train(mode)(x), x)


def op_twins_share_nothing(name: str) -> None:
    """A second operation on the meta device equals the first and shares no module, parameter or container with it."""
    with torch.device("meta"):
        first, second, *_ = (ops.build(name, 8, 8, 1, act="relu", **_smallest_sizes(name)) for _ in range(3))
        fresh = ops.load(name).build(8, 8, 1, act="relu", **_smallest_sizes(name))
    assert str(second) == str(fresh)
    assert {k: v.shape for k, v in second.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    parts = [part for net in (first, second) for part in (*net.modules(), *net.parameters(), *net.buffers())]
    assert len({id(part) for part in parts}) == len(parts) == 2 * (len(parts) // 2)
    held = [value for part in (*first.modules(), *second.modules()) for value in vars(part).values()]
    containers = [value for value in held if isinstance(value, dict | list | set)]
    assert len({id(value) for value in containers}) == len(containers)
    assert all(not isinstance(inner, nn.Module) for value in held if isinstance(value, list | tuple) for inner in value)


def op_smaller_is_a_slice_of_larger(name: str) -> None:
    """The larger operation with zeros outside the smaller one's slices computes the smaller one.

    Fewer heads, a smaller kernel, a smaller expansion and a smaller width, alone and together.
    """
    space = operation(name)
    supernet = Supernet(space)
    largest = space.largest
    cases = [space.changed(largest, choice, space.choices[choice].options[0]) for choice in largest]
    for smaller in (*cases, space.smallest):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in supernet.union.parameters():
                parameter.zero_()
            for part in supernet.view(smaller).values():
                part.copy_(torch.randn(part.shape, generator=generator))
        (shape,), (full,) = space.example(smaller), space.example(largest)
        x = torch.randn(2, *shape, generator=generator)
        wide = torch.cat([x, torch.zeros(2, full[0] - shape[0], *shape[1:])], 1)
        small, large = supernet(smaller, x), supernet(largest, wide)
        torch.testing.assert_close(large[:, : shape[0]], small, rtol=1e-4, atol=1e-4)
        assert not large[:, shape[0] :].any()


def _smallest_sizes(name: str) -> dict[str, Option]:
    taken = inspect.signature(ops.load(name).build).parameters
    return {size: options[0] for size, options in SIZES.items() if size in taken}


# --- spaces -----------------------------------------------------------------------------------------------------------


def members(space: Space) -> Iterator[Arch]:
    """Yield the ends of a space and some of its samples."""
    yield from (space.smallest, space.largest)
    yield from (space.sample(Random(seed)) for seed in range(MEMBERS))


def space_samples_members(space: Space) -> None:
    """Smallest, largest and every sample are members; the same seed draws the same one."""
    for arch in members(space):
        assert arch in space
        assert space.arch(arch) == arch
    assert space.sample(Random(3)) == space.sample(Random(3))


def space_neighbours_differ_in_one_choice(space: Space) -> None:
    """A neighbour is a member, and exactly one of the choices that are active in both differs."""
    for arch in members(space):
        for other in islice(space.neighbours(arch), 200):
            assert other in space
            assert len([name for name in arch if name in other and other[name] != arch[name]]) == 1


def space_without_never_admits(space: Space) -> None:
    """A space without an option has no member that takes the option, and keeps at least one member."""
    for name, choice in space.choices.items():
        if len(choice.options) == 1:
            continue
        for option in choice.options:
            less = space.without(name, option)
            assert 0 < less.size < space.size
            for arch in members(less):
                assert arch in less
                assert arch in space
                assert arch.get(name) != option
            assert not any(other.get(name) == option for other in islice(less.neighbours(less.largest), 20))


def space_survives_json(space: Space) -> None:
    """A space that goes through JSON has the same members, with removed options and with one member alone too."""
    shrunk = space
    for name, choice in space.choices.items():
        if len(choice.options) > 1:
            shrunk = shrunk.without(name, choice.options[-1])
    for kept in (space, shrunk, space.alone(space.smallest)):
        again = spaces.restore(json.loads(json.dumps(kept.to_json())))
        assert again.choices == kept.choices
        assert again.to_json() == kept.to_json()
        assert (again.size, again.smallest, again.largest) == (kept.size, kept.smallest, kept.largest)
    for arch in members(space):
        again_arch = space.arch(json.loads(json.dumps(arch.to_json())))
        assert (again_arch, again_arch.digest) == (arch, arch.digest)


def space_size_is_exact(space: Space) -> None:
    """``size`` is the number of distinct members, counted one by one (small spaces only)."""
    names, options = list(space.choices), [choice.options for choice in space.choices.values()]
    assert space.size == len({space.arch(dict(zip(names, taken, strict=True))) for taken in product(*options)})


def space_members_are_slices_of_the_union(space: Space) -> None:
    """Every parameter of every member is found in the union, by name, type and size."""
    with torch.device("meta"):
        supernet = Supernet(replace(space, initialise=lambda _: None))
        for arch in islice(members(space), 4):
            net, view = supernet.skeleton(arch), supernet.view(arch)
            assert {name: p.shape for name, p in net.named_parameters()} == {n: t.shape for n, t in view.items()}
            net.train()(*(torch.empty(2, *shape) for shape in space.example(arch)))


# --- strategies and recipes -------------------------------------------------------------------------------------------


def strategy_trains_or_searches(name: str) -> None:
    """A strategy has ``pick`` or ``search``."""
    assert {"pick", "search"} & set(vars(strategies.load(name)))


def strategy_picks_paths(name: str, space: Space) -> None:
    """A step, where the strategy trains, is a non-empty tuple of paths, the same from the same seed.

    At any share of the schedule, with its architecture parameters and without: a path is a member without gates, or a
    relaxed arch with gates for the slots that hold several types and no other; rivals are members; weights are
    positive; whoever teaches is not the last.
    """
    strategy = strategies.load(name)
    if not hasattr(strategy, "pick"):
        return
    extras = [{}, {"extra": strategy.extra(space)}] if hasattr(strategy, "extra") else [{}]
    for seed, options in product(range(MEMBERS), extras):
        progress = seed / MEMBERS
        picked = strategy.pick(space, Random(seed), progress, **options)
        assert isinstance(picked, tuple)
        assert picked
        for path in picked:
            _path_belongs_to(path, space)
        assert len(picked) == 1 or not picked[-1].teaches
        for path, again in zip(picked, strategy.pick(space, Random(seed), progress, **options), strict=True):
            assert replace(path, gates=None) == replace(again, gates=None)
            assert (path.gates or {}).keys() == (again.gates or {}).keys()
            assert all(torch.equal(gate, again.gates[slot]) for slot, gate in (path.gates or {}).items())


def _path_belongs_to(path: SubnetPath, space: Space) -> None:
    several = {slot for slot in space.slots if isinstance(path.arch.get(f"{slot}.op"), tuple)}
    assert set(path.gates or {}) == several
    assert several or path.arch in space
    assert all(rival in space for rival in path.rivals)
    assert path.weight > 0


def strategy_picks_paths_or_says_why(name: str, space: Space) -> None:
    """A strategy picks paths in a space with little to choose from, or raises an error of one line."""
    said = "works"
    try:
        strategy_picks_paths(name, space)
    except ValueError as error:
        said = str(error)
    assert said
    assert "\n" not in said


def recipe_names_what_exists(name: str) -> None:
    """A recipe decodes, its strategy trains, and its space takes its arguments."""
    recipe = recipes.load(name)
    assert hasattr(strategies.load(decode_recipe(recipe).train.strategy), "pick")
    arguments = dict(recipe.space)
    space = spaces.load(arguments.pop("name"))(**arguments)
    assert space.largest in space
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
