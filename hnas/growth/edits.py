"""Edits that make a network larger and keep its function: ``apply(net, Opening("width", 16), probe)`` returns a proof.

1. ``Opening`` of a larger size (G4), of a deeper stage or one more node (G1, G5): the new part is multiplied by zero.
2. ``TypeOpening`` adds an operation type to a slot, with a mixing weight of zero.
3. ``hnas.growth.nodes.NodeInsertion`` puts a node behind another one; it passes its input on (G2).
4. ``hnas.growth.nodes.NodeCopy`` doubles a node; the two copies share the output weight of the old one (G3).

G1 to G5 are the operators of the method; 1 and 2 must be bit-equal where no sum gets more terms and no map changes its
memory order (``must_be_equal``), else within 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hnas.growth.network import GrowingNetwork
from hnas.sampling.draws import relax, slot_types
from hnas.space import Arch, Option
from hnas.supernet import Index

LIMIT = 1e-5  # largest difference that float32 rounding explains, relative to the largest output
_SHAKEN = 2.0**-22  # relative change of the inputs, about that of a rounding
_AMPLIFIED = 100.0  # times the effect of such a change, a difference is still that of a rounding


class FunctionChanged(RuntimeError):
    """An edit changed the function of a network; the network is as before the edit."""

    code = 1


@dataclass(frozen=True)
class GrowthProof:
    """The change of the outputs on a probe batch that an edit has made.

    edit: the edit as JSON.
    train, evaluation: the largest difference of an output in this mode, relative to the largest output.
    exact: whether every output is equal, bit by bit, in both modes.
    before, after: the number of open weights.
    chaotic: whether the difference is above the limit because the network makes a rounding of its inputs as large.
    """

    edit: Mapping[str, Any]
    train: float
    evaluation: float
    exact: bool
    before: int
    after: int
    chaotic: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the proof as a JSON object."""
        return asdict(self)

    def line(self) -> str:
        """Return one line for a person."""
        said = " ".join(str(value) for value in self.edit.values())
        equal = "every output bit-equal" if self.exact else f"outputs within {max(self.train, self.evaluation):.1e}"
        equal += ", as far as a rounding of the inputs moves them" if self.chaotic else ""
        return f"grown by {said}: {self.before} -> {self.after} weights, {equal}"


class Morphism(Protocol):
    """An edit of a growing network. ``exact``: whether the outputs must be bit-equal."""

    @property
    def exact(self) -> bool:
        """Return whether the outputs must be bit-equal."""
        ...

    def possible(self, net: GrowingNetwork) -> bool:
        """Return whether the network can be edited so."""
        ...

    def edit(self, net: GrowingNetwork) -> None:
        """Change weights, mixing weights and the open part, in place."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the edit as a JSON object."""
        ...


@torch.no_grad()
def apply(
    net: GrowingNetwork,
    edit: Morphism,
    probe: Sequence[Tensor],
    *,
    accept: Callable[[GrowingNetwork], bool] = lambda _: True,
) -> GrowthProof | None:
    """Morphism the network, and prove on a probe batch that its function is as before.

    probe: inputs, each [N, *shape]; a batch of real ones.
    accept: called with the edited network. False: the edit is undone, and None is returned.

    Raises:
        ValueError: the edit is not possible.
        FunctionChanged: the outputs differ by more than the edit may change them; the edit is undone.
    """
    if not edit.possible(net):
        raise ValueError(f"the network cannot be edited so: {edit.to_json()}")
    undo, size, old = _memory(net), net.weights, net.evaluate(probe)
    edit.edit(net)
    net.supernet.changed()
    if not accept(net):
        undo()
        return None
    new = net.evaluate(probe)
    train, evaluation = (_difference(a, b) for a, b in zip(old, new, strict=True))
    exact, must = all(torch.equal(a, b) for a, b in zip(old, new, strict=True)), must_be_equal(net, edit)
    chaotic = not must and max(train, evaluation) > LIMIT
    if (must and not exact) or chaotic:
        undo()
        if must or not only_rounding(old, new, net.evaluate(shaken(probe))):
            most = f"{max(train, evaluation):.1e} of the largest one"
            raise FunctionChanged(f"the edit {edit.to_json()} changed an output by {most}; undone")
        edit.edit(net)
        net.supernet.changed()
    return GrowthProof(edit.to_json(), train, evaluation, exact, size, net.weights, chaotic)


