"""Mixed precision: which blocks of a program int8 hurts, and the fastest assignment that keeps what is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import edit
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.policy import TRIALS
from hnas.export.int8.simulation import outputs, readers, simulate, sqnr_db

MOST = 16  # blocks
_GAIN = 0.98  # of the time; a block goes to float for speed alone only for more than that


def blocks(program: Program, most: int = MOST) -> dict[str, tuple[str, ...]]:
    """The blocks of a program in its order, by the path of their modules, each with the names of its nodes.

    A block is what shares the first k parts of its layers' paths, with the largest k that gives no more than ``most``.
    Nodes without weights belong to the layer before them, those before any layer to the first.
    """
    paths = _paths(program.module)
    for depth in range(max((len(path) for path in paths.values()), default=1), 0, -1):
        found: dict[str, list[str]] = {}
        for name, path in paths.items():
            found.setdefault(".".join(path[:depth]), []).append(name)
        if len(found) <= most or depth == 1:
            break
    return {name: tuple(nodes) for name, nodes in found.items()}


def _paths(module: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Every called node's module, as the parts of its path; a node without weights has that of the one before it."""
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    own = {node: _path(node) for node in calls}
    current = next((path for path in own.values() if path), ("program",))
    paths = {}
    for node in calls:
        current = own[node] or current
        paths[node.name] = current
    return paths


def _path(node: fx.Node) -> tuple[str, ...]:
    """The module whose weight a node reads; its captured stack tells that also where a pass renamed the weight."""
    if not any(source.op == "get_attr" for source in node.all_input_nodes):
        return ()
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return tuple(stack[-1][0].split(".")) if stack and stack[-1][0] else ()


def keep_float(program: Program, names: Collection[str]) -> Program:
    """The program with the named blocks marked to stay in float; ValueError names the blocks there are."""
    known = blocks(program)
    for name in names:
        if name not in known:
            raise ValueError(f"no block {name!r} to keep in float; known: {', '.join(known)}")
    marked = {node for name in names for node in known[name]}

    def rewrite(module: fx.GraphModule) -> int:
        chosen = [node for node in module.graph.nodes if node.name in marked]
        for node in chosen:
            node.meta[FLOAT] = True
        return len(chosen)

    return edit(program, "keep_float", rewrite)


def sensitivities(program: Program, data: Sequence[Arrays]) -> dict[str, float]:
    """Signal to noise in dB of the outputs with one block in simulated int8 and all else in float, for each block.

    A block in which nothing is quantised has 200 dB.
    """
    ranges = activation_ranges(program, data)
    expected = outputs(program, data)
    narrow = {node.name for node in readers(program.module)}

    def level(nodes: Collection[str]) -> float:
        return sqnr_db(expected, outputs(simulate(program, ranges, only=narrow & set(nodes)), data))

    return {name: level(nodes) for name, nodes in blocks(program).items()}


@dataclass(frozen=True)
class Assignment:
    """Blocks kept in float, whether the guard accepts the artifact, and its time (in any unit, None where refused)."""

    kept: tuple[str, ...]
    accepted: bool
    time: float | None = None


def assign(
    levels: Mapping[str, float],
    accept: Callable[[tuple[str, ...]], bool],
    time: Callable[[tuple[str, ...]], float],
    trials: int = TRIALS,
) -> tuple[Assignment | None, list[Assignment]]:
    """The assignment to take, None where none is accepted, and all that were tried, in order; ``trials`` at most.

    levels: of `sensitivities`; accept and time: build and judge, and measure, the artifact with these blocks in float.
    1. All in int8. Refused: the fewest of the most sensitive blocks with which it is accepted, by halving, as more in
       float are taken to be more exact. All in float is no assignment: None.
    2. Each of them, from the least sensitive on, goes back to int8, and stays there if the artifact is still accepted
       and not slower.
    3. Each other block, from the most sensitive on, goes to float, and stays there if that is accepted and faster by
       more than 2 %: a runtime may run it better so.
    """
    order = sorted(levels, key=lambda name: levels[name])
    tried: list[Assignment] = []

    def judged(left: tuple[str, ...]) -> Assignment:
        accepted = accept(left)
        tried.append(Assignment(left, accepted, time(left) if accepted else None))
        return tried[-1]

    chosen = judged(())
    low, high = 0, 0 if chosen.accepted else len(order)  # refused with the first, accepted with the other or all float
    while high - low > 1 and len(tried) < trials:
        middle = (low + high) // 2
        found = judged(tuple(order[:middle]))
        low, high, chosen = (low, middle, found) if found.accepted else (middle, high, chosen)
    if not chosen.accepted:
        return None, tried
    # The last of them stays: without it the artifact was refused.
    back, forth = reversed(chosen.kept[:-1]), order[len(chosen.kept) :]
    for name, least in [*((name, 1.0) for name in back), *((name, _GAIN) for name in forth)][: trials - len(tried)]:
        changed = tuple(each for each in order if (each in chosen.kept) != (each == name))
        if len(changed) == len(order):
            continue
        found = judged(changed)
        if found.time is not None and chosen.time is not None and found.time <= chosen.time * least:
            chosen = found
    return chosen, tried
