"""Shrinking a space: the one loop, its guards, and the log of edits from which a shrunken space can be made again.

What an operation is worth is evidence (``hnas.shrinking.evidence``); here is only what may be done about it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hnas.sampling.draws import DIVIDED, follow
from hnas.space import Option, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Pick, Schedule

_Scores = Mapping[tuple[str, Option], float]  # (choice, option) -> worth; the lowest goes first


@dataclass(frozen=True)
class Edit:
    """One line of the log.

    1. drop: ``option`` of ``choice`` is gone, for its ``score``.
    2. revive: it is back.
    3. split: ``branch`` has a copy of its weights for each of ``options`` of ``choice`` but the first.
    """

    kind: str
    choice: str
    option: Option = ""
    score: float | None = None
    stage: int = 0
    branch: str = ""
    options: tuple[Option, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The edit as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Edit:
        """The edit that ``to_json`` wrote; ValueError for anything else."""
        try:
            edit = cls(**record)
        except TypeError as error:
            raise ValueError(f"{dict(record)} is no edit of a space: {error}") from None
        if edit.kind not in ("drop", "revive", "split"):
            raise ValueError(f"no edit {edit.kind!r}; known: drop, revive, split")
        return replace(edit, option=_plain(edit.option), options=tuple(_plain(o) for o in edit.options))


def shrink(
    space: Space,
    scores: _Scores,
    drop: int | None = None,
    *,
    threshold: float | None = None,
    keep: int = 1,
    spread: float = 0.5,
    force: bool = False,
    whole: Space | None = None,
    legal: Callable[[Space], bool] | None = None,
    stage: int = 0,
) -> tuple[Space, tuple[Edit, ...]]:
    """The space less its ``drop`` worst options (all where None) of those that score ``threshold`` or less.

    An option without a score stays. One whose removal would break a guard is passed over, and the next one goes:
    1. a choice keeps at least ``keep`` options, always;
    2. an operation type does not vanish from more than a share ``spread`` of the slots that offer it in ``whole``
       (default: ``space``, before this call), unless ``force``;
    3. what is left is ``legal``, if given: such as that some member still fits a budget.
    """
    if drop is None and threshold is None:
        raise ValueError("nothing says what to drop; give drop (how many) or threshold (the highest score that goes)")
    order = _order(space, scores)
    left = space
    edits: list[Edit] = []
    offered = _slots_by_type(whole or space)
    for name, option in order:
        if len(edits) == drop or (threshold is not None and scores[name, option] > threshold):
            break
        if len(left.choices[name].options) <= max(1, keep):
            continue
        if name.endswith(".op") and not force:
            still = sum(option in left.choices[slot].options for slot in offered[option])
            if len(offered[option]) - still + 1 > spread * len(offered[option]):
                continue
        smaller = left.without(name, option)
        if legal is not None and not legal(smaller):
            continue
        left = smaller
        edits.append(Edit("drop", name, option, float(scores[name, option]), stage))
    return left, tuple(edits)


def revive(space: Space, whole: Space, log: Sequence[Edit], count: int, stage: int) -> tuple[Space, tuple[Edit, ...]]:
    """The space with up to ``count`` options back: those dropped in earlier stages with the highest scores, once.

    A late bloomer gets a second training and is scored again (NSE, arXiv 2010.13501, keeps such a pool).
    """
    once = {(edit.choice, edit.option) for edit in log if edit.kind == "revive"}
    gone = [
        edit for edit in log if edit.kind == "drop" and edit.stage < stage and (edit.choice, edit.option) not in once
    ]
    gone.sort(key=lambda edit: -(edit.score or 0.0))
    back = tuple(Edit("revive", edit.choice, edit.option, edit.score, stage) for edit in gone[:count])
    return replay(back, space, whole=whole), back


def replay(log: Iterable[Edit], space: Space, *, whole: Space | None = None, supernet: Supernet | None = None) -> Space:
    """What ``space`` becomes by the edits of ``log``; splits are made in ``supernet`` where one is given."""
    whole = whole or space
    for edit in log:
        if edit.kind == "drop":
            space = space.without(edit.choice, edit.option)
        elif edit.kind == "revive":
            space = _with(space, whole, edit.choice, edit.option)
        elif supernet is not None:
            supernet.split(edit.branch, edit.choice, edit.options)
    return space


def run(
    study: Study,
    space: Space,
    evidence: Callable[[Study, Space], _Scores],
    schedules: Iterable[Schedule],
    pick: Pick,
    *,
    name: str,
    drop: int | None = None,
    threshold: float | None = None,
    keep: int = 1,
    spread: float = 0.5,
    force: bool = False,
    back: int = 0,
    until: int = 1,
    legal: Callable[[Space], bool] | None = None,
    after: Callable[[Space, Sequence[Edit], int], Sequence[Edit]] | None = None,
    extra: dict[str, nn.Parameter] | None = None,
    log: list[Edit] | None = None,
    advance: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Space:
    """Train on ``space``, score, shrink, and again, a stage for each schedule; the last stage only trains.

    It also ends where ``until`` members or fewer are left, or nothing may be dropped. back: how many dropped options
    return at each stage, for one more hearing. legal: of ``shrink``. after: edits that follow a stage's, given the
    shrunken space. extra: the architecture parameters that ``pick`` has, trained with it; they follow the space
    (``hnas.sampling.draws.follow``). Finished stages answer from the study's journal under ``name``, which has to say
    everything that the scores hang on. ``log`` receives the edits, ``advance`` each step of a stage, ``say`` a line a
    stage.
    """
    if drop is not None and back >= drop:
        raise ValueError(f"{back} options return for {drop} that go: the space would never shrink; let fewer return")
    whole, say = space, say or (lambda _: None)
    past = [] if log is None else log
    rules = {"threshold": threshold, "keep": keep, "spread": spread, "force": force, "whole": whole, "legal": legal}
    for stage, (schedule, last) in enumerate(_ahead(schedules)):
        study.train(pick, schedule, space=space, extra=extra, advance=advance, say=say)
        if last or space.size <= until or not _open(space):
            break
        decide = partial(_decide, study, space, evidence, drop, rules, back, tuple(past), stage)
        answer = study.answer(f"shrink/{name}/{stage}/{_digest(space)}", decide)
        edits = [Edit.from_json(record) for record in answer]
        say(f"stage {stage}: {_summary(edits)}")
        if not any(edit.kind == "drop" for edit in edits) and drop is not None:
            break
        before, space = space, replay(edits, space, whole=whole)
        follow(extra or {}, before, space)
        past += edits
        if after is not None:
            past += after(space, past, stage)
    return space


def scored(study: Study, space: Space) -> tuple[str, ...]:
    """The choices of an operation type that still offer two; one line says why there is nothing to score.

    ValueError for a space that is no part of the study's, one without a decision, or a weight in use that is not
    finite: a mean over it would condemn every operation that was drawn beside it.
    """
    refuse_foreign(study, space)
    if space.size == 1:
        raise ValueError(f"the space {space.name!r} has one architecture; there is nothing to score")
    if not (names := _open(space)):
        raise ValueError(f"no slot of the space {space.name!r} has two operations left; there is nothing to score")
    for parameter in living(study.supernet, space):
        if not bool(torch.isfinite(study.supernet.union.get_parameter(parameter)).all()):
            mend = "drop that operation, or go back to the last good checkpoint"
            raise ValueError(f"{parameter} holds NaN or infinite weights; {mend}")
    return names


def refuse_foreign(study: Study, space: Space) -> None:
    """ValueError for a space that is no part of the study's."""
    whole = study.supernet.space
    for name, choice in space.choices.items():
        known = whole.choices[name].options if name in whole.choices else ()
        for option in choice.options:
            if option not in known:
                differ = f"{name}={option!r} is no option of it"
                raise ValueError(f"{space.name!r} is no part of the study's space {whole.name!r}: {differ}")
    if missing := [name for name in whole.choices if name not in space.choices]:
        raise ValueError(f"{space.name!r} is no part of the study's space {whole.name!r}: it lacks {missing[0]!r}")


