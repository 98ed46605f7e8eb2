"""Less weight sharing by more parameters (PWSNAS' second strategy): surviving branches get copies by context.

The abstract gives the idea, the mechanism is our reconstruction. A weight that many architectures share is pulled by
all of them; where their gradients disagree, it gets a copy for each type of the slot before, paid for by what was
dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from hnas.sampling.draws import DIVIDED
from hnas.shrinking.loop import Edit, living
from hnas.space import Arch, Option, Space
from hnas.study import Study


@dataclass(frozen=True)
class _Proposal:
    """A split that could be made, and why.

    degree: members of the space that use the branch; conflict: 1 - mean cosine of its gradients between contexts, in
    [0, 2]; cost: parameters of the copies.
    """

    branch: str
    context: str
    options: tuple[Option, ...]
    degree: int
    conflict: float
    cost: int

    @property
    def worth(self) -> float:
        """Sharing degree times conflict."""
        return self.degree * self.conflict


def degree(space: Space, name: str, option: Option) -> int:
    """How many members of ``space`` take ``option`` of the choice ``name``: they share its weights."""
    nothing = ""  # wakes no other choice; members that do not reach ``name`` are counted on both sides

    def members(options: tuple[Option, ...]) -> int:
        return replace(space, choices={**space.choices, name: replace(space.choices[name], options=options)}).size

    return members((option, nothing)) - members((nothing,))


def proposals(study: Study, space: Space, *, draws: int = 2, seed: int = 0) -> list[_Proposal]:
    """Every branch of a slot with the types of the slot before as contexts, the most shared and torn first.

    Branches that are split already, have no weights, or whose context has one type are left out, as are the shares of a
    divided slot. ``draws`` members and batches measure each conflict.
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
            torn = conflict(study, space, name, option, context, draws=draws, seed=seed)
            shared = degree(space, name, option)
            found.append(_Proposal(branch, context, options, shared, torn, size * (len(options) - 1)))
    return sorted(found, key=lambda proposal: -proposal.worth)


def conflict(
    study: Study, space: Space, name: str, option: Option, context: str, *, draws: int = 2, seed: int = 0
) -> float:
    """1 - mean cosine between the gradients of a branch under any two contexts, all else and the images being equal.

    0 where no gradient reaches it (a branch that still adds nothing) or no member has both slots.
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
    """Split branches of the supernet in order of worth, as long as its living weights fit into the budget.

    p_max: how many times the parameters of the unsplit supernet those that ``space`` can still use may come to, copies
    included: every dropped operation pays for a split. A branch without conflict is not split. Journalled, so that a
    replay splits alike.
    """
    if p_max <= 0:
        raise ValueError(f"p_max={p_max} is no budget; it is a factor of the supernet's parameters, for instance 1.5")

    def decide() -> list[dict[str, Any]]:
        own = {name: p.numel() for name, p in study.supernet.union.named_parameters()}
        budget = p_max * sum(size for name, size in own.items() if study.supernet.origin(name) == name)
        left = budget - sum(own[name] for name in living(study.supernet, space))
        chosen = []
        for proposal in proposals(study, space, draws=draws, seed=seed) if left > 0 else ():
            if proposal.worth > 0 and proposal.cost <= left:
                left -= proposal.cost
                score, options = float(proposal.worth), proposal.options
                edit = Edit("split", proposal.context, "", score, stage, proposal.branch, options)
                chosen.append(edit.to_json())
        return chosen

    log = f"unshare/{p_max}/{draws}/{seed}/{stage}/{len(study.supernet.splits)}/{study.supernet.space.name}"
    edits = tuple(Edit.from_json(record) for record in study.answer(log, decide))
    for edit in edits:
        study.supernet.split(edit.branch, edit.choice, edit.options)
    return edits


def _containing(space: Space, name: str, option: Option, rng: Random) -> Arch | None:
    """A random member whose choice ``name`` is ``option``; None where many draws do not reach that choice."""
    for _ in range(100):
        arch = space.sample(rng)
        if name in arch:
            return space.changed(arch, name, option)
    return None


def _gradient(study: Study, arch: Arch, branch: str, step: int) -> Tensor:
    """The gradient of the task's loss on the images of ``step`` by the branch's weights, laid out as one vector."""
    raw, labels = study.task.batch(step)
    where = study.supernet.where(arch).items()
    own = list(dict.fromkeys(shared for name, (shared, _) in where if name.startswith(branch)))
    outputs = study.supernet(arch, *study.task.inputs(raw, study.supernet.space.example(arch)))
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        study.task.loss(outputs, labels, None), own, allow_unused=True
    )
    return torch.cat([(p * 0 if g is None else g).detach().double().flatten() for p, g in zip(own, found, strict=True)])
