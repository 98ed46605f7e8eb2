"""The angle by which a child's weights have turned since initialisation (ABS, arXiv 2004.13431), exact and additive.

The angle is arccos(<V0, V> / (|V0| |V|)) with V the weights of the child one after the other. A dot product of
concatenations is the sum of the dot products, so three float64 sums for each block of weights, <w0, w>, |w0|^2 and
|w|^2, are all that is needed: a child is then a sum over its blocks, and no module is made for it.

A chain needs nothing else. A cell whose slots are the edges of a graph is described by a ``Graph``: the published
construction concatenates the weights along every path from an input to the output, so an edge counts as often as paths
that are not broken run through it. All weights of a slot, those of a cell's repetitions too, live under ``<slot>.``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnas.shrinking.children import INACTIVE, Rows, draw, member
from hnas.space import Arch, Option, Space
from hnas.study import Study

Floats = NDArray[np.float64]
Snapshot = Mapping[str, Tensor]  # every shared weight by name, as ``Study.snapshot`` takes it
FIXED = ""  # the part of a network that is in no slot
CHECKED = 1  # children whose sums are compared with those of all their weights
CLOSE = 1e-9  # how far the two may differ, as a share


@dataclass(frozen=True)
class Graph:
    """A cell: its slots are the edges of a directed graph without cycles.

    edges: slot -> (from node, to node): {"edges.0_1": (0, 1), ...} where the choices are "edges.0_1.op", ...
    inputs, output: where paths begin and end.
    none: types that break every path through their edge. Types that let a path pass and have no weights (a skip) need
        no mention.
    pools: type of pooling -> (kernel, channels summed over all repetitions): it counts as a constant vector of one
        kernel a channel with entries 1 / kernel^2, the same before and after.
    """

    edges: Mapping[str, tuple[int, int]]
    inputs: tuple[int, ...] = (0,)
    output: int = 3
    none: tuple[Option, ...] = ("none",)
    pools: Mapping[Option, tuple[int, int]] = field(default_factory=dict)

    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Every way from an input to the output, as the slots it runs through."""

        def onward(node: int) -> Iterator[tuple[str, ...]]:
            if node == self.output:
                yield ()
                return
            for slot, (begin, end) in self.edges.items():
                if begin == node:
                    yield from ((slot, *rest) for rest in onward(end))

        return tuple(path for node in self.inputs for path in onward(node))


