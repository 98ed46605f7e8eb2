"""Choices, architectures and the spaces they span.

Everything here is plain data: a search sees names and options, never a layer. ``build`` and ``union`` are the
only bridges to torch, and they are called by the supernet alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Option = int | float | str | tuple[str, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One decision among ``options``, which run from smallest to largest.

    when: (another choice, those of its options that activate this one); None: always active.
    """

    options: tuple[Option, ...]
    when: tuple[str, tuple[Option, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("a choice has no options; give at least one")
        if len(set(self.options)) != len(self.options):
            raise ValueError(f"a choice repeats an option: {self.options}")


class Arch(Mapping[str, Option]):
    """An architecture: the option of every active choice; immutable, hashable, in the order of its space."""

    __slots__ = ("_chosen", "_hash")

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self._chosen: dict[str, Option] = {name: _option(value) for name, value in chosen.items()}
        self._hash = hash(frozenset(self._chosen.items()))

    def __getitem__(self, name: str) -> Option:
        return self._chosen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self._chosen == other._chosen

    def __repr__(self) -> str:
        return f"Arch({self._chosen})"

    def to_json(self) -> dict[str, Any]:
        """The chosen options as a JSON object."""
        return dict(self._chosen)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this architecture on every machine."""
        text = json.dumps(self._chosen, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Space:
    """A set of architectures and how one of them becomes a module.

    name, arguments: the function of ``hnas.spaces`` and its arguments that make this space again.
    choices: in the order in which a person reads the network.
    build: a member -> its static module (called under ``torch.device("meta")`` for skeletons).
    union: -> the module that owns every weight at its largest; it is not a member.
    example: a member -> the shapes of its inputs, without the batch.
    initialise: sets the weights of a union, or of a member that is trained alone, in place.
    lone: the one member owns its weights, as ``alone`` makes it.
    """

    name: str
    arguments: Mapping[str, Any]
    choices: Mapping[str, Choice]
    build: Callable[[Arch], nn.Module]
    union: Callable[[], nn.Module]
    example: Callable[[Arch], tuple[Shape, ...]]
    initialise: Callable[[nn.Module], None]
    lone: bool = False

    def __post_init__(self) -> None:
        for name, choice in self.choices.items():
            if choice.when and choice.when[0] not in self.choices:
                raise ValueError(f"choice {name!r} depends on {choice.when[0]!r}, which is no choice of this space")

    def arch(self, chosen: Mapping[str, Any]) -> Arch:
        """The member with these options; inactive choices are dropped, missing or unknown options are refused."""
        kept: dict[str, Option] = {}
        for name in self.choices:
            if not self._active(name, chosen):
                continue
            if name not in chosen:
                raise ValueError(f"no option for {name!r}; options: {_listed(self.choices[name].options)}")
            options = self.choices[name].options
            if _option(chosen[name]) not in options:
                raise ValueError(f"{name}={chosen[name]!r} is not an option of this space; options: {_listed(options)}")
            # The space's own object: 1 and 1.0 are one option and must have one digest.
            kept[name] = options[options.index(_option(chosen[name]))]
        unknown = [name for name in chosen if name not in self.choices]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no choice of the space {self.name!r}; known: {_listed(self.choices)}")
        return Arch(kept)

    def __contains__(self, arch: object) -> bool:
        if not isinstance(arch, Arch):
            return False
        try:
            return self.arch(arch) == arch
        except ValueError:
            return False

    @property
    def smallest(self) -> Arch:
        """The member that takes the first option everywhere."""
        return self._fill(lambda _, choice: choice.options[0])

    @property
    def largest(self) -> Arch:
        """The member that takes the last option everywhere."""
        return self._fill(lambda _, choice: choice.options[-1])

    def sample(self, rng: Random) -> Arch:
        """A member whose every active choice is drawn uniformly and independently."""
        return self._fill(lambda _, choice: rng.choice(choice.options))

    def changed(self, arch: Mapping[str, Option], name: str, option: Option) -> Arch:
        """``arch`` with one active choice set to ``option``; choices that this wakes take their smallest option."""
        wanted = {**arch, name: option}
        return self._fill(lambda key, choice: wanted.get(key, choice.options[0]))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The paths of the places where types compete: ``<slot>.op`` is the choice of a slot's type."""
        return tuple(name.removesuffix(".op") for name in self.choices if name.endswith(".op"))

    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Every member that differs from ``arch`` in one active choice."""
        for name in arch:
            for option in self.choices[name].options:
                if option != arch[name]:
                    yield self.changed(arch, name, option)

    def without(self, name: str, option: Option) -> Space:
        """The space less one option; never empties a choice."""
        if name not in self.choices or option not in self.choices[name].options:
            raise ValueError(f"{name}={option!r} is not an option of this space")
        choice = self.choices[name]
        left = tuple(o for o in choice.options if o != option)
        if not left:
            raise ValueError(f"{option!r} is the last option of {name!r}; removing it would empty the space")
        return replace(self, choices={**self.choices, name: replace(choice, options=left)})

    def alone(self, arch: Arch) -> Space:
        """The space whose one member is ``arch``: its supernet is that network, so it trains by the same code."""
        kept = {name: replace(choice, options=(arch[name],)) for name, choice in self.choices.items() if name in arch}
        return replace(self, choices=kept, union=lambda: self.build(arch), lone=True)

    @cached_property
    def size(self) -> int:
        """How many members there are, counted exactly along the ``when`` tree."""
        children: dict[str, list[str]] = {name: [] for name in self.choices}
        for name, choice in self.choices.items():
            if choice.when:
                children[choice.when[0]].append(name)

        def count(name: str) -> int:
            total = 0
            for option in self.choices[name].options:
                woken = [c for c in children[name] if option in self._when(c)]
                total += math.prod(count(child) for child in woken)
            return total

        return math.prod(count(name) for name, choice in self.choices.items() if choice.when is None)

    def to_json(self) -> dict[str, Any]:
        """What ``hnas.spaces.restore`` needs to make this space again, shrunken choices included."""
        options = {name: list(choice.options) for name, choice in self.choices.items()}
        lone = {"lone": True} if self.lone else {}
        return {"name": self.name, "arguments": dict(self.arguments), "options": options, **lone}

    def _when(self, name: str) -> tuple[Option, ...]:
        when = self.choices[name].when
        return when[1] if when else ()

    def _active(self, name: str, chosen: Mapping[str, Any]) -> bool:
        when = self.choices[name].when
        return when is None or (self._active(when[0], chosen) and chosen.get(when[0]) in when[1])

    def _fill(self, pick: Callable[[str, Choice], Option]) -> Arch:
        """A member with options from ``pick``; parents are decided before their children whatever the order."""
        chosen: dict[str, Option] = {}

        def active(name: str) -> bool:
            when = self.choices[name].when
            if when is None:
                return True
            if when[0] not in chosen and active(when[0]):
                chosen[when[0]] = pick(when[0], self.choices[when[0]])
            return when[0] in chosen and chosen[when[0]] in when[1]

        for name, choice in self.choices.items():
            if name not in chosen and active(name):
                chosen[name] = pick(name, choice)
        return Arch({name: chosen[name] for name in self.choices if name in chosen})


def _option(value: Any) -> Any:
    """``value`` as an option: JSON has lists where options are tuples."""
    return tuple(value) if isinstance(value, list) else value


def _listed(names: Mapping[str, object] | tuple[object, ...]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
