"""Edits of a space: the rules and guards by which options are dropped, and the log that makes the space again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hnas.ranges import Count, PositiveInt, Share
from hnas.space import Option, Space
from hnas.supernet import Supernet

Scores = Mapping[tuple[str, Option], float]  # (choice, option) -> worth; the lowest are dropped first


@dataclass(frozen=True)
class Edit:
    """One edit of a space or of its supernet.

    kind: one of three.
        "drop": ``option`` of ``choice`` was removed, because of its ``score``.
        "revive": ``option`` of ``choice`` was restored.
        "split": ``branch`` got a copy of its weights for each of ``options`` of ``choice``, except the first.
    stage: number of the stage after which the edit was made.
    """

    kind: str
    choice: str
    option: Option = ""
    score: float | None = None
    stage: int = 0
    branch: str = ""
    options: tuple[Option, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the edit as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Edit:
        """Return the edit that ``to_json`` wrote; raise ValueError for anything else."""
        try:
            edit = cls(**record)
        except TypeError as error:
            raise ValueError(f"{dict(record)} is not an edit of a space: {error}") from None
        if edit.kind not in ("drop", "revive", "split"):
            raise ValueError(f"no edit {edit.kind!r}; known: drop, revive, split")
        return replace(edit, option=_plain(edit.option), options=tuple(_plain(o) for o in edit.options))


@dataclass(frozen=True)
class ShrinkRules:
    """Rules of the drops after a stage, and of the end of shrinking.

    drop: number of operations to drop after a stage; None (default): all that score ``threshold`` or less.
    threshold: the highest score that is dropped, in the unit of the evidence; None (default): no limit.
    keep: smallest number of options that every choice keeps (1).
    spread: an operation type may be dropped from at most this share of the slots that offered it at first (0.5).
    force: switch off the guard ``spread`` (False).
    back: number of dropped options that are restored after each stage (0). Each option is restored at most once.
    until: stop when this number of members or fewer are left (1).
    """

    drop: PositiveInt | None = None
    threshold: Share | None = None
    keep: PositiveInt = 1
    spread: Share = 0.5
    force: bool = False
    back: Count = 0
    until: PositiveInt = 1


def drop_worst(
    space: Space,
    scores: Scores,
    rules: ShrinkRules,
    *,
    whole: Space | None = None,
    legal: Callable[[Space], bool] | None = None,
    stage: int = 0,
) -> tuple[Space, tuple[Edit, ...]]:
    """Return the space without its worst options, and the edits.

    whole: the space before the first stage, for guard 2; None: ``space``.
    legal: guard 3; None: every space is legal.
    stage: number of the stage in the edits.

    An option without a score stays. An option whose removal would break a guard is skipped, and the next one is tried:

    1. a choice keeps at least ``rules.keep`` options, always;
    2. an operation type does not vanish from more than a share ``rules.spread`` of the slots that offer it in
       ``whole``, unless ``rules.force``;
    3. the remaining space is ``legal``: for instance, some member still meets a constraint.

    Raises:
        ValueError: neither ``rules.drop`` nor ``rules.threshold`` is given, or a score is NaN or of an unknown option.
    """
    if rules.drop is None and rules.threshold is None:
        raise ValueError("nothing says what to drop; give drop (how many) or threshold (the highest score that goes)")
    left = space
    edits: list[Edit] = []
    offered = _slots_by_type(whole or space)
    for name, option in _order(space, scores):
        if len(edits) == rules.drop or (rules.threshold is not None and scores[name, option] > rules.threshold):
            break
        if len(left.choices[name].options) <= max(1, rules.keep):  # case 1
            continue
        if not rules.force and _vanishes(left, name, option, offered, rules.spread):  # case 2
            continue
        smaller = left.without(name, option)
        if legal is not None and not legal(smaller):  # case 3
            continue
        left = smaller
        edits.append(Edit("drop", name, option, float(scores[name, option]), stage))
    return left, tuple(edits)


def revive(space: Space, whole: Space, log: Sequence[Edit], count: int, stage: int) -> tuple[Space, tuple[Edit, ...]]:
    """Return the space with up to ``count`` options restored, and the edits.

    Restored are the options with the highest scores that earlier stages dropped. Each option is restored at most once,
    and is then trained and scored again (NSE, arXiv 2010.13501, keeps such a pool).
    """
    once = {(edit.choice, edit.option) for edit in log if edit.kind == "revive"}
    gone = [
        edit for edit in log if edit.kind == "drop" and edit.stage < stage and (edit.choice, edit.option) not in once
    ]
    gone.sort(key=lambda edit: -(edit.score or 0.0))
    back = tuple(Edit("revive", edit.choice, edit.option, edit.score, stage) for edit in gone[:count])
    return replay(back, space, whole=whole), back


def replay(log: Iterable[Edit], space: Space, *, whole: Space | None = None, supernet: Supernet | None = None) -> Space:
    """Return ``space`` after the edits of ``log``.

    whole: where restored options come from; None: ``space``.
    supernet: where branches are split; None: splits are ignored.

        left = replay([Edit.from_json(edit) for edit in record["edits"]], space)
    """
    whole = whole or space
    for edit in log:
        if edit.kind == "drop":
            space = space.without(edit.choice, edit.option)
        elif edit.kind == "revive":
            space = _with(space, whole, edit.choice, edit.option)
        elif supernet is not None:
            supernet.split(edit.branch, edit.choice, edit.options)
    return space


def _order(space: Space, scores: Scores) -> list[tuple[str, Option]]:
    """Return the scored options of ``space``, worst first; equal ones in the order of the space."""
    places = [(name, option) for name, choice in space.choices.items() for option in choice.options]
    for (name, option), score in scores.items():
        if (name, option) not in places:
            raise ValueError(
                f"{name}={option!r} has a score but is not an option of this space; score the current space"
            )
        if math.isnan(score):
            raise ValueError(f"the score of {name}={option!r} is NaN; it cannot be ranked")
    return sorted((place for place in places if place in scores), key=lambda place: scores[place])


def _vanishes(left: Space, name: str, option: Option, offered: Mapping[Option, list[str]], spread: float) -> bool:
    """Return whether removing ``option`` here takes its type from more than a share ``spread`` of its slots."""
    if not name.endswith(".op"):
        return False
    still = sum(option in left.choices[slot].options for slot in offered[option])
    return len(offered[option]) - still + 1 > spread * len(offered[option])


def _slots_by_type(space: Space) -> dict[Option, list[str]]:
    found: dict[Option, list[str]] = {}
    for slot in space.slots:
        for option in space.choices[f"{slot}.op"].options:
            found.setdefault(option, []).append(f"{slot}.op")
    return found


def _with(space: Space, whole: Space, name: str, option: Option) -> Space:
    kept = tuple(o for o in whole.choices[name].options if o == option or o in space.choices[name].options)
    return replace(space, choices={**space.choices, name: replace(space.choices[name], options=kept)})


def _plain(option: Any) -> Any:
    return tuple(option) if isinstance(option, list) else option
