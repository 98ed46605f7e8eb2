"""The stages that shrink a space: train, score, drop, and again. ``run_stages(study, space, evidence, ...)`` runs them.

``hnas.shrinking.evidence`` scores operations; ``hnas.shrinking.edits`` has the rules by which they are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hnas.journal import digest
from hnas.sampling.draws import DIVIDED, follow_space
from hnas.shrinking.edits import Edit, Scores, ShrinkRules, drop_worst, replay, revive
from hnas.space import Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Observer, Pick, Schedule

Evidence = Callable[[Study, Space], Scores]


@dataclass(frozen=True)
class StageTraining:
    """The training of the supernet in every stage.

    schedules: one for each stage; may be endless.
    pick: training strategy, for instance ``spos.pick``.
    extra: the architecture parameters of ``pick``; they follow the space (``hnas.sampling.draws.follow_space``).
    observer: callbacks; ``on_message`` also gets one line after each stage.
    """

    schedules: Iterable[Schedule]
    pick: Pick
    extra: dict[str, nn.Parameter] = field(default_factory=dict)
    observer: Observer = field(default_factory=Observer)

    def train(self, study: Study, schedule: Schedule, space: Space) -> None:
        """Train the supernet of ``study`` on ``space`` by one of the schedules."""
        study.train(self.pick, schedule, space=space, extra=self.extra, observer=self.observer)

    def train_once(self, study: Study, space: Space) -> None:
        """Train by the first schedule alone."""
        self.train(study, next(iter(self.schedules)), space)


@dataclass(frozen=True)
class StageHooks:
    """Hooks of a method in the stages.

    legal: returns whether a space may be the result of a stage (guard 3 of ``drop_worst``); None: every space may.
    after: called after the drops of a stage with (space, all edits so far, stage); returns further edits.
    """

    legal: Callable[[Space], bool] | None = None
    after: Callable[[Space, Sequence[Edit], int], Sequence[Edit]] | None = None


def run_stages(
    study: Study,
    space: Space,
    evidence: Evidence,
    training: StageTraining,
    rules: ShrinkRules,
    *,
    key: Any,
    hooks: StageHooks | None = None,
    log: list[Edit] | None = None,
) -> Space:
    """Train, score and drop in stages; return the space that is left.

    There is one stage for each schedule of ``training``. The last stage only trains.

    evidence: (study, space) -> scores.
    rules: how many operations are dropped, and when the stages end.
    key: a JSON value with everything that the scores depend on. Its digest is part of the key under which the study's
        journal stores the edits of a stage, so that a repeated run makes the same edits.
    log: receives the edits.

    The stages also end when ``rules.until`` members or fewer are left, or when no option can be dropped.

    Raises:
        ValueError: ``rules.back`` is not smaller than ``rules.drop``, or the journal has stages of an earlier version.
    """
    if rules.drop is not None and rules.back >= rules.drop:
        raise ValueError(
            f"{rules.back} options are restored for {rules.drop} that are dropped: the space would never shrink; "
            "restore fewer"
        )
    _refuse_earlier_journal(study)
    hooks = hooks or StageHooks()
    whole, past = space, [] if log is None else log
    for stage, (schedule, last) in enumerate(_ahead(training.schedules)):
        training.train(study, schedule, space)
        if last or space.size <= rules.until or not _open(space):
            break

        def decide(space: Space = space, stage: int = stage) -> list[dict[str, Any]]:
            scores = evidence(study, space)
            left, edits = drop_worst(space, scores, rules, whole=whole, legal=hooks.legal, stage=stage)
            back = revive(left, whole, past, rules.back, stage)[1] if edits else ()
            return [edit.to_json() for edit in (*edits, *back)]

        record = {"key": key, "rules": rules, "stage": stage, "space": space.to_json()}
        edits = [Edit.from_json(edit) for edit in study.answer(f"stage/{digest(record)}", decide)]
        _report(training.observer, stage, edits)
        if not any(edit.kind == "drop" for edit in edits) and rules.drop is not None:
            break
        before, space = space, replay(edits, space, whole=whole)
        follow_space(training.extra, before, space)
        past.extend(edits)
        if hooks.after is not None:
            past.extend(hooks.after(space, past, stage))
    return space


def scored_choices(study: Study, space: Space) -> tuple[str, ...]:
    """Return the choices that an evidence scores: the types of slots that still offer two or more options.

    Raises:
        ValueError: the space is not part of the study's space, it has no choice left, or a weight in use is not
            finite. Such a weight would spoil the scores of all operations that are drawn together with it.
    """
    refuse_foreign(study, space)
    if space.size == 1:
        raise ValueError(f"the space {space.name!r} has one architecture; there is nothing to score")
    if not (names := _open(space)):
        raise ValueError(f"no slot of the space {space.name!r} has two operations left; there is nothing to score")
    for parameter in reachable_weights(study.supernet, space):
        if not bool(torch.isfinite(study.supernet.union.get_parameter(parameter)).all()):
            mend = "drop that operation, or go back to the last good checkpoint"
            raise ValueError(f"{parameter} holds NaN or infinite weights; {mend}")
    return names


def refuse_foreign(study: Study, space: Space) -> None:
    """Raise ValueError if ``space`` is not part of the study's space."""
    whole = study.supernet.space
    for name, choice in space.choices.items():
        known = whole.choices[name].options if name in whole.choices else ()
        for option in choice.options:
            if option not in known:
                differ = f"{name}={option!r} is not an option of it"
                raise ValueError(f"{space.name!r} is not part of the study's space {whole.name!r}: {differ}")
    if missing := [name for name in whole.choices if name not in space.choices]:
        raise ValueError(f"{space.name!r} is not part of the study's space {whole.name!r}: it lacks {missing[0]!r}")


def reachable_weights(supernet: Supernet, space: Space) -> tuple[str, ...]:
    """Return the names of the supernet's weights that members of ``space`` use: all but those of dropped operations."""
    dead = set()
    for slot in supernet.space.slots:
        of, left = supernet.space.choices[f"{slot}.op"].options, space.choices[f"{slot}.op"].options
        used = {kind for option in left for kind in str(option).split(DIVIDED)}
        dead |= {f"{slot}.{option}" for option in of if str(option) not in used}
    return tuple(
        name for name, _ in supernet.union.named_parameters() if not dead.intersection(_prefixes(supernet.origin(name)))
    )


def _refuse_earlier_journal(study: Study) -> None:
    """Raise ValueError for the stages of an earlier version, whose keys held the repr of their options."""
    if any(key.startswith(("shrink/", "unshare/")) for key in study.journal.entries):
        raise ValueError("the journal holds stages of an earlier version of hnas; begin again with another --out")


def _ahead(schedules: Iterable[Schedule]) -> Iterable[tuple[Schedule, bool]]:
    """Yield (schedule, whether it is the last). The schedules may be endless."""
    ahead = iter(schedules)
    current = next(ahead, None)
    while current is not None:
        following = next(ahead, None)
        yield current, following is None
        current = following


def _open(space: Space) -> tuple[str, ...]:
    return tuple(f"{slot}.op" for slot in space.slots if len(space.choices[f"{slot}.op"].options) > 1)


def _prefixes(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts))}


def _report(observer: Observer, stage: int, edits: Sequence[Edit]) -> None:
    dropped, back = (sum(edit.kind == kind for edit in edits) for kind in ("drop", "revive"))
    if observer.on_message:
        returned = f", {back} returned" if back else ""
        observer.on_message(f"stage {stage}: {dropped} operations dropped{returned}")
