"""Shrink a failing program to the smallest one that still fails: delta debugging over the captured graph.

Call ``reduce_program(program, calls, fails)``. The function ``fails`` decides what a failure is. The method is that of
Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002, applied to a graph instead of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import torch
from torch import Tensor, fx

from hnas.export.graph.program import Program
from hnas.export.graph.subgraph import Call, SizeChange, Subprogram, ancestors, carve, is_tensor

Fails = Callable[[Program, Sequence[Call]], bool]

SECONDS = 120.0  # time limit of a reduction; every candidate is compiled and run

_Step = Callable[[Subprogram, "_Search"], Subprogram]


def reduce_program(program: Program, calls: Sequence[Call], fails: Fails, *, seconds: float = SECONDS) -> Subprogram:
    """Return the smallest program and calls found that still fail.

    These steps are repeated until none makes the program smaller, or the time is over:

    1. Use fewer calls.
    2. End earlier: an intermediate value becomes the output (bisected).
    3. Begin later: intermediate values become inputs, with their recorded values (bisected).
    4. Remove a part: a value is replaced by an earlier value of the same shape and type that it is computed from.
       Or the value of one operator becomes an input.
    5. Reduce one size everywhere, such as channels, height, batch or kernel size.

    calls: inputs of the program, one tuple for each call. The first is the example inputs.
    fails: takes a program and calls, and returns whether they fail. Its exceptions are not caught.
    seconds: time limit.

    Raises:
        ValueError: the given program does not fail.

    Example: ``reduce_program(program, calls, lambda program, calls: not program(*calls[0])[0].isfinite().all())``
    """
    with torch.no_grad():
        best = carve(Subprogram(program, tuple(calls)))
        search = _Search(fails, monotonic() + seconds)
        if best is None or not fails(best.program, best.calls):
            raise ValueError("the program does not fail as it is; there is nothing to reduce")
        before = None
        while best.size != before and not search.over:
            before = best.size
            for step in _STEPS:
                best = step(best, search)
        return best


@dataclass
class _Search:
    """Hold the state of a reduction.

    fails: the test that every accepted candidate must fail.
    end: time limit, in seconds of ``monotonic``.
    refuted: digests of candidates that did not fail.
    """

    fails: Fails
    end: float
    refuted: set[str] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Return True if the time is over."""
        return monotonic() > self.end

    def accepts(self, candidate: Subprogram | None, than: Subprogram) -> bool:
        """Return whether a candidate is smaller than ``than``, and fails."""
        if candidate is None or self.over or candidate.size >= than.size:
            return False
        known = f"{candidate.program.digest}/{len(candidate.calls)}"
        if known in self.refuted:
            return False
        failed = self.fails(candidate.program, candidate.calls)
        if not failed:
            self.refuted.add(known)
        return failed

    def boldest(self, best: Subprogram, count: int, make: Callable[[int], Subprogram | None]) -> Subprogram:
        """Return the failing candidate with the lowest index, by bisection. Return ``best`` if none fails.

        The bisection assumes that all candidates above a failing one also fail.

        count: number of candidates.
        make: returns the candidate of an index.
        """
        low, high = -1, count
        while high - low > 1:
            middle = (low + high) // 2
            candidate = make(middle)
            if candidate is not None and self.accepts(candidate, best):
                best, high = candidate, middle
            else:
                low = middle
        return best

    def first(self, best: Subprogram, candidates: Iterator[Subprogram | None]) -> Subprogram | None:
        """Return the first candidate that is accepted."""
        return next((each for each in candidates if each is not None and self.accepts(each, best)), None)


def _fewer_calls(best: Subprogram, search: _Search) -> Subprogram:
    """Case 1: halve the calls as long as one half fails."""
    while len(best.calls) > 1:
        half = len(best.calls) // 2
        parts = (best.calls[:half], best.calls[half:])
        found = search.first(best, (carve(Subprogram(best.program, part)) for part in parts))
        if found is None:
            return best
        best = found
    return best


def _earlier_end(best: Subprogram, search: _Search) -> Subprogram:  # case 2
    if len(best.ends) > 1:
        best = search.first(best, (carve(best, (end,)) for end in best.ends)) or best
    nodes = [node for node in best.operators if is_tensor(node)]
    return search.boldest(best, len(nodes), lambda index: carve(best, (nodes[index],)))


def _later_beginning(best: Subprogram, search: _Search) -> Subprogram:  # case 3
    nodes = best.operators

    def make(index: int) -> Subprogram | None:
        behind = set(nodes[len(nodes) - 1 - index :])
        cuts = {source for node in behind for source in node.all_input_nodes} - behind
        cuts = {node for node in cuts if node.op == "call_function"}
        return carve(best, cuts=cuts) if all(map(is_tensor, cuts)) else None

    return search.boldest(best, len(nodes) - 1, make)


def _dropped_parts(best: Subprogram, search: _Search) -> Subprogram:
    """Case 4: remove parts, the longest first, until none can be removed."""

    def candidates() -> Iterator[Subprogram | None]:
        order = list(best.program.module.graph.nodes)
        place = {node: index for index, node in enumerate(order)}
        pairs = [(node, source) for node in best.operators for source in _alike(node)]
        for node, source in sorted(pairs, key=lambda pair: place[pair[1]] - place[pair[0]]):
            yield carve(best, instead={node: source})
        for node in best.operators:  # the value of one operator becomes an input
            if is_tensor(node):
                yield carve(best, cuts={node})

    while (found := search.first(best, candidates())) is not None:
        best = found
    return best


def _smaller_sizes(best: Subprogram, search: _Search) -> Subprogram:  # case 5
    def candidates() -> Iterator[Subprogram | None]:
        values = [*best.calls[0], *best.program.module.state_dict().values()]
        for old in sorted({size for value in values for size in value.shape if size > 1}, reverse=True):
            for new in dict.fromkeys((1, 2, old // 2, old - 1 if old < 9 else 1)):
                if new < old:
                    yield from (_resized(best, change) for change in _changes(old, new))

    while (found := search.first(best, candidates())) is not None:
        best = found
    return best


_STEPS: tuple[_Step, ...] = (_fewer_calls, _earlier_end, _later_beginning, _dropped_parts, _smaller_sizes)


def _changes(old: int, new: int) -> Iterator[SizeChange]:
    for arguments in (True, False):
        yield SizeChange(old, new, None, arguments, multiples=True)
        yield SizeChange(old, new, None, arguments)
        yield from (SizeChange(old, new, axis, arguments) for axis in range(4))


def _resized(best: Subprogram, change: SizeChange) -> Subprogram | None:
    calls = tuple(tuple(change.cut(value, True) for value in call) for call in best.calls)
    if change.axis is not None and all(
        old.shape == new.shape for old, new in zip(best.calls[0], calls[0], strict=True)
    ):
        return None
    return carve(Subprogram(best.program, calls), change=change)


def _alike(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the values of the same shape and type that a node is computed from, without constants."""
    if not is_tensor(node):
        return
    value = node.meta["val"]
    needed, _ = ancestors((node,), (), {})
    for source in needed - {node}:
        other = source.meta.get("val")
        same = isinstance(other, Tensor) and other.shape == value.shape and other.dtype == value.dtype
        if same and source.op != "get_attr":
            yield source
