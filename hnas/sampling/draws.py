"""Define the draws that strategies share: members whose types differ, and slots that hold several types at once.

The choice ``<slot>.op`` is the type of a slot. Two names have a meaning everywhere: "identity" is a slot without a
branch, and "a+b" is a slot whose channels are divided among the types a and b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from hnas.space import Arch, Choice, Option, Space

IDENTITY = "identity"
DIVIDED = "+"

_Logits = Mapping[str, Tensor | Sequence[float]]
_SizeRule = Callable[[str, Choice, Random], Option]


def draw_uniform(name: str, choice: Choice, rng: Random) -> Option:
    """Return a uniformly random option of a choice."""
    del name
    return rng.choice(choice.options)


def draw_every(space: Space, rng: Random) -> dict[str, Option]:
    """Return a uniformly random option of every choice, also of those that the others make inactive."""
    return {name: draw_uniform(name, choice, rng) for name, choice in space.choices.items()}


def take_smallest(name: str, choice: Choice, rng: Random) -> Option:
    """Return the first option of a choice."""
    del name, rng
    return choice.options[0]


def draw_exclusive(
    space: Space, rng: Random, paths: int, logits: _Logits | None = None, size: _SizeRule | None = None
) -> list[Arch]:
    """Return ``paths`` members that differ in the type of every slot, if the slot has enough types.

    The types of a slot are put in a random order. Path k takes the k-th type. After the last type the order repeats.

    logits: slot -> one logit for each option; None: none.
        1. Without logits every order is equally likely: strict fairness (FairNAS, arXiv 1907.01845) within one step.
        2. With logits the order is a draw without replacement by softmax(logits): Gumbel-top-k (arXiv 1903.06059). The
           first path is then a plain draw.
    size: (name, choice, rng) -> option, for choices that are not the type of a slot; None: ``draw_uniform``.

    Raises:
        ValueError: a slot has no logits, or a wrong number of them.
    """
    orders = {}
    for slot in space.slots:
        if logits is not None and slot not in logits:
            raise ValueError(f"there are no logits for {slot!r}; give one for each of its types")
        orders[f"{slot}.op"] = draw_order(
            space.choices[f"{slot}.op"].options, rng, None if logits is None else logits[slot]
        )
    drawn = []
    for k in range(paths):
        chosen = {name: (size or draw_uniform)(name, c, rng) for name, c in space.choices.items() if name not in orders}
        drawn.append(space.arch({**chosen, **{name: kinds[k % len(kinds)] for name, kinds in orders.items()}}))
    return drawn


def draw_order(options: Sequence[Option], rng: Random, logits: Tensor | Sequence[float] | None = None) -> list[Option]:
    """Return all of ``options`` in random order: uniform, or drawn one by one by softmax(``logits``).

    Raises:
        ValueError: the number of logits is not the number of options.
    """
    if logits is None:  # case 1 of ``draw_exclusive``
        return rng.sample(options, len(options))
    if len(logits) != len(options):
        raise ValueError(f"{len(logits)} logits for {len(options)} types; give one for each")
    keys = [float(logit) - math.log(-math.log(rng.uniform(1e-9, 1 - 1e-9))) for logit in logits]
    return [options[i] for i in sorted(range(len(options)), key=lambda i: -keys[i])]


def slot_types(space: Space, slot: str) -> tuple[str, ...]:
    """Return the types of a slot that can be active together: all options that are not divided.

    If all options are divided, return the last option.
    """
    options = tuple(str(option) for option in space.choices[f"{slot}.op"].options)
    return tuple(option for option in options if DIVIDED not in option) or options[-1:]


def most_types(space: Space) -> int:
    """Return the largest number of options of a slot, divided ones too; at least 1. ``draw_exclusive`` draws them."""
    return max((len(space.choices[f"{slot}.op"].options) for slot in space.slots), default=1)


def keep_types(space: Space, kept: Mapping[str, Sequence[Option]]) -> Space:
    """Return the space whose slots offer only the types ``kept``: slot -> types.

    Raises:
        ValueError: a slot would have no type.
    """
    if empty := [slot for slot, options in kept.items() if not options]:
        raise ValueError(f"no type is left for {empty[0]!r}; a slot keeps at least one")
    less = {f"{slot}.op": replace(space.choices[f"{slot}.op"], options=tuple(o)) for slot, o in kept.items()}
    return replace(space, choices={**space.choices, **less})


def relax(
    space: Space, arch: Mapping[str, Option], types: Mapping[str, Sequence[str]], *, single: bool = False
) -> Arch:
    """Return ``arch`` with several types active together in the slots of ``types``: slot -> types.

    single: a slot with one type stays relaxed, so that a gate scales its only branch (False).

    The result is a member only if each slot has one type. Slots that are absent in ``arch`` stay absent. The types are
    in the order of the slot's options. Sizes that ``arch`` does not give (of added branches) are the largest.

    Raises:
        ValueError: a type is not an option of its slot.
    """
    together: dict[str, tuple[str, ...]] = {}
    for slot, wanted in types.items():
        options = space.choices[f"{slot}.op"].options
        if unknown := [kind for kind in wanted if kind not in options]:
            raise ValueError(f"{unknown[0]!r} is not a type of {slot!r}; known: {', '.join(map(str, options))}")
        together[f"{slot}.op"] = tuple(str(option) for option in options if option in wanted)
    chosen: dict[str, Any] = {}

    def active(name: str) -> bool:
        when = space.choices[name].when
        if when is None:
            return True
        return active(when[0]) and bool(set(together.get(when[0], (chosen.get(when[0]),))) & set(when[1]))

    for name in _parents_first(space):
        if active(name):
            several = together.get(name, ())
            plain = several[0] if several else arch.get(name, space.choices[name].options[-1])
            chosen[name] = several if len(several) > (0 if single else 1) else plain
    return Arch({name: chosen[name] for name in space.choices if name in chosen})


def branch_gates(space: Space, arch: Arch, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gates of every relaxed slot of ``arch``: slot -> [branches].

    weights: slot -> one weight for each of ``slot_types(space, slot)``. The weight of the identity scales no branch.
        Gradients reach it only if the weights depend on each other, as after a softmax.
    """
    found = {}
    for slot, branches in _branches(space, arch).items():
        known = slot_types(space, slot)
        found[slot] = weights[slot][[known.index(kind) for kind in branches]]
    return found


