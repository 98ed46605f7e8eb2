"""Grow a network during its training: ``grow(study, rules, schedule)`` returns the space of the grown member."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from hnas.cost.flops import parameters
from hnas.growth.edits import GrowthProof, Morphism, Opening, TypeOpening, apply
from hnas.growth.network import GrowingNetwork
from hnas.growth.nodes import NodeCopy, NodeInsertion
from hnas.ranges import Positive, PositiveInt, Share
from hnas.sampling.draws import IDENTITY, relax, slot_types
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.training.loop import Observer, Schedule
from hnas.training.step import SubnetPath

_PROBE = 32  # examples of the proof of an edit
_WEAK = 0.5  # an option is closed below this share of an equal mixing weight
_LIGHT = 0.05  # the last node is closed below this share of the largest output weight
KINDS = ("depth", "nodes", "copy", "insert", "width", "type")  # edits in turn, where the space has them

Price = Callable[[Arch], float]


@dataclass(frozen=True)
class GrowthRules:
    """The rules of growth: the section [grow] of a recipe.

    mode: "prune_last" (default): grow, then choose one option of every soft slot. "alternate": also close weak options
        and a weak last node after every edit.
    trigger: "schedule" (default): an edit after every stage. "plateau": only if the metric on the search split has
        improved by less than ``enough`` of itself in the stage.
    enough: as above (0.02).
    stages: number of stages before the last one (4), of equal length; fewer where the training has fewer steps.
    finish: share of all steps that train the chosen member alone (0.3).
    max_weights: largest number of weights of the member; None (default): no limit.
    max_latency_ms: largest predicted latency of the member on ``device``; None (default): no limit.
    device: the device of ``max_latency_ms``.
    """

    mode: Literal["prune_last", "alternate"] = "prune_last"
    trigger: Literal["schedule", "plateau"] = "schedule"
    enough: Share = 0.02
    stages: PositiveInt = 4
    finish: Share = 0.3
    max_weights: PositiveInt | None = None
    max_latency_ms: Positive | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.max_latency_ms is None) != (self.device is None):
            raise ValueError("max_latency_ms is a limit on a device; give [grow] both of max_latency_ms and device")


def grow(
    study: Study,
    rules: GrowthRules,
    schedule: Schedule,
    *,
    start: Arch | None = None,
    price: Price | None = None,
    observer: Observer | None = None,
    log: list[dict[str, Any]] | None = None,
) -> Space:
    """Train and grow in stages. Return the space of the member that is left, whose weights are in the supernet.

    schedule: its steps are divided among the stages, each of which is a cosine cycle.
    start: a member with trained weights to grow from; None: the smallest sizes, with soft slots.
    price: returns the predicted latency of a member in ms, for ``rules.max_latency_ms``.
    observer: callbacks; ``on_message`` gets a line for each edit.
    log: receives the proofs of the edits, as JSON.

    1. Every stage trains the open part, weights and mixing weights together, on the training split.
    2. After a stage an edit is applied that keeps the function, of another kind than the one before: depth, nodes,
       copy, insert, width or type. It is drawn with the seed of the study among those that are possible and within the
       limits. Kernels, expansions and heads stay as they are.
    3. At the end every soft slot takes the option of the largest mixing weight with which the member is within the
       limits, and the member is trained alone.

    Raises:
        FunctionChanged: an edit changed the function.
        ValueError: the start is above a limit, or there is a limit of the latency and no price.
    """
    observer, log = observer or Observer(), [] if log is None else log
    say = observer.on_message or (lambda _: None)
    net = GrowingNetwork.begin(study.supernet, start)
    limits = _Limits(rules, price)
    if not limits(net):
        said = limits.describe(net, chosen(net))
        raise ValueError(f"the network to grow from is above the limit: it has {said}; give a larger limit")
    probe = study.task.inputs(study.task.held("calibration")[0][:_PROBE], net.space.example(net.arch))
    stages = _divided(schedule, rules)
    if len(stages) <= rules.stages:
        say(f"{schedule.steps} steps hold {len(stages) - 1} of the {rules.stages} stages of growth")
    known, turn = -float("inf"), 0
    for stage, cycle in enumerate(stages[:-1]):
        study.train(lambda *_: (SubnetPath(net.arch, net.gates() or None),), cycle, extra=net.mixing, observer=observer)
        if rules.trigger == "plateau":
            found = score(study, net)
            flat, known = found - known < rules.enough * abs(known), found
            if not flat:
                continue
        proof, turn = _grow_once(net, probe, limits, turn, Random(f"{study.seed}/growth/{stage}"))
        if proof is not None:
            log.append({"stage": stage, **proof.to_json()})
            say(proof.line())
        if rules.mode == "alternate":
            before = net.arch
            _close_weak(net)
            if not limits(net):
                net.arch = before
                net.supernet.changed()
    member = settle(net, limits.choose(net))
    say(f"the grown network has {limits.describe(net, member)}")
    study.train(lambda *_: (SubnetPath(member),), stages[-1], observer=observer)
    return _only(net.space, member)


def chosen(net: GrowingNetwork) -> Arch:
    """Return the member that takes the option of the largest mixing weight in every soft slot."""
    kept = {}
    for slot in net.space.slots:
        if isinstance(net.arch.get(f"{slot}.op"), tuple):
            weights = dict(zip(slot_types(net.space, slot), net.mixing[slot].detach().abs().tolist(), strict=True))
            kept[slot] = (max(net.open_types(slot), key=weights.__getitem__),)
    return relax(net.space, net.arch, kept)


@torch.no_grad()
def settle(net: GrowingNetwork, member: Arch | None = None) -> Arch:
    """Return the member, and multiply its weights by the mixing weights that they had.

    member: of the open part; None (default): the one of the largest mixing weights.

    1. A branch of a slot: its last layer ``out`` is multiplied. The member computes what the branch added.
    2. An input of a node of a cell: the matrix that reads it is multiplied.
    3. Other mixing weights of a cell have no weight that follows; the member is trained after this.
    """
    member, named = member or chosen(net), net.named()
    for slot in net.space.slots:
        if not isinstance(net.arch.get(f"{slot}.op"), tuple):
            continue
        kind = str(member[f"{slot}.op"])
        factor = float(net.mixing[slot].detach()[slot_types(net.space, slot).index(kind)])
        node, _, part = slot.rpartition(".")
        matrix = {"a": f"{node}.left.weight", "b": f"{node}.right.weight"}.get(part, "")
        for name in (matrix, f"{slot}.{kind}.out.weight", f"{slot}.{kind}.out.bias"):
            if name in named:
                named[name].mul_(factor)
    net.supernet.changed()
    return member


def score(study: Study, net: GrowingNetwork) -> float:
    """Return the task's metric of the open part on the search split."""
    return study.task.metric(*study.outputs(net.arch, "search", net.gates()))


