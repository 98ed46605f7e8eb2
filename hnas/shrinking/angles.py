"""The angle between a child's initial and trained weights (ABS, arXiv 2004.13431), exact and additive.

The angle is arccos(<V0, V> / (|V0| |V|)) with V the weights of the child one after the other. A dot product of
concatenations is the sum of the dot products. So three float64 sums for each block of weights, <w0, w>, |w0|^2 and
|w|^2, are enough: a child is a sum over its blocks, and no module is built for it.

A chain needs nothing else. The slots of a cell are the edges of a graph (``PathGraph``): the published construction
concatenates the weights along every path from an input to the output, so an edge counts once for each unbroken path
through it. All weights of a slot, and of its repetitions in other cells, are named ``<slot>....``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnas.sampling.draws import most_types
from hnas.shrinking.children import INACTIVE, Rows, draw_rows, member_of
from hnas.shrinking.graph import Floats, PathGraph
from hnas.space import Arch, Option, Space
from hnas.study import Study

Snapshot = Mapping[str, Tensor]  # every shared weight by name, as ``Study.snapshot`` returns it
FIXED = ""  # the part of a network that is in no slot
CHECKED = 1  # children whose sums are compared with the sums over all their weights
CLOSE = 1e-9  # largest relative difference between the two
_Block = tuple[int, ...]  # the indices of the options that a block of weights depends on


@dataclass(frozen=True)
class AngleBasis:
    """The reference of an angle, and how often weights are counted.

    reference: the weights that angles are measured from; None (default): the initial weights. A copy of a split branch
        that is not among them is measured from the weight that it was copied from.
    graph: the cell whose edges are the slots; None (default): a chain.
    """

    reference: Snapshot | None = None
    graph: PathGraph | None = None


class AngleTable:
    """The sums of every block of weights that members of ``space`` can have, computed when first asked for.

    basis: what angles are measured from; None: the initial weights.
    vectors: whether weights of one axis (norms, biases) count (False). Otherwise only the weights of convolutions and
        linear layers count.

    The first children are checked: the sums over blocks must equal the sums over all weights. They differ if a block
    depends on a choice that the table has not found, which is a ValueError.

        table = AngleTable(study, space)
        angles = table.angles(children.rows_of(space, archs))
    """

    def __init__(self, study: Study, space: Space, basis: AngleBasis | None = None, *, vectors: bool = False) -> None:
        basis = basis or AngleBasis()
        self.space = space
        self.graph = basis.graph
        self.slots = study.supernet.space.slots
        self._supernet = study.supernet
        self._reference = study.snapshot("initial") if basis.reference is None else basis.reference
        shared = study.supernet.union.named_parameters()
        self._origins = {id(p): name if name in self._reference else study.supernet.origin(name) for name, p in shared}
        self._axes = 1 if vectors else 2
        self._homes = frozenset(self.slots)
        self._names = list(space.choices)
        self._blocks: dict[tuple[str, _Block], Floats] = {}
        self._reads = self._probe()
        self._checked = False

    def angles(self, rows: Rows, *, fixed: bool = True) -> Floats:
        """Return [children]: the angle of each child in radians.

        fixed: whether weights outside the slots count (True).
        """
        blocks = self._sums_of(rows)
        counts = np.ones((len(rows), len(self.slots)))
        if self.graph is not None:
            counts = self.graph.multiplicities(self.space, self.slots, rows)
        own = sum((blocks[slot] * counts[:, [k]] for k, slot in enumerate(self.slots)), np.zeros((len(rows), 3)))
        total = own + blocks[FIXED]
        if not self._checked and len(rows):
            self._check(rows[:CHECKED], total[:CHECKED])
        return _angle(total if fixed else own)

    def blocks(self, rows: Rows) -> Floats:
        """Return [children, slots]: the angle of each slot's block; NaN if the slot is inactive or has no weights."""
        found = self._sums_of(rows)
        columns = [np.where(found[slot][:, 1] > 0, _angle(found[slot]), np.nan) for slot in self.slots]
        return np.stack(columns, 1) if columns else np.zeros((len(rows), 0))

    def _sums_of(self, rows: Rows) -> dict[str, Floats]:
        """Return part -> [children, 3]; compute the blocks that the table does not have yet."""
        codes: dict[str, tuple[list[_Block], NDArray[np.int64], NDArray[np.int64]]] = {}
        for part, columns in self._reads.items():
            first, inverse = _unique(rows[:, columns])
            keys = [tuple(int(k) for k in rows[row][columns]) for row in first]
            codes[part] = keys, first, inverse
        self._fill({part: [(key, rows[row]) for key, row in zip(c[0], c[1], strict=True)] for part, c in codes.items()})
        return {
            part: np.stack([self._blocks[part, key] for key in keys])[inverse]
            for part, (keys, _, inverse) in codes.items()
        }

    def _fill(self, wanted: Mapping[str, Sequence[tuple[_Block, NDArray[np.int64]]]]) -> None:
        """Compute missing blocks from few members. One member serves all blocks whose options agree."""
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
            self._compute(self._member(chosen), shown)
            pending = left

    def _compute(self, arch: Arch, shown: Sequence[tuple[str, _Block]]) -> None:
        """Compute the blocks ``shown`` from the weights of ``arch``."""
        sums = {part: np.zeros(3) for part, _ in shown}
        for name, pair in self._pairs(arch):
            if (part := self._part(name)) in sums:
                found = _sums(*pair)
                if not np.isfinite(found).all():
                    mend = "go back to the last good checkpoint"
                    raise ValueError(f"{name} holds NaN or infinite weights, so it has no angle; {mend}")
                sums[part] += found
        for part, key in shown:
            sums[part] += self._constant(arch, part)
            self._blocks[part, key] = sums[part]

    def _constant(self, arch: Arch, slot: str) -> float:
        return self.graph.squared_norm(slot, arch.get(f"{slot}.op", "")) if self.graph else 0.0

    def _probe(self) -> dict[str, list[int]]:
        """Return for every part the columns of the choices that its weights depend on.

        1. A slot's weights depend on the slot's own choices.
        2. A split branch depends on its context.
        3. A choice outside all slots (a width) is probed: changed alone, from its largest option to its smallest, under
           each of the types.
        """
        reads: dict[str, set[str]] = {part: set() for part in (*self.slots, FIXED)}
        outside = []
        for name, choice in self.space.choices.items():
            if part := self._part(name):  # case 1
                reads[part].add(name)
            elif len(choice.options) > 1:
                outside.append(name)
        for split in self._supernet.splits.values():  # case 2
            reads[self._part(f"{split.branch}.")].add(split.context)
        for kind in range(most_types(self.space) if outside else 0):  # case 3
            self._probe_outside(kind, outside, reads)
        return {part: [at for at, n in enumerate(self._names) if n in names] for part, names in reads.items()}

    def _probe_outside(self, kind: int, outside: Sequence[str], reads: Mapping[str, set[str]]) -> None:
        """Add each choice of ``outside`` to the parts whose shapes it changes, with the ``kind``-th type everywhere."""
        largest = [len(self.space.choices[n].options) - 1 for n in self._names]
        chosen = {
            at: kind % (largest[at] + 1) if n.endswith(".op") else largest[at] for at, n in enumerate(self._names)
        }
        base = self._shapes(self._member(chosen))
        for name in outside:
            other = self._shapes(self._member({**chosen, self._names.index(name): 0}))
            for part, known in reads.items():
                if part in base and part in other and base[part] != other[part]:
                    known.add(name)

    def _pairs(self, arch: Arch) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Yield the weights of ``arch`` that count: (name, (then, now))."""
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
        """Compare the sums of children with the sums over all their weights; raise ValueError if they differ."""
        self._checked = True
        for row, sums in zip(rows, total, strict=True):
            arch = member_of(self.space, row)
            true = np.zeros(3)
            for name, pair in self._pairs(arch):
                true += self._passes(arch, self._part(name)) * _sums(*pair)
            for slot in self.graph.edges if self.graph else ():
                true += self._passes(arch, slot) * self._constant(arch, slot)
            if not np.allclose(true, sums, rtol=CLOSE, atol=CLOSE):
                cause = "the weights of a slot depend on a choice in another slot"
                raise ValueError(f"angles do not add up in the space {self.space.name!r}: {cause}")

    def _passes(self, arch: Arch, slot: str) -> int:
        return self.graph.passes(arch, slot) if self.graph else 1

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
        """Return the slot that a weight belongs to, or ``FIXED``."""
        end = name.find(".")
        while end >= 0:
            if name[:end] in self._homes:
                return name[:end]
            end = name.find(".", end + 1)
        return FIXED


def standardise(values: Mapping[tuple[str, Option], float]) -> dict[tuple[str, Option], float]:
    """Return z = (value - mean over the slots of that type) / deviation; 0 for a type without values or in one slot.

    The angle of a type depends on its number of weights: a depthwise kernel has few weights and large angles, a large
    1x1 convolution has small angles. So values of two types cannot be compared. Values of one type in two slots can.
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


def sample_rows(space: Space, samples: int, seed: int, balance: Option | None = None) -> Rows:
    """Return random children. On average, every operation is in at least ``samples`` of them.

    balance: as in ``hnas.shrinking.children.draw_rows``.
    """
    return draw_rows(space, samples * most_types(space), np.random.default_rng(seed), balance)


def _unique(columns: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (index of the first of each distinct row, for every row the number of its distinct row)."""
    code = np.zeros(len(columns), np.int64)
    for column in columns.T:  # one number a row sorts many times as fast as a row does
        code = np.unique(code * (int(column.max(initial=0)) + 2) + column + 1, return_inverse=True)[1]
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse


def _sums(then: Tensor, now: Tensor) -> Floats:
    a, b = then.detach().double().flatten(), now.detach().double().flatten()
    return np.array([float(a @ b), float(a @ a), float(b @ b)])


def _angle(sums: Floats) -> Floats:
    """Return [...]: the angles of sums [..., 3]; 0 where there are no weights."""
    norm = np.sqrt(sums[..., 1] * sums[..., 2])
    cosine = np.divide(sums[..., 0], norm, out=np.ones_like(norm), where=norm > 0)
    angles: Floats = np.arccos(np.clip(cosine, -1.0, 1.0))
    return angles