def shaken(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return inputs that differ by about one rounding; integers stay as they are."""
    return tuple(x * (1 + _SHAKEN) if x.is_floating_point() else x for x in inputs)


def only_rounding(old: Sequence[Tensor], new: Sequence[Tensor], moved: Sequence[Tensor]) -> bool:
    """Return whether new outputs differ from old ones by no more than rounding, which the network may amplify.

    A recurrent network may be chaotic: a rounding then grows from row to row, by any edit that is not bit-equal. An
    edit that changes the function is seen in the first rows, where nothing has grown yet.

    old, new, moved: outputs [N, ...] of the network, of the edited network, and of the network on ``shaken`` inputs.
    """
    for a, b, c in zip(old, new, moved, strict=True):
        allowed = LIMIT * a.abs().max() + _AMPLIFIED * (c - a).abs().amax(0)
        if not bool(((b - a).abs().amax(0) <= allowed).all()):
            return False
    return True


def must_be_equal(net: GrowingNetwork, edit: Morphism) -> bool:
    """Return whether the outputs must be bit-equal after an edit: where the edit is exact and there is no layer norm.

    A layer norm returns its maps in another memory order. The sum of two branches may then have another order than one
    branch, and the layers after it round differently.
    """
    return edit.exact and not _layer_norms(net, net.arch)


def _difference(old: Tensor, new: Tensor) -> float:
    """Return the largest difference, relative to the largest output; infinity for outputs that are not finite."""
    found = float((new - old).abs().max() / old.abs().max().clamp_min(1e-12))
    return found if found == found else float("inf")


def _memory(net: GrowingNetwork) -> Callable[[], None]:
    """Return a function that makes the network as it is now."""
    tensors = [*net.named().values(), *net.mixing.values()]
    kept = [tensor.detach().clone() for tensor in tensors]
    arch = net.arch

    def undo() -> None:
        net.arch = arch
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)
        net.supernet.changed()

    return undo


@dataclass(frozen=True)
class Opening:
    """Open a larger option of a size: width, depth, number of nodes, kernel, expansion, heads.

    ``hnas.growth.loop.grow`` opens width, depth and nodes alone.

    choice: the name of the choice.
    option: the larger option.

    Every weight of the larger network that leads from a new input to an old output is set to zero. New blocks get a
    last layer ``out`` of zero, and new nodes an output weight of zero: these openings are bit-equal.
    """

    choice: str
    option: Option

    @property
    def exact(self) -> bool:
        """Return True for depth and nodes; a matrix product with more columns is summed in another order."""
        return self.choice.rpartition(".")[2] in ("depth", "nodes")

    def possible(self, net: GrowingNetwork) -> bool:
        """Return whether the option comes after the present one, and no layer norm gets more channels.

        A layer norm divides by the deviation of all its channels, so that new ones change the old ones.
        """
        options = net.space.choices[self.choice].options if self.choice in net.space.choices else ()
        present = net.arch.get(self.choice)
        if present not in options or self.option not in options[options.index(present) + 1 :]:
            return False
        old, new = (_layer_norms(net, arch) for arch in (net.arch, net.resized(self.choice, self.option)))
        return all(new.get(name, shape) == shape for name, shape in old.items())

    def edit(self, net: GrowingNetwork) -> None:
        """Zero what leads from new to old, and open."""
        arch = net.resized(self.choice, self.option)
        old, new = net.supernet.where(net.arch), net.supernet.where(arch)
        for name, (parameter, index) in new.items():
            if name in old:
                _close(parameter, old[name][1], index, one_axis=name == "weights")
            elif name.rpartition(".")[0].endswith(".out"):
                parameter.zero_()
        absent = [slot for slot in net.space.slots if f"{slot}.op" in arch and f"{slot}.op" not in net.arch]
        net.arch = arch
        for slot in absent:
            net.spread(slot)

    def to_json(self) -> dict[str, Any]:
        """Return the edit as a JSON object."""
        return {"edit": "open", "choice": self.choice, "option": self.option}


def _layer_norms(net: GrowingNetwork, arch: Arch) -> dict[str, tuple[int, ...]]:
    """Return the shape of every layer norm of ``arch`` by name."""
    modules = net.supernet.skeleton(arch).named_modules()
    return {name: module.normalized_shape for name, module in modules if isinstance(module, nn.LayerNorm)}


def _close(full: Tensor, old: Index | None, new: Index | None, *, one_axis: bool) -> None:
    """Zero the entries of the larger part ``new`` that lead from new inputs to the outputs of the part ``old``.

    one_axis: a vector that weights a sum; its new entries are zeroed.
    """
    if old is None or old == new or (full.ndim < 2 and not one_axis):
        return  # scales and biases of old channels stay; those of new channels reach no old one
    larger = tuple(slice(0, n) for n in full.shape) if new is None else new
    rows = larger if one_axis else (old[0], *larger[1:])
    kept = full[old].clone()
    full[rows] = 0
    full[old] = kept


@dataclass(frozen=True)
class TypeOpening:
    """Add an operation type to a slot, with a mixing weight of zero.

    slot: the path of the slot.
    kind: the type.
    """

    slot: str
    kind: str
    exact = True

    def possible(self, net: GrowingNetwork) -> bool:
        """Return whether the slot is present, offers the type, and the type is closed."""
        opened = net.open_types(self.slot) if self.slot in net.space.slots else ()
        return bool(opened) and self.kind in slot_types(net.space, self.slot) and self.kind not in opened

    def edit(self, net: GrowingNetwork) -> None:
        """Open the type; a slot that held one branch becomes soft, with a mixing weight of 1 for it."""
        opened = net.open_types(self.slot)
        if not isinstance(net.arch[f"{self.slot}.op"], tuple):
            net.spread(self.slot)
        net.mixing[self.slot][slot_types(net.space, self.slot).index(self.kind)] = 0.0
        soft = {s: net.open_types(s) for s in net.space.slots if isinstance(net.arch.get(f"{s}.op"), tuple)}
        soft[self.slot] = (*opened, self.kind)
        small = {k: c.options[0] for k, c in net.space.choices.items() if k.startswith(f"{self.slot}.{self.kind}.")}
        net.arch = relax(net.space, {**small, **net.arch}, soft, single=True)

    def to_json(self) -> dict[str, Any]:
        """Return the edit as a JSON object."""
        return {"edit": "type", "slot": self.slot, "kind": self.kind}
