"""Find the blocks that lose accuracy in int8, and the fastest accepted assignment of blocks to int8 and float.

Use: ``assign(sensitivities(program, samples), accept, time)``, then ``keep_float(program, names)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import edit
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.policy import TRIALS
from hnas.export.int8.simulation import readers, run_samples, simulate, sqnr_db

MOST = 16  # blocks
_GAIN = 0.98  # a block moves to float for speed only if the new time is at most this part of the old time


def blocks(program: Program, most: int = MOST) -> dict[str, tuple[str, ...]]:
    """Return the blocks of a program in graph order: the module path of each block, and the names of its nodes.

    The nodes of a block share the first k parts of their module path, with the largest k that gives at most ``most``
    blocks. Nodes without weights belong to the layer before them; nodes before the first layer belong to the first.

    Example: ``blocks(program)`` is ``{"stem": ("conv2d", "relu"), "stages.0": (...)}``.
    """
    paths = _paths(program.module)
    for depth in range(max((len(path) for path in paths.values()), default=1), 0, -1):
        found: dict[str, list[str]] = {}
        for name, path in paths.items():
            found.setdefault(".".join(path[:depth]), []).append(name)
        if len(found) <= most or depth == 1:
            break
    return {name: tuple(nodes) for name, nodes in found.items()}


def blocks_of_layers(program: Program, layers: Sequence[str]) -> list[str]:
    """Return the blocks of the layers of an artifact of ``program``, in the order of ``layers``, each once.

    ONNX Runtime names a layer after a node that it computes, with parts of its own around: the longest name that fits
    counts. A layer that is named otherwise has no block; in OpenVINO and TFLite these are all layers.

    Example: ``blocks_of_layers(program, ["node_conv2d_1_token_4"])`` is the block of the node ``conv2d_1``.
    """
    owner = {node: name for name, nodes in blocks(program).items() for node in nodes}
    found = []
    for layer in layers:
        held = [node for node in owner if re.match(rf"(?:node_)?{re.escape(node)}(?:$|_(?!\d))", layer)]
        found += [owner[max(held, key=len)]] if held else []
    return list(dict.fromkeys(found))


def _paths(module: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Return the module path of each operator call. A node without weights has the path of the node before it."""
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    own = {node: _path(node) for node in calls}
    current = next((path for path in own.values() if path), ("program",))
    paths = {}
    for node in calls:
        current = own[node] or current
        paths[node.name] = current
    return paths


def _path(node: fx.Node) -> tuple[str, ...]:
    """Return the path of the module whose weight a node reads, from the captured stack; passes rename weights."""
    if not any(source.op == "get_attr" for source in node.all_input_nodes):
        return ()
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return tuple(stack[-1][0].split(".")) if stack and stack[-1][0] else ()


def keep_float(program: Program, names: Collection[str]) -> Program:
    """Return the program with the named blocks marked to stay in float.

    Raises:
        ValueError: a name is not a block; the message lists the blocks.

    Example: ``keep_float(program, ["stages.0"])``.
    """
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


def sensitivities(program: Program, samples: Samples) -> dict[str, float]:
    """Return, for each block, the signal-to-noise ratio in dB of the outputs with only this block in simulated int8.

    A block without anything to quantise has 200 dB. A low value means a sensitive block.
    """
    ranges = activation_ranges(program, samples)
    expected = run_samples(program, samples)
    narrow = {node.name for node in readers(program.module)}

    def level(nodes: Collection[str]) -> float:
        return sqnr_db(expected, run_samples(simulate(program, ranges, only=narrow & set(nodes)), samples))

    return {name: level(nodes) for name, nodes in blocks(program).items()}


@dataclass(frozen=True)
class Assignment:
    """Record one tried assignment.

    kept: names of the blocks in float.
    accepted: whether the artifact was accepted; None if its time excluded it, so that nobody asked.
    time: time of the artifact, in any unit; None if it was refused.
    """

    kept: tuple[str, ...]
    accepted: bool | None
    time: float | None = None


