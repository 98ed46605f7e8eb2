"""Search spaces, their choices and their architectures, as plain data.

``Space(name, arguments, choices, build, union, example, initialise).sample(Random(0))`` returns an ``Arch``.

A search reads the names and options of choices, and never a layer. Only ``build`` and ``union`` make torch modules.
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
    """One decision of an architecture.

    options: the possible values, from smallest to largest.
    when: (name of another choice, some of its options). This choice is active only while the other choice is active
        and has one of these options. None (default): this choice is always active.

    Raises:
        ValueError: there is no option, or an option is repeated.

    Example: ``Choice((3, 5, 7), when=("blocks.1.op", ("mbconv",)))``
    """

    options: tuple[Option, ...]
    when: tuple[str, tuple[Option, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("a choice has no options; give at least one")
        if len(set(self.options)) != len(self.options):
            raise ValueError(f"a choice repeats an option: {self.options}")


class Arch(Mapping[str, Option]):
    """An architecture: the option of every active choice, in the order of its space. Immutable and hashable.

    Example: ``Arch({"depth": 2, "width": 16})["width"]`` is 16.
    """

    __slots__ = ("_chosen", "_hash")

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self._chosen: dict[str, Option] = {name: _option(value) for name, value in chosen.items()}
        self._hash = hash(frozenset(self._chosen.items()))

    def __getitem__(self, name: str) -> Option:
        return self._chosen[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the option of the choice ``name``; ``default`` if it is not active. Quicker than that of Mapping."""
        return self._chosen.get(name, default)

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
        """Return the chosen options as a JSON object."""
        return dict(self._chosen)

    @property
    def digest(self) -> str:
        """Return twelve hex digits that identify this architecture on every machine."""
        text = json.dumps(self._chosen, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Space:
    """A set of architectures (its members), and the functions that build their modules.

    name: the function of ``hnas.spaces`` that makes this space.
    arguments: the arguments of that function, as JSON values.
    choices: the choices by name, from the input of the network to its output.
    build: returns the static module of a member; called under ``torch.device("meta")`` for skeletons.
    union: returns the module with every branch at its largest size; the union is not a member.
    example: returns the shapes of the inputs of a member, without the batch axis.
    initialise: sets the weights of a union, or of a member that is trained alone, in place.
    lone: true for a space from ``alone``: the only member is also the union.
    deployed: returns what is deployed of a member, and the shapes of its inputs: one step of a recurrent network, with
        the state as input and output. None (default): the member itself.

    Raises:
        ValueError: a choice depends on a choice that does not exist.

    Example: ``spaces.load("hybrid_vision")(classes=10, channels=3)`` returns a space.
    """

    name: str
    arguments: Mapping[str, Any]
    choices: Mapping[str, Choice]
    build: Callable[[Arch], nn.Module]
    union: Callable[[], nn.Module]
    example: Callable[[Arch], tuple[Shape, ...]]
    initialise: Callable[[nn.Module], None]
    lone: bool = False
    deployed: Callable[[nn.Module], tuple[nn.Module, tuple[Shape, ...]]] | None = None

    def __post_init__(self) -> None:
        for name, choice in self.choices.items():
            if choice.when and choice.when[0] not in self.choices:
                raise ValueError(f"choice {name!r} depends on {choice.when[0]!r}, which is not a choice of this space")

    def arch(self, chosen: Mapping[str, Any]) -> Arch:
        """Return the member with these options, without the inactive choices.

        Raises:
            ValueError: an active choice has no option or an unknown one, or a choice is unknown.
        """
        chosen = dict(chosen)
        kept: dict[str, Option] = {}
        for name in self._active(chosen):
            options = self.choices[name].options
            if name not in chosen:
                raise ValueError(f"no option for {name!r}; options: {_listed(options)}")
            option = _option(chosen[name])
            if option not in options:
                raise ValueError(f"{name}={chosen[name]!r} is not an option of this space; options: {_listed(options)}")
            # Keep the option of the space, not the given value: 1 and 1.0 are equal and must have the same digest.
            kept[name] = options[options.index(option)]
        unknown = [name for name in chosen if name not in self.choices]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a choice of space {self.name!r}; known: {_listed(self.choices)}")
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
        """Return the member that takes the first option of every choice."""
        return self._fill(lambda _, choice: choice.options[0])

    @property
    def largest(self) -> Arch:
        """Return the member that takes the last option of every choice."""
        return self._fill(lambda _, choice: choice.options[-1])

    def sample(self, rng: Random) -> Arch:
        """Return a member; each active choice is drawn uniformly and independently."""
        return self._fill(lambda _, choice: rng.choice(choice.options))

    def changed(self, arch: Mapping[str, Option], name: str, option: Option) -> Arch:
        """Return ``arch`` with the active choice ``name`` set to ``option``.

        Choices that become active take their first option. Choices that become inactive are left out.
        """
        wanted = {**arch, name: option}
        return self._fill(lambda key, choice: wanted.get(key, choice.options[0]))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Return the paths of all slots: the places where operation types compete.

        The choice ``<slot>.op`` is the type of a slot.
        """
        return tuple(name.removesuffix(".op") for name in self.choices if name.endswith(".op"))

    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Yield every member that differs from ``arch`` in one active choice."""
        for name in arch:
            for option in self.choices[name].options:
                if option != arch[name]:
                    yield self.changed(arch, name, option)

    def without(self, name: str, option: Option) -> Space:
        """Return the space without one option.

        Raises:
            ValueError: the option is unknown, or it is the last one of its choice.
        """
        if name not in self.choices or option not in self.choices[name].options:
            raise ValueError(f"{name}={option!r} is not an option of this space")
        choice = self.choices[name]
        left = tuple(o for o in choice.options if o != option)
        if not left:
            raise ValueError(f"{option!r} is the last option of {name!r}; removing it would empty the space")
        return replace(self, choices={**self.choices, name: replace(choice, options=left)})

    def alone(self, arch: Arch) -> Space:
        """Return the space whose only member is ``arch``.

        The supernet of this space is the network of ``arch`` itself, so the training loop of supernets also trains it.
        """
        kept = {name: replace(choice, options=(arch[name],)) for name, choice in self.choices.items() if name in arch}
        return replace(self, choices=kept, union=lambda: self.build(arch), lone=True)

    @cached_property
    def size(self) -> int:
        """Return the exact number of members. They are counted by the dependencies in ``when``, not listed."""
        children: dict[str, list[str]] = {name: [] for name in self.choices}
        for name, choice in self.choices.items():
            if choice.when:
                children[choice.when[0]].append(name)

        def count(name: str) -> int:
            total = 0
            for option in self.choices[name].options:
                activated = [c for c in children[name] if option in self._when(c)]
                total += math.prod(count(child) for child in activated)
            return total

        return math.prod(count(name) for name, choice in self.choices.items() if choice.when is None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which ``hnas.spaces.restore`` makes this space again, without removed options."""
        options = {name: list(choice.options) for name, choice in self.choices.items()}
        lone = {"lone": True} if self.lone else {}
        return {"name": self.name, "arguments": dict(self.arguments), "options": options, **lone}

    def _when(self, name: str) -> tuple[Option, ...]:
        when = self.choices[name].when
        return when[1] if when else ()

    def _active(self, chosen: Mapping[str, Any]) -> list[str]:
        """Return the names of the active choices in their order."""
        known: dict[str, bool] = {}

        def active(name: str) -> bool:
            if name not in known:
                when = self.choices[name].when
                known[name] = when is None or (active(when[0]) and chosen.get(when[0]) in when[1])
            return known[name]

        return [name for name in self.choices if active(name)]

    def _fill(self, pick: Callable[[str, Choice], Option]) -> Arch:
        """Return a member with options from ``pick``. A choice is decided after the choice that it depends on."""
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
    """Return ``value`` as an option: JSON has lists where options are tuples."""
    return tuple(value) if isinstance(value, list) else value


def _listed(names: Mapping[str, object] | tuple[object, ...]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
