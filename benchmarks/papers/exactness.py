"""C1: whether edits keep the function of a network, over random members, weights and inputs of every space that grows.

Each difference is measured here, on inputs that the proof of the edit has not seen too, and not read from the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable
from hnas.benchmarks.papers.sequences import SequenceData
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, Interval
from hnas.benchmarks.papers.supernets import space_of
from hnas.growth.edits import LIMIT, FunctionChanged, Morphism, Opening, apply, must_be_equal, only_rounding, shaken
from hnas.growth.loop import KINDS, possible_edits
from hnas.growth.network import GrowingNetwork
from hnas.sampling.draws import relax
from hnas.supernet import Supernet

_SIZES = ("depth", "nodes", "width", "kernel", "expansion", "heads")  # opened by ``Opening``
_KINDS = tuple(dict.fromkeys((*KINDS, *_SIZES)))
_MODES = ("train", "evaluation")
_EXAMPLES = 6
_NOISE = {1: 0.3, 2: 0.1}  # number of axes -> deviation that is added to the initial weights; 0.1 for more axes
_VISION: dict[str, Any] = {
    "classes": 4,
    "resolutions": [8, 12],
    "stem": 8,
    "widths": [[8, 16, 24], [16, 24]],
    "depths": [[1, 2, 3], [2, 3]],
    "strides": [2, 1],
    "head": 16,
    "kernels": [3, 5, 7],
    "expansions": [1, 2, 3],
    "heads": [1, 2, 4],
    "attention_tokens": 36,
}
_OTHER: dict[str, Any] = {
    "types": ["attention", "convnext", "mbconv"],
    "norm": "layer",
    "squeeze": True,
    "activations": ["relu", "hardswish", "gelu"],
}
_CELL: dict[str, Any] = {"features": 3, "outputs": 2, "window": 32, "widths": [8, 16, 24], "nodes": [1, 2, 3, 4, 5]}
_SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "recurrent_cell": ("recurrent_cell", _CELL),
    "hybrid_vision": ("hybrid_vision", _VISION),
    "hybrid_vision, layer norm and squeeze": ("hybrid_vision", {**_VISION, **_OTHER}),
}


@dataclass(frozen=True, kw_only=True)
class ExactnessSetting:
    """The setting of a part.

    data: random numbers; no data set is read.
    space, arguments: name and arguments of the space.
    members: networks to begin with.
    moves: edits by which each of them grows; every possible kind of edit is measured before each.
    """

    data: SequenceData
    space: str
    arguments: Mapping[str, Any]
    members: int
    moves: int


def exactness(_: Path | None, seed: int, setting: ExactnessSetting) -> Result:
    """Return kind -> counts of edits and the largest difference in each mode.

    edits: how many were made.
    refused: how many their own proof refused.
    unequal: how many must be bit-equal and are not.
    chaotic: how many networks make a rounding of their inputs as large as the difference, which is left out.
    exact: 1 if all of them must be bit-equal, else 0.
    """
    rng = Random(f"exactness/{seed}")
    supernet = Supernet(space_of(setting.space, setting.arguments), seed)
    initial = [p.detach().clone() for p in supernet.union.parameters()]
    found: dict[str, dict[str, float]] = {}
    for number in range(setting.members):
        drawn = torch.Generator().manual_seed(1000 * seed + number)
        net = GrowingNetwork.begin(supernet, None if number % 2 else supernet.space.sample(rng))
        for _move in range(setting.moves):
            if number % 4 > 1:
                _close_some(net, rng)
            _draw_weights(net, initial, drawn)
            shapes = net.space.example(net.arch)
            seen, unseen = (tuple(torch.randn(_EXAMPLES, *s, generator=drawn) for s in shapes) for _ in range(2))
            offered = {kind: edits for kind in _KINDS if (edits := list(_edits_of(net, kind)))}
            for kind, edits in offered.items():
                _add(found.setdefault(kind, _nothing()), _measure(net, rng.choice(edits), seen, unseen))
            if not offered:
                break
            _edit(net, rng.choice(rng.choice(list(offered.values()))))
    return {"kinds": found}


def _edits_of(net: GrowingNetwork, kind: str) -> Iterator[Morphism]:
    """Yield the possible edits of a kind; of a size, every larger option and not only the next one."""
    if kind not in _SIZES:
        yield from possible_edits(net, kind)
        return
    for name in net.arch:
        if name.rpartition(".")[2] == kind:
            edits = (Opening(name, option) for option in net.space.choices[name].options)
            yield from (edit for edit in edits if edit.possible(net))


@torch.no_grad()
def _draw_weights(net: GrowingNetwork, initial: Sequence[Tensor], drawn: torch.Generator) -> None:
    """Give the network weights that a training could have left: no zeros hide what an edit does.

    Closed options get mixing weights too, as those have that the mode "alternate" closes.
    """
    for parameter, before in zip(net.supernet.union.parameters(), initial, strict=True):
        noise = torch.randn(before.shape, generator=drawn)
        parameter.copy_(before + _NOISE.get(before.ndim, 0.1) * noise)
    for slot, mixing in net.mixing.items():
        if isinstance(net.arch.get(f"{slot}.op"), tuple):
            mixing.copy_((0.5 + torch.rand(mixing.shape, generator=drawn)) / len(net.open_types(slot)))
    net.supernet.changed()


def _close_some(net: GrowingNetwork, rng: Random) -> None:
    """Close random options of the soft slots, at least one stays open."""
    soft = {slot: net.open_types(slot) for slot in net.space.slots if isinstance(net.arch.get(f"{slot}.op"), tuple)}
    kept = {slot: rng.sample(opened, rng.randint(1, len(opened))) for slot, opened in soft.items()}
    net.arch = relax(net.space, net.arch, kept, single=True)
    net.supernet.changed()


def _measure(
    net: GrowingNetwork, edit: Morphism, seen: tuple[Tensor, ...], unseen: tuple[Tensor, ...]
) -> dict[str, float]:
    """Return the differences that an edit makes, and whether its own proof refuses it; the network stays as it is."""
    undo = _keep(net)
    old = [net.evaluate(inputs) for inputs in (seen, unseen)]
    moved = [net.evaluate(shaken(inputs)) for inputs in (seen, unseen)]
    try:
        apply(net, edit, seen)
    except FunctionChanged:
        _edit(net, edit)
        refused = 1.0
    else:
        refused = 0.0
    must = must_be_equal(net, edit)
    new = [net.evaluate(inputs) for inputs in (seen, unseen)]
    undo()
    found = {mode: max(_difference(a[k], b[k]) for a, b in zip(old, new, strict=True)) for k, mode in enumerate(_MODES)}
    equal = all(torch.equal(a[k], b[k]) for a, b in zip(old, new, strict=True) for k in range(len(_MODES)))
    counts = {"edits": 1.0, "refused": refused, "unequal": float(must and not equal), "exact": float(must)}
    if not must and max(found.values()) > LIMIT and all(map(only_rounding, old, new, moved)):
        return {**dict.fromkeys(_MODES, 0.0), **counts, "chaotic": 1.0}
    return {**found, **counts, "chaotic": 0.0}


@torch.no_grad()
def _edit(net: GrowingNetwork, edit: Morphism) -> None:
    """Edit without a proof."""
    edit.edit(net)
    net.supernet.changed()


def _difference(old: Tensor, new: Tensor) -> float:
    """Return the largest difference of an output, relative to the largest output; 1e9 where one is not finite."""
    found = float((new - old).abs().max() / old.abs().max().clamp_min(1e-12))
    return min(found, 1e9) if found == found else 1e9


def _keep(net: GrowingNetwork) -> Callable[[], None]:
    """Return a function that gives the network its present weights and open part."""
    tensors = [*net.named().values(), *net.mixing.values()]
    kept, arch = [tensor.detach().clone() for tensor in tensors], net.arch

    def undo() -> None:
        net.arch = arch
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
        net.supernet.changed()

    return undo


def _nothing() -> dict[str, float]:
    return dict.fromkeys((*_MODES, "edits", "refused", "unequal", "chaotic"), 0.0) | {"exact": 1.0}


def _add(total: dict[str, float], one: Mapping[str, float]) -> None:
    """Add the counts of an edit to those of its kind; keep the largest differences."""
    for name, value in one.items():
        found = total[name]
        total[name] = max(found, value) if name in _MODES else min(found, value) if name == "exact" else found + value


# --- the claim --------------------------------------------------------------------------------------------------------


def _parts_by_space(plan: StudyPlan) -> dict[str, list[StudyPart]]:
    members, moves = (4, 1) if plan.quick else (12, 5)
    data = SequenceData(name="random numbers", digest="of the seed")
    found = {}
    for title, (name, arguments) in _SPACES.items():
        if plan.quick and "window" in arguments:
            arguments = {**arguments, "window": 8}
        setting = ExactnessSetting(data=data, space=name, arguments=arguments, members=members, moves=moves)
        found[title] = [part(exactness, seed, setting, work=members * moves) for seed in range(plan.seeds)]
    return found


def _c1_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    return [each for listed in _parts_by_space(plan).values() for each in listed]


def _c1_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Judge every kind of edit by its worst case: bit-equal, or within the limit."""
    verdicts, rows, total = [], [], 0
    for title, listed in _parts_by_space(plan).items():
        results = [parts[each]["kinds"] for each in listed]
        for kind in (kind for kind in _KINDS if any(kind in result for result in results)):
            own = [result[kind] for result in results if kind in result]
            verdicts.append(_judge_kind(f"{title}, {kind}", own))
            counts = [sum(int(each[name]) for each in own) for name in ("edits", "refused", "unequal", "chaotic")]
            rows.append([title, kind, *counts, *(f"{max(each[mode] for each in own):.1e}" for mode in _MODES)])
            total += counts[0]
    counted = ("edits", "refused", "wrongly not bit-equal", "of chaotic networks")
    columns = ("space", "kind", *counted, *(f"largest, {mode}" for mode in _MODES))
    tables = [StudyTable("difference of an output, relative to the largest output", columns, rows)]
    scale = f"{total:,} edits of random members with random weights, float32; {plan.seeds} seeds"
    notes = [
        "the ends of an interval are the smallest and the largest seed; the answer is that of the worst edit",
        f"each edit is measured on {_EXAMPLES} examples that its proof has seen and on {_EXAMPLES} others",
        "evaluation: batch norms are recalibrated on the same examples before and after the edit",
        "chaotic: a rounding of the inputs changes the outputs as much as the edit does; the difference is left out",
    ]
    return StudyReport(scale, verdicts, tables, notes)


def _judge_kind(title: str, seeds: Sequence[Mapping[str, float]]) -> ClaimVerdict:
    """Return the verdict on one kind of edit, from the counts and largest differences of every seed."""
    if all(each["exact"] for each in seeds):
        values = [each["unequal"] for each in seeds]
        question, unit, limit = "every output is bit-equal after the edit", "edits that are not", 0.0
    else:
        values = [max(each[mode] for mode in _MODES) / LIMIT for each in seeds]
        question, unit, limit = f"no output changes by more than {LIMIT:g} of the largest one", "of this limit", 1.0
    wrong = any(each["refused"] or each["unequal"] for each in seeds)
    answer = HOLDS if max(values) <= limit and not wrong else FAILS
    ends = Interval(float(np.max(values)), min(values), max(values), len(values), tuple(values))
    return ClaimVerdict(f"{title}: {question}", answer, ends, unit)


CLAIMS = (
    Claim(
        "C1",
        "edits keep the function of a network",
        "network morphisms make a network larger and do not change its function",
        "openings of nodes, depth and types are bit-equal (with layer norms: as the others); "
        f"no other edit changes an output by more than {LIMIT:g} of the largest one",
        _c1_parts,
        _c1_judge,
    ),
)
