"""A growing network: a part of a supernet, with a mixing weight for every open option.

``GrowingNetwork.begin(supernet)`` returns the smallest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hnas.cost.flops import parameters
from hnas.sampling.draws import IDENTITY, relax, slot_types
from hnas.space import Arch, Option, Space
from hnas.study import pool_moments
from hnas.supernet import Stats, Supernet


@dataclass
class GrowingNetwork:
    """The state that an edit changes.

    supernet: the weights of the largest network.
    arch: the open part. A soft slot holds its open options, as a tuple.
    mixing: slot -> one weight for each of its types. They are free numbers and no softmax: an option that is opened at
        weight exactly zero has a gradient, and the others keep their weights.

        net = GrowingNetwork.begin(supernet)
        outputs = net(x)
    """

    supernet: Supernet
    arch: Arch
    mixing: dict[str, nn.Parameter]

    @classmethod
    def begin(cls, supernet: Supernet, start: Arch | None = None) -> GrowingNetwork:
        """Return the network of ``start``, or the smallest one with soft slots.

        start: a member of the space, which keeps its trained weights; its slots hold one option each. None: the
            smallest sizes, where every slot without branches of its own is soft: all its options are open, at equal
            weights.
        """
        space = supernet.space
        arch = space.arch(space.smallest if start is None else start)
        if start is None and not _has_branches(supernet):
            soft = {s: slot_types(space, s) for s in space.slots if f"{s}.op" in arch}
            arch = relax(space, arch, soft, single=True)
        net = cls(
            supernet, arch, {slot: nn.Parameter(torch.zeros(len(slot_types(space, slot)))) for slot in space.slots}
        )
        for slot in space.slots:
            net.spread(slot)
        return net

    @property
    def space(self) -> Space:
        """Return the declared space."""
        return self.supernet.space

    @property
    def weights(self) -> int:
        """Return the number of weights of the open part."""
        return parameters(self.supernet.skeleton(self.arch))

    def open_types(self, slot: str) -> tuple[str, ...]:
        """Return the open options of a slot; empty if the slot is absent."""
        found: Any = self.arch.get(f"{slot}.op", ())
        return found if isinstance(found, tuple) else (str(found),)

    @torch.no_grad()
    def spread(self, slot: str) -> None:
        """Give the open options of a slot equal mixing weights that sum to 1, and the others zero."""
        opened, types = self.open_types(slot), slot_types(self.space, slot)
        self.mixing[slot].copy_(torch.tensor([1 / len(opened) if kind in opened else 0.0 for kind in types]))

    def gates(self) -> dict[str, Tensor]:
        """Return slot -> [branches] for every soft slot; gradients reach ``mixing``."""
        found = {}
        for slot in self.space.slots:
            if isinstance(self.arch.get(f"{slot}.op"), tuple):
                types = slot_types(self.space, slot)
                kept = [types.index(kind) for kind in self.open_types(slot) if kind != IDENTITY]
                found[slot] = self.mixing[slot][kept]
        return found

    def __call__(self, *inputs: Tensor, stats: Stats | None = None) -> Tensor:
        """Return the outputs of the open part; ``stats`` as in ``Supernet.forward``."""
        outputs: Tensor = self.supernet(self.arch, *inputs, stats=stats, gates=self.gates())
        return outputs

    @torch.no_grad()
    def evaluate(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the outputs in training mode, and in evaluation mode with moments recalibrated on the same inputs."""
        stats = pool_moments(self.supernet, self.arch, [tuple(inputs)], len(inputs[0]), gates=self.gates())
        return self(*inputs), self(*inputs, stats=stats)

    def named(self) -> dict[str, nn.Parameter]:
        """Return every weight of the largest network by its name."""
        return dict(self.supernet.union.named_parameters())

    def resized(self, name: str, option: Option) -> Arch:
        """Return the open part with another option of a choice that is no slot.

        Choices that become active take their smallest option. Slots that become present are soft where the first slot
        of the space is.
        """
        space = self.space
        present: dict[str, Any] = dict(self.arch)
        soft = {s: self.open_types(s) for s in space.slots if isinstance(self.arch.get(f"{s}.op"), tuple)}
        plain = {key: value[0] if isinstance(value, tuple) else value for key, value in present.items()}
        base = space.changed(plain, name, option)
        if not _has_branches(self.supernet):
            soft |= {s: slot_types(space, s) for s in space.slots if f"{s}.op" in base and f"{s}.op" not in self.arch}
        return relax(space, base, soft, single=True) if soft else base


def _has_branches(supernet: Supernet) -> bool:
    """Return whether the types of a slot are modules with weights of their own, as in spaces of images."""
    space = supernet.space
    return any(
        any(name.startswith(f"{slot}.{kind}.") for name, _ in supernet.union.named_parameters())
        for slot in space.slots
        for kind in slot_types(space, slot)
    )
