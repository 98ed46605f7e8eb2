"""Count the work of architectures by class of kernel: ``Work(space, supernet.skeleton)(arch)``.

A search asks for thousands of architectures, and a trace of one takes some ten milliseconds. So the kernels of a slot
are counted once for each of its options and sizes, and those outside of the slots once for each outer choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from torch import nn

from hnas.cost.kernels import Kernel
from hnas.cost.roofline import trace, trace_parts
from hnas.space import Arch, Option, Space

_Amounts = Mapping[str, float]  # class of kernel -> work
LAUNCHES = "launches"
_MOST = 4096  # combinations of choices outside of the slots; one network of each may be traced
_CHECKED = 4  # members that are traced to see whether slots are independent
_LAUNCH = 1e4  # the work of a launch: on a CPU it takes about as long as so many operations
_T = TypeVar("_T")
_Choices = tuple[tuple[str, Option], ...]


class NotSeparable(ValueError):
    """The kernels of a space cannot be counted slot by slot."""


@dataclass(frozen=True)
class _Outer:
    """Hold what all architectures with the same choices outside of the slots have in common.

    amounts: the work outside of the slots.
    sizes: slot -> shapes of its input and its output, and its kind of module.
    words: the options that are no numbers, such as an activation. They may change a slot at equal shapes.
    """

    amounts: _Amounts
    sizes: Mapping[str, Any]
    words: tuple[Option, ...]


class Work:
    """The work of each class of kernel of an architecture, for one example.

    A class is a kind of kernel (``hnas.cost.kernels``), and for a convolution its side: "depthwise 7". The work is the
    number of floating point operations, or of values that are moved where a kernel computes nothing. The class
    "launches" is the number of kernels, times 10,000.

    skeleton: returns the module of an architecture on the meta device, such as ``Supernet.skeleton``.

    Example:
        Work(space, supernet.skeleton)(space.largest)["depthwise 7"]

    Raises:
        NotSeparable: the slots of the space are not modules that are called once, those outside of slots are too many,
            or choices in a slot act outside of it.
    """

    def __init__(self, space: Space, skeleton: Callable[[Arch], nn.Module]) -> None:
        self.space, self._skeleton = space, skeleton
        places = _places(space)
        self._of = {
            name: next((each for each in places if name.startswith(f"{each}.")), None) for name in space.choices
        }
        outside = math.prod(len(space.choices[name].options) for name, place in self._of.items() if place is None)
        if outside > _MOST:
            raise NotSeparable(f"{space.name}: {outside} combinations of choices outside of its slots; {_MOST} at most")
        self._outers: dict[_Choices, _Outer] = {}
        self._slots: dict[Any, _Amounts] = {}
        self._check()

    def _check(self) -> None:
        """Raise NotSeparable if choices of a slot act outside of its module, in some members that differ in them."""
        self(self.space.smallest)  # whose maps may be too small for a trace
        rng, choices = Random(0), self.space.choices
        for _ in range(_CHECKED):
            drawn = {
                name: choice.options[-1] if self._of[name] is None else rng.choice(choice.options)
                for name, choice in choices.items()
            }
            arch = self.space.arch(drawn)
            inner, rest = self._split(arch)
            known = self._outers.get(rest)
            if known is not None and known != self._trace(arch, inner, rest):
                raise NotSeparable(f"{self.space.name}: choices in a slot change the network outside of it")
            self(arch)

    def __call__(self, arch: Arch) -> _Amounts:
        """Return class -> work."""
        inner, rest = self._split(arch)
        outer = self._outers.get(rest) or self._trace(arch, inner, rest)
        keys = _keys(inner, outer)
        for slot, key in zip(inner, keys, strict=True):
            if key not in self._slots:
                module, (_, shape, _) = self._skeleton(arch).get_submodule(slot), outer.sizes[slot]
                self._slots[key] = amounts(self._traced(trace, module, shape[1:]))
        return _sum([outer.amounts, *(self._slots[key] for key in keys)])

    def _split(self, arch: Arch) -> tuple[dict[str, _Choices], _Choices]:
        """Return the choices of each slot that is there, by names within the slot, and those outside of all slots."""
        inner: dict[str, _Choices] = {}
        rest: _Choices = ()
        for name, option in arch.items():
            place = self._of[name]
            if place is None:
                rest = (*rest, (name, option))
            else:
                inner[place] = (*inner.get(place, ()), (name.removeprefix(place), option))
        return inner, rest

    def _trace(self, arch: Arch, inner: Mapping[str, _Choices], rest: _Choices) -> _Outer:
        """Trace an architecture, and keep what was counted in each slot and outside of them."""
        net, shapes = self._skeleton(arch), self.space.example(arch)
        outside, parts = self._traced(trace_parts, net, tuple(inner), *shapes)
        words = tuple(option for _, option in rest if isinstance(option, str))
        outer = _Outer(amounts(outside), {slot: part.sizes for slot, part in parts.items()}, words)
        self._outers[rest] = outer
        self._slots |= dict(zip(_keys(inner, outer), (amounts(parts[slot].kernels) for slot in inner), strict=True))
        return outer

    def _traced(self, trace_net: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return trace_net(*arguments)
        except (AttributeError, IndexError, ValueError) as error:
            raise NotSeparable(f"{self.space.name}: {error}") from error


def _places(space: Space) -> tuple[str, ...]:
    """Return the paths of the modules whose kernels are counted apart: slots, or else the smallest with choices."""
    found = {name.rpartition(".")[0] for name in space.choices} - {""}
    return space.slots or tuple(path for path in found if not any(other.startswith(f"{path}.") for other in found))


def _keys(inner: Mapping[str, _Choices], outer: _Outer) -> list[Any]:
    return [(outer.sizes[slot], outer.words, chosen) for slot, chosen in inner.items()]


def amounts(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Return class of kernel -> work."""
    found = {LAUNCHES: _LAUNCH * len(kernels)}
    for kernel in kernels:
        name = f"{kernel.kind} {kernel.side}" if kernel.side > 1 else kernel.kind
        found[name] = found.get(name, 0.0) + (kernel.flops or kernel.elements)
    return found


def _sum(parts: Sequence[_Amounts]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found