def living(supernet: Supernet, space: Space) -> tuple[str, ...]:
    """The names of the supernet's weights that a member of ``space`` can use: none of a dropped operation."""
    dead = set()
    for slot in supernet.space.slots:
        of, left = supernet.space.choices[f"{slot}.op"].options, space.choices[f"{slot}.op"].options
        used = {kind for option in left for kind in str(option).split(DIVIDED)}
        dead |= {f"{slot}.{option}" for option in of if str(option) not in used}
    return tuple(
        name for name, _ in supernet.union.named_parameters() if not dead.intersection(_prefixes(supernet.origin(name)))
    )


def _decide(
    study: Study,
    space: Space,
    evidence: Callable[[Study, Space], _Scores],
    drop: int | None,
    rules: Mapping[str, Any],
    back: int,
    log: Sequence[Edit],
    stage: int,
) -> list[dict[str, Any]]:
    """The edits of one stage, as JSON: what goes, and what returns of what went before."""
    left, edits = shrink(space, evidence(study, space), drop, stage=stage, **rules)
    returned = revive(left, rules["whole"], log, back, stage)[1] if edits else ()
    return [edit.to_json() for edit in (*edits, *returned)]


def _ahead(schedules: Iterable[Schedule]) -> Iterable[tuple[Schedule, bool]]:
    """Each schedule, and whether it is the last; there may be no end to them."""
    ahead = iter(schedules)
    current = next(ahead, None)
    while current is not None:
        following = next(ahead, None)
        yield current, following is None
        current = following


def _order(space: Space, scores: _Scores) -> list[tuple[str, Option]]:
    """The scored options of ``space``, worst first; equal ones in the order of the space."""
    places = [(name, option) for name, choice in space.choices.items() for option in choice.options]
    for (name, option), score in scores.items():
        if (name, option) not in places:
            raise ValueError(f"{name}={option!r} has a score but is no option of this space; score the space at hand")
        if math.isnan(score):
            raise ValueError(f"the score of {name}={option!r} is NaN; it cannot be ranked")
    return sorted((place for place in places if place in scores), key=lambda place: scores[place])


def _slots_by_type(space: Space) -> dict[Option, list[str]]:
    found: dict[Option, list[str]] = {}
    for slot in space.slots:
        for option in space.choices[f"{slot}.op"].options:
            found.setdefault(option, []).append(f"{slot}.op")
    return found


def _with(space: Space, whole: Space, name: str, option: Option) -> Space:
    kept = tuple(o for o in whole.choices[name].options if o == option or o in space.choices[name].options)
    return replace(space, choices={**space.choices, name: replace(space.choices[name], options=kept)})


def _open(space: Space) -> tuple[str, ...]:
    return tuple(f"{slot}.op" for slot in space.slots if len(space.choices[f"{slot}.op"].options) > 1)


def _prefixes(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts))}


def _digest(space: Space) -> str:
    return hashlib.sha256(json.dumps(space.to_json(), sort_keys=True).encode()).hexdigest()[:12]


def _summary(edits: Sequence[Edit]) -> str:
    counts = {kind: sum(edit.kind == kind for edit in edits) for kind in ("drop", "revive")}
    returned = f", {counts['revive']} returned" if counts["revive"] else ""
    return f"{counts['drop']} operations dropped{returned}"


def _plain(option: Any) -> Any:
    return tuple(option) if isinstance(option, list) else option