def possible_edits(net: GrowingNetwork, kind: str) -> Iterator[Morphism]:
    """Yield the edits of one kind that are possible: "depth", "nodes", "copy", "insert", "width" or "type"."""
    space, found = net.space, list[Morphism]()
    if kind == "type":
        found += [TypeOpening(slot, k) for slot in space.slots for k in slot_types(space, slot) if k != IDENTITY]
    elif kind in ("copy", "insert"):
        found += [(NodeCopy if kind == "copy" else NodeInsertion)(k) for k in range(int(str(net.arch.get("nodes", 0))))]
    else:
        found += [_next_size(net, name) for name in net.arch if name.rpartition(".")[2] == kind]
    yield from (edit for edit in found if edit.possible(net))


def _next_size(net: GrowingNetwork, choice: str) -> Opening:
    """Return the opening of the next larger option of a size; of the present one where there is none."""
    options, present = net.space.choices[choice].options, net.arch[choice]
    return Opening(choice, options[min(options.index(present) + 1, len(options) - 1)])


def _grow_once(
    net: GrowingNetwork, probe: tuple[Tensor, ...], fits: Callable[[GrowingNetwork], bool], turn: int, rng: Random
) -> tuple[GrowthProof | None, int]:
    """Apply the first edit that fits, of the kind of ``turn`` or a later one; return its proof and the next turn."""
    for k in range(len(KINDS)):
        edits = list(possible_edits(net, KINDS[(turn + k) % len(KINDS)]))
        for edit in rng.sample(edits, len(edits)):
            if (proof := apply(net, edit, probe, accept=fits)) is not None:
                return proof, turn + k + 1
    return None, turn