def even_gates(space: Space, arch: Arch) -> dict[str, Tensor]:
    """Return constant gates m**-0.5 for the m branches of every relaxed slot: a mean with the spread of one branch."""
    branches = _branches(space, arch)
    return {slot: torch.full((len(kinds),), max(len(kinds), 1) ** -0.5) for slot, kinds in branches.items()}


def new_logits(space: Space) -> dict[str, nn.Parameter]:
    """Return new architecture logits: slot -> [types], all zero."""
    return {slot: nn.Parameter(torch.zeros(len(slot_types(space, slot)))) for slot in space.slots}


def logits_of(space: Space, slot: str, extra: Mapping[str, Tensor] | None) -> Tensor:
    """Return the logits [types] of a slot in ``extra``; zeros if ``extra`` is None.

    extra: the result of ``new_logits``.

    Raises:
        ValueError: ``extra`` has no logits for the slot, or a wrong number of them, or one that is not finite.
    """
    known = slot_types(space, slot)
    if extra is None:
        return torch.zeros(len(known))
    if slot not in extra or len(extra[slot]) != len(known):
        raise ValueError(f"the architecture parameters are not those of {slot!r}; make them with extra(space)")
    if not bool(torch.isfinite(extra[slot]).all()):
        raise ValueError(f"a logit of {slot!r} is not finite; go back to the last good checkpoint")
    return extra[slot]


def follow_space(extra: dict[str, nn.Parameter], before: Space, after: Space) -> None:
    """Change the logits ``extra`` of the space ``before`` to those of the space ``after``, in place.

    A type that stays keeps its logit. A restored type begins at the mean of the logits that stayed.
    """
    for slot, logits in extra.items():
        known = dict(zip(slot_types(before, slot), logits.tolist(), strict=True))
        kept = [known.get(kind) for kind in slot_types(after, slot)]
        stayed = [logit for logit in kept if logit is not None]
        mean = sum(stayed) / max(1, len(stayed))
        extra[slot] = nn.Parameter(torch.tensor([mean if logit is None else logit for logit in kept]))


def _branches(space: Space, arch: Arch) -> dict[str, tuple[str, ...]]:
    """Return the types that are branches, for every relaxed slot."""
    several = {slot: arch.get(f"{slot}.op") for slot in space.slots}
    return {s: tuple(k for k in kinds if k != IDENTITY) for s, kinds in several.items() if isinstance(kinds, tuple)}


def _parents_first(space: Space) -> list[str]:
    """Return the names of all choices, each after the choice that activates it."""

    def depth(name: str) -> int:
        when = space.choices[name].when
        return 0 if when is None else 1 + depth(when[0])

    return sorted(space.choices, key=depth)