def assign(
    levels: Mapping[str, float],
    accept: Callable[[tuple[str, ...]], bool],
    time: Callable[[tuple[str, ...]], float | None],
    trials: int = TRIALS,
    slow: Sequence[str] = (),
) -> tuple[Assignment | None, list[Assignment]]:
    """Return the assignment to use (None if none is accepted), and all assignments that were tried, in order.

    levels: signal-to-noise ratio of each block, as ``sensitivities`` returns it.
    accept: builds the artifact with the given blocks in float, and returns whether its accuracy is sufficient.
    time: returns the measured time of that artifact, in any unit; None if there is no such artifact.
    trials: the largest number of assignments to try, at least 1.
    slow: the blocks that lose time in int8, the slowest first; empty: unknown.

    1. Start with all blocks in int8. If that is refused: find the fewest of the most sensitive blocks with which the
       artifact is accepted, by bisection, assuming that more float blocks are more accurate. Result None if only all
       blocks in float would be accepted.
    2. Move each of these blocks back to int8, the least sensitive first. Keep the change if the artifact is accepted
       and not slower.
    3. Move each other block to float, or each of ``slow`` where they are known; else the most sensitive first. Keep the
       change if the artifact is accepted and more than 2 % faster: a runtime may have faster float kernels for a block.

    In cases 2 and 3 the artifact is timed first. ``accept`` is called only for one that is fast enough.
    """
    search = _Search(sorted(levels, key=lambda name: levels[name]), accept, time, trials)
    chosen = search.fewest_in_float()
    return (search.refined(chosen, slow) if chosen.accepted else None), search.tried


class _Search:
    """Search assignments of the blocks, and record the assignments that were tried.

    order: the names of the blocks, the most sensitive first.
    """

    def __init__(
        self,
        order: list[str],
        accept: Callable[[tuple[str, ...]], bool],
        time: Callable[[tuple[str, ...]], float | None],
        trials: int,
    ) -> None:
        self.tried: list[Assignment] = []
        self._order, self._accept, self._time, self._trials = order, accept, time, trials

    def fewest_in_float(self) -> Assignment:
        """Case 1: return the accepted assignment with the fewest blocks in float, or a refused one."""
        chosen = self._try(())
        low, high = 0, 0 if chosen.accepted else len(self._order)  # `low` is refused; `high` is accepted or all float
        while high - low > 1 and len(self.tried) < self._trials:
            middle = (low + high) // 2
            found = self._try(tuple(self._order[:middle]))
            low, high, chosen = (low, middle, found) if found.accepted else (middle, high, chosen)
        return chosen

    def refined(self, chosen: Assignment, slow: Sequence[str] = ()) -> Assignment:
        """Cases 2 and 3: return the fastest assignment that differs block by block from the accepted ``chosen``."""
        changes = self._changes(chosen, slow)
        for name, least in changes[: self._trials - len(self.tried)]:
            kept = tuple(each for each in self._order if (each in chosen.kept) != (each == name))
            if len(kept) == len(self._order):
                continue
            assert chosen.time is not None
            known = next((each for each in self.tried if each.kept == kept), None)
            found = known or self._try_faster(kept, chosen.time * least)
            if found.accepted and found.time is not None and found.time <= chosen.time * least:
                chosen = found
        return chosen

    def _changes(self, chosen: Assignment, slow: Sequence[str]) -> list[tuple[str, float]]:
        """Return the blocks that move, in order, and the part of the old time that the new one may take at most."""
        back = reversed(chosen.kept[:-1])  # case 2; without the last block, the artifact was refused in case 1
        forth = [name for name in slow or self._order if name not in chosen.kept]  # case 3
        return [*((name, 1.0) for name in back), *((name, _GAIN) for name in forth)]

    def _try(self, kept: tuple[str, ...]) -> Assignment:
        time = self._time(kept) if self._accept(kept) else None
        self.tried.append(Assignment(kept, time is not None, time))
        return self.tried[-1]

    def _try_faster(self, kept: tuple[str, ...], most: float) -> Assignment:
        time = self._time(kept)
        accepted = None if time is not None and time > most else time is not None and self._accept(kept)
        self.tried.append(Assignment(kept, accepted, None if accepted is False else time))
        return self.tried[-1]