@dataclass
class _Limits:
    """The limits of a growth. A call returns whether the chosen member of a network is within them.

    member: the last one that was; it is a member of the open part.
    """

    rules: GrowthRules
    price: Price | None
    member: Arch | None = None

    def __post_init__(self) -> None:
        if self.rules.max_latency_ms is not None and self.price is None:
            raise ValueError("max_latency_ms is a limit of the predicted latency; give price, which predicts it")

    def __call__(self, net: GrowingNetwork) -> bool:
        member = chosen(net)
        if admitted := self.admits(net, member):
            self.member = member
        return admitted

    def admits(self, net: GrowingNetwork, member: Arch) -> bool:
        """Return whether a member is within the limits."""
        rules, price = self.rules, self.price
        if rules.max_weights is not None and parameters(net.supernet.skeleton(member)) > rules.max_weights:
            return False
        return rules.max_latency_ms is None or price is None or price(member) <= rules.max_latency_ms

    def choose(self, net: GrowingNetwork) -> Arch:
        """Return the chosen member; if the last stage made it too large, as much of it as the limits allow.

        The mixing weights change after an edit, so that a costlier option can become the largest.
        """
        wanted, found = chosen(net), self.member
        if found is None or self.admits(net, wanted):
            return wanted
        for slot in (slot for slot in net.space.slots if isinstance(net.arch.get(f"{slot}.op"), tuple)):
            options = {s: (str(found[f"{s}.op"]),) for s in net.space.slots if f"{s}.op" in found}
            options[slot] = (str(wanted[f"{slot}.op"]),)
            changed = relax(net.space, net.arch, options)
            found = changed if self.admits(net, changed) else found
        return found

    def describe(self, net: GrowingNetwork, member: Arch) -> str:
        """Return the number of weights and the predicted latency of a member, beside the limits."""
        rules, found = self.rules, f"{parameters(net.supernet.skeleton(member))} weights"
        found += "" if rules.max_weights is None else f" (at most {rules.max_weights})"
        if self.price is None or rules.max_latency_ms is None:
            return found
        limit = f"at most {rules.max_latency_ms:.4g}"
        return f"{found}, a predicted latency of {self.price(member):.4g} ms on {rules.device} ({limit})"


def _divided(schedule: Schedule, rules: GrowthRules) -> list[Schedule]:
    """Return a schedule for each stage and one for the last; together they have the steps of ``schedule``.

    Every stage has at least one step, so that few steps have fewer stages than the rules.
    """
    rate, total = schedule.cycles[0][1], schedule.steps
    stages = min(rules.stages, total - 1)
    last = min(max(1, round(rules.finish * total)), total - stages)
    parts = [(total - last) // max(1, stages)] * (stages - 1)
    steps = [*parts, total - last - sum(parts), last] if stages else [last]
    return [replace(schedule, cycles=((count, rate),)) for count in steps]


@torch.no_grad()
def _close_weak(net: GrowingNetwork) -> None:
    """Close options and the last node whose weights are small (mode "alternate"); the function changes a little."""
    cell = net.supernet.union
    weights = getattr(cell, "weights", None)
    count = int(str(net.arch.get("nodes", 0)))
    if weights is not None and count > 1 and count - 1 in net.space.choices["nodes"].options:
        open_weights = weights[:count].abs()
        if bool(open_weights.max() > 0) and 0 < float(open_weights[-1] / open_weights.max()) < _LIGHT:
            net.arch = net.resized("nodes", count - 1)
    soft = {}
    for slot in net.space.slots:
        opened = net.open_types(slot)
        if not isinstance(net.arch.get(f"{slot}.op"), tuple):
            continue
        mixed = dict(zip(slot_types(net.space, slot), net.mixing[slot].abs().tolist(), strict=True))
        total = sum(mixed[kind] for kind in opened)
        # An option of weight zero was opened just now.
        soft[slot] = tuple(k for k in opened if mixed[k] == 0 or mixed[k] >= _WEAK / len(opened) * total) or opened[:1]
    net.arch = relax(net.space, net.arch, soft, single=True)
    net.supernet.changed()


def _only(space: Space, member: Arch) -> Space:
    """Return the space whose active choices have the option of ``member`` alone."""
    kept = {name: replace(c, options=(member[name],)) if name in member else c for name, c in space.choices.items()}
    return replace(space, choices=kept)
