"""The graph of a cell whose slots are edges, and how often the angle counts each edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hnas.shrinking.children import Rows, column_of
from hnas.space import Arch, Option, Space

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PathGraph:
    """A cell: its slots are the edges of a directed graph without cycles.

    edges: slot -> (from node, to node): {"edges.0_1": (0, 1), ...} where the choices are "edges.0_1.op", ...
    inputs: nodes where paths begin ((0,)).
    output: node where paths end (3).
    none: types that break every path through their edge (("none",)). Types without weights that let a path pass, such
        as a skip, need not be given.
    pools: type of pooling -> (kernel, channels summed over all repetitions). A pooling counts as a constant vector of
        one kernel for each channel with entries 1 / kernel^2, the same before and after training.
    """

    edges: Mapping[str, tuple[int, int]]
    inputs: tuple[int, ...] = (0,)
    output: int = 3
    none: tuple[Option, ...] = ("none",)
    pools: Mapping[Option, tuple[int, int]] = field(default_factory=dict)

    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Return every path from an input to the output, as the slots on it."""

        def onward(node: int) -> Iterator[tuple[str, ...]]:
            if node == self.output:
                yield ()
                return
            for slot, (begin, end) in self.edges.items():
                if begin == node:
                    yield from ((slot, *rest) for rest in onward(end))

        return tuple(path for node in self.inputs for path in onward(node))

    def passes(self, arch: Arch, slot: str) -> int:
        """Return how many unbroken paths of ``arch`` run through ``slot``; 1 for a slot that is not an edge."""
        if slot not in self.edges:
            return 1
        whole = [path for path in self.paths() if not any(arch.get(f"{edge}.op") in self.none for edge in path)]
        return sum(slot in path for path in whole)

    def multiplicities(self, space: Space, slots: Sequence[str], rows: Rows) -> Floats:
        """Return [children, slots]: how many unbroken paths of each child run through each slot."""
        counts = np.ones((len(rows), len(slots)))
        broken = {}
        for slot in self.edges:
            options = space.choices[f"{slot}.op"].options
            cut = [k for k, option in enumerate(options) if option in self.none]
            broken[slot] = np.isin(rows[:, column_of(space, f"{slot}.op")], cut)
            counts[:, slots.index(slot)] = 0
        for path in self.paths():
            whole = ~np.any([broken[slot] for slot in path], axis=0)
            counts[:, [slots.index(slot) for slot in path]] += whole[:, None]
        return counts

    def squared_norm(self, slot: str, option: Option) -> float:
        """Return the squared norm of the constant vector that stands for a pooling; 0 for any other operation."""
        if slot not in self.edges or option not in self.pools:
            return 0.0
        kernel, channels = self.pools[option]
        return channels / kernel**2