class Table:
    """The sums of every block of weights that members of ``space`` can have, filled in as children ask for them.

    reference: the weights that angles are measured from; the initial ones unless given. A copy of a split branch that
        is not among them is measured from what it was copied from.
    vectors: weights of one axis (norms, biases) count too; by default only those of convolutions and linear layers.
    A block that hangs on a choice which no probe showed is a ValueError: the sums are checked on two children.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        *,
        reference: Snapshot | None = None,
        graph: Graph | None = None,
        vectors: bool = False,
    ) -> None:
        self.space = space
        self.graph = graph
        self.slots = study.supernet.space.slots
        self._supernet = study.supernet
        self._reference = study.snapshot("initial") if reference is None else reference
        shared = study.supernet.union.named_parameters()
        self._origins = {id(p): name if name in self._reference else study.supernet.origin(name) for name, p in shared}
        self._axes = 1 if vectors else 2
        self._homes = frozenset(self.slots)
        self._names = list(space.choices)
        self._blocks: dict[tuple[str, tuple[int, ...]], Floats] = {}
        self._reads = self._probe({split.branch: split.context for split in study.supernet.splits.values()})
        self._checked = False

    def angles(self, rows: Rows, *, fixed: bool = True) -> Floats:
        """[children]: the angle of each child, in radians; not ``fixed``: without what lies in no slot."""
        blocks = self._of(rows)
        counts = self._multiplicities(rows)
        own = sum((blocks[slot] * counts[:, [k]] for k, slot in enumerate(self.slots)), np.zeros((len(rows), 3)))
        total = own + blocks[FIXED]
        if not self._checked and len(rows):
            self._check(rows[:CHECKED], total[:CHECKED])
        return _angle(total if fixed else own)

    def blocks(self, rows: Rows) -> Floats:
        """[children, slots]: the angle of each slot's block alone; NaN where it has no weights or is inactive."""
        found = self._of(rows)
        columns = [np.where(found[slot][:, 1] > 0, _angle(found[slot]), np.nan) for slot in self.slots]
        return np.stack(columns, 1) if columns else np.zeros((len(rows), 0))

    def _multiplicities(self, rows: Rows) -> Floats:
        """[children, slots]"""
        counts = np.ones((len(rows), len(self.slots)))
        if self.graph is None:
            return counts
        broken = {}
        for slot in self.graph.edges:
            options = self.space.choices[f"{slot}.op"].options
            cut = [k for k, option in enumerate(options) if option in self.graph.none]
            broken[slot] = np.isin(rows[:, self._names.index(f"{slot}.op")], cut)
            counts[:, self.slots.index(slot)] = 0
        for path in self.graph.paths():
            whole = ~np.any([broken[slot] for slot in path], axis=0)
            counts[:, [self.slots.index(slot) for slot in path]] += whole[:, None]
        return counts

    def _of(self, rows: Rows) -> dict[str, Floats]:
        """part -> [children, 3]; what the table does not have yet is computed first."""
        codes: dict[str, tuple[list[tuple[int, ...]], NDArray[np.int64], NDArray[np.int64]]] = {}
        for part, columns in self._reads.items():
            first, inverse = _unique(rows[:, columns])
            keys = [tuple(int(k) for k in rows[row][columns]) for row in first]
            codes[part] = keys, first, inverse
        self._fill({part: [(key, rows[row]) for key, row in zip(c[0], c[1], strict=True)] for part, c in codes.items()})
        return {
            part: np.stack([self._blocks[part, key] for key in keys])[inverse]
            for part, (keys, _, inverse) in codes.items()
        }

    def _fill(self, wanted: Mapping[str, Sequence[tuple[tuple[int, ...], NDArray[np.int64]]]]) -> None:
        """Compute missing blocks from few members: each shows as many of them as do not contradict each other."""
        pending = []
        for part, items in wanted.items():
            for key, row in items:
                if (part, key) not in self._blocks:
                    needs = {at: int(row[at]) for at in self._with_parents(self._reads[part]) if row[at] != INACTIVE}
                    pending.append((part, key, needs))
        while pending:
            chosen: dict[int, int] = {}
            shown, left = [], []
            for part, key, needs in pending:
                if all(chosen.get(at, option) == option for at, option in needs.items()):
                    chosen |= needs
                    shown.append((part, key))
                else:
                    left.append((part, key, needs))
            self._show(self._member(chosen), shown)
            pending = left

    def _show(self, arch: Arch, shown: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        sums = {part: np.zeros(3) for part, _ in shown}
        for name, pair in self._pairs(arch):
            if (part := self._part(name)) in sums:
                found = _sums(*pair)
                if not np.isfinite(found).all():
                    mend = "go back to the last good checkpoint"
                    raise ValueError(f"{name} holds NaN or infinite weights, so it has no angle; {mend}")
                sums[part] += found
        for part, key in shown:
            sums[part] += sum(self._constant(part, arch.get(f"{part}.op", "")))
            self._blocks[part, key] = sums[part]

    def _constant(self, slot: str, option: Option) -> tuple[float, ...]:
        """The squared norm of the vector that stands for a pooling, if it is one."""
        pools = self.graph.pools if self.graph and slot in self.graph.edges else {}
        return (pools[option][1] / pools[option][0] ** 2,) if option in pools else ()

    def _probe(self, splits: Mapping[str, str]) -> dict[str, list[int]]:
        """For every part the columns of the choices that its weights hang on.

        A slot's own choices are its own; whether a choice outside all slots (a width) matters is seen by changing it
        alone, from its largest option to its smallest, under each of the types.
        """
        inside = {name: next((s for s in self.slots if name.startswith(f"{s}.")), FIXED) for name in self._names}
        reads = {part: {n for n in self._names if part and inside[n] == part} for part in (*self.slots, FIXED)}
        for branch, context in splits.items():
            reads[self._part(f"{branch}.")].add(context)
        outside = [n for n in self._names if not inside[n] and len(self.space.choices[n].options) > 1]
        kinds = max((len(self.space.choices[f"{s}.op"].options) for s in self.slots), default=1)
        for kind in range(kinds if outside else 0):
            chosen = {at: len(self.space.choices[n].options) - 1 for at, n in enumerate(self._names)}
            chosen |= {at: kind % (chosen[at] + 1) for at, n in enumerate(self._names) if n.endswith(".op")}
            base = self._shapes(self._member(chosen))
            for name in outside:
                other = self._shapes(self._member({**chosen, self._names.index(name): 0}))
                for part, known in reads.items():
                    if part in base and part in other and base[part] != other[part]:
                        known.add(name)
        return {part: [at for at, n in enumerate(self._names) if n in names] for part, names in reads.items()}

    def _pairs(self, arch: Arch) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """The weights of ``arch`` that count: (name, (then, now))."""
        for name, (shared, index) in self._supernet.where(arch).items():
            if shared.ndim >= self._axes:
                then = self._reference[self._origins[id(shared)]]
                yield name, (then, shared) if index is None else (then[index], shared[index])

    def _shapes(self, arch: Arch) -> dict[str, dict[str, torch.Size]]:
        shapes: dict[str, dict[str, torch.Size]] = {}
        for name, weight in self._supernet.view(arch).items():
            shapes.setdefault(self._part(name), {})[name] = weight.shape
        return shapes

    def _check(self, rows: Rows, total: Floats) -> None:
        self._checked = True
        for row, sums in zip(rows, total, strict=True):
            arch = member(self.space, row)
            true = np.zeros(3)
            for name, pair in self._pairs(arch):
                true += self._passes(arch, self._part(name)) * _sums(*pair)
            for slot in self.graph.edges if self.graph else ():
                true += self._passes(arch, slot) * sum(self._constant(slot, arch.get(f"{slot}.op", "")))
            if not np.allclose(true, sums, rtol=CLOSE, atol=CLOSE):
                cause = "the weights of a slot hang on a choice in another slot"
                raise ValueError(f"angles do not add up in the space {self.space.name!r}: {cause}")

    def _passes(self, arch: Arch, slot: str) -> int:
        """How many unbroken paths run through ``slot``; 1 where it is no edge."""
        if self.graph is None or slot not in self.graph.edges:
            return 1
        whole = [p for p in self.graph.paths() if not any(arch.get(f"{s}.op") in self.graph.none for s in p)]
        return sum(slot in path for path in whole)

    def _member(self, chosen: Mapping[int, int]) -> Arch:
        choices = enumerate(self.space.choices.items())
        return self.space.arch({name: choice.options[chosen.get(at, 0)] for at, (name, choice) in choices})

    def _with_parents(self, columns: Sequence[int]) -> list[int]:
        found = list(columns)
        for at in found:
            when = self.space.choices[self._names[at]].when
            if when and self._names.index(when[0]) not in found:
                found.append(self._names.index(when[0]))
        return found

    def _part(self, name: str) -> str:
        """The slot that a weight belongs to, or ``FIXED``."""
        end = name.find(".")
        while end >= 0:
            if name[:end] in self._homes:
                return name[:end]
            end = name.find(".", end + 1)
        return FIXED


def standardise(values: Mapping[tuple[str, Option], float]) -> dict[tuple[str, Option], float]:
    """z = (value - mean over the slots of that type) / deviation; 0 for a type without values or in one slot only.

    Types turn at different speeds (a depthwise kernel has few weights and turns far, a large 1x1 hardly), so the values
    of two types say little beside each other; how a type fares here against elsewhere does.
    """
    by_type: dict[Option, list[float]] = {}
    for (_, option), value in values.items():
        if np.isfinite(value):
            by_type.setdefault(option, []).append(value)
    scored = {}
    for (name, option), value in values.items():
        known = by_type.get(option, [])
        deviation = float(np.std(known)) if len(known) > 1 else 0.0
        usable = np.isfinite(value) and deviation > 1e-12
        scored[name, option] = (value - float(np.mean(known))) / deviation if usable else 0.0
    return scored


def sample(space: Space, samples: int, seed: int, balance: Option | None = None) -> Rows:
    """Children of which every operation is in at least ``samples`` on average, one drawn for all of them."""
    widest = max((len(space.choices[f"{slot}.op"].options) for slot in space.slots), default=1)
    return draw(space, samples * widest, np.random.default_rng(seed), balance)


def _unique(columns: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(a row for each different one, for every row which of those it equals)."""
    code = np.zeros(len(columns), np.int64)
    for column in columns.T:  # one number a row sorts many times as fast as a row does
        code = np.unique(code * (int(column.max(initial=0)) + 2) + column + 1, return_inverse=True)[1]
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse


def _sums(then: Tensor, now: Tensor) -> Floats:
    a, b = then.detach().double().flatten(), now.detach().double().flatten()
    return np.array([float(a @ b), float(a @ a), float(b @ b)])


def _angle(sums: Floats) -> Floats:
    """[...]: the angles that [..., 3] sums make; 0 where there are no weights."""
    norm = np.sqrt(sums[..., 1] * sums[..., 2])
    cosine = np.divide(sums[..., 0], norm, out=np.ones_like(norm), where=norm > 0)
    angles: Floats = np.arccos(np.clip(cosine, -1.0, 1.0))
    return angles
