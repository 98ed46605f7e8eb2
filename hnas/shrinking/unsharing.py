"""Reduce weight sharing by copies of weights (PWSNAS' second strategy): a branch gets one copy for each context.

The abstract gives only the idea; the mechanism is our reconstruction. All architectures that share a weight train it.
Where their gradients disagree, the weight gets a copy for each type of the slot before. Dropped operations free the
parameters for the copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from hnas.journal import digest
from hnas.sampling.draws import DIVIDED
from hnas.shrinking.edits import Edit
from hnas.shrinking.loop import reachable_weights
from hnas.space import Arch, Option, Space
from hnas.study import Study


@dataclass(frozen=True)
class _Proposal:
    """A split that could be made.

    branch: the branch.
    context: the choice whose options get copies.
    options: the options of ``context``.
    degree: number of members of the space that use the branch.
    conflict: 1 - mean cosine between the gradients of the branch in two contexts, in [0, 2].
    cost: number of parameters of the copies.
    """

    branch: str
    context: str
    options: tuple[Option, ...]
    degree: int
    conflict: float
    cost: int

    @property
    def worth(self) -> float:
        """Return the sharing degree times the conflict."""
        return self.degree * self.conflict


def sharing_degree(space: Space, name: str, option: Option) -> int:
    """Return how many members of ``space`` have ``option`` in the choice ``name``, and so share its weights."""
    nothing = ""  # activates no other choice; members without the choice ``name`` are in both numbers

    def members(options: tuple[Option, ...]) -> int:
        return replace(space, choices={**space.choices, name: replace(space.choices[name], options=options)}).size

    return members((option, nothing)) - members((nothing,))


def propose_splits(study: Study, space: Space, *, draws: int = 2, seed: int = 0) -> list[_Proposal]:
    """Return a proposal for every branch, highest worth first. The contexts are the types of the slot before.

    draws: members and batches that measure each conflict (2).
    seed: of the draws (0).

    Left out are branches that are split already, branches without weights, branches whose context has one type, and
    the shares of a divided slot.
    """
    own = dict(study.supernet.union.named_parameters())
    found = []
    for before, slot in zip(space.slots, space.slots[1:], strict=False):
        context, name = f"{before}.op", f"{slot}.op"
        options = space.choices[context].options
        for option in space.choices[name].options:
            branch = f"{slot}.{option}"
            size = sum(p.numel() for n, p in own.items() if n.startswith(f"{branch}."))
            if not size or branch in study.supernet.splits or len(options) < 2 or DIVIDED in str(option):
                continue
            torn = gradient_conflict(study, space, name, option, context, draws=draws, seed=seed)
            shared = sharing_degree(space, name, option)
            found.append(_Proposal(branch, context, options, shared, torn, size * (len(options) - 1)))
    return sorted(found, key=lambda proposal: -proposal.worth)


def gradient_conflict(
    study: Study, space: Space, name: str, option: Option, context: str, *, draws: int = 2, seed: int = 0
) -> float:
    """Return 1 - mean cosine between the gradients of a branch under any two contexts; all else is equal.

    name: the choice of the branch's slot.
    option: the type of the branch.
    context: the choice that differs.
    draws: number of random members, each with one batch (2).
    seed: seed of the draws (0).

    The result is 0 if no gradient reaches the branch (its output is still zero), or if no member has both slots.
    """
    branch = f"{name.removesuffix('.op')}.{option}."
    cosines: list[float] = []
    for k in range(draws):
        rng = Random(f"{seed}/{branch}/{k}")
        arch = _containing(space, name, option, rng)
        if arch is None or context not in arch:
            continue
        step = rng.randrange(2**16)
        others = [space.changed(arch, context, other) for other in space.choices[context].options]
        gradients = [_gradient(study, other, branch, step) for other in others if other.get(name) == option]
        for i, a in enumerate(gradients):
            cosines += [float(torch.cosine_similarity(a, b, 0)) for b in gradients[:i] if bool(a.any() and b.any())]
    return 1 - sum(cosines) / len(cosines) if cosines else 0.0


def unshare(
    study: Study, space: Space, *, p_max: float = 1.5, draws: int = 2, seed: int = 0, stage: int = 0
) -> tuple[Edit, ...]:
    """Split branches of the supernet, highest worth first, within a budget of parameters; return the edits.

    p_max: the budget: largest number of parameters that ``space`` can use, including copies, as a factor of the
        parameters of the unsplit supernet (1.5). Dropped operations leave more budget for splits.
    draws: as in ``propose_splits``.
    seed: as in ``propose_splits``.
    stage: number of the stage in the edits.

    A branch without conflict is not split. The journal stores the edits, so a repeated run makes equal splits.

    Raises:
        ValueError: ``p_max`` is 0 or less.
    """
    if p_max <= 0:
        raise ValueError(f"p_max={p_max} is not a budget; give a factor of the supernet's parameters, such as 1.5")

    def decide() -> list[dict[str, Any]]:
        own = {name: p.numel() for name, p in study.supernet.union.named_parameters()}
        budget = p_max * sum(size for name, size in own.items() if study.supernet.origin(name) == name)
        left = budget - sum(own[name] for name in reachable_weights(study.supernet, space))
        chosen = []
        for proposal in propose_splits(study, space, draws=draws, seed=seed) if left > 0 else ():
            if proposal.worth > 0 and proposal.cost <= left:
                left -= proposal.cost
                score, options = float(proposal.worth), proposal.options
                edit = Edit("split", proposal.context, "", score, stage, proposal.branch, options)
                chosen.append(edit.to_json())
        return chosen

    made = {branch: list(split.options) for branch, split in study.supernet.splits.items()}
    record = {"p_max": p_max, "draws": draws, "seed": seed, "stage": stage, "splits": made, "space": space.to_json()}
    edits = tuple(Edit.from_json(edit) for edit in study.answer(f"splits/{digest(record)}", decide))
    for edit in edits:
        study.supernet.split(edit.branch, edit.choice, edit.options)
    return edits


def _containing(space: Space, name: str, option: Option, rng: Random) -> Arch | None:
    """Return a random member whose choice ``name`` is ``option``; None where 100 draws do not reach that choice."""
    for _ in range(100):
        arch = space.sample(rng)
        if name in arch:
            return space.changed(arch, name, option)
    return None


def _gradient(study: Study, arch: Arch, branch: str, step: int) -> Tensor:
    """Return the gradient of the loss on the images of ``step`` by the branch's weights, as one vector."""
    raw, labels = study.task.batch(step)
    where = study.supernet.where(arch).items()
    own = list(dict.fromkeys(shared for name, (shared, _) in where if name.startswith(branch)))
    outputs = study.supernet(arch, *study.task.inputs(raw, study.supernet.space.example(arch)))
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        study.task.loss(outputs, labels, None), own, allow_unused=True
    )
    return torch.cat([(p * 0 if g is None else g).detach().double().flatten() for p, g in zip(own, found, strict=True)])
