"""The angle of ABS (arXiv 2004.13431, section 3.2): an operation scores the mean angle of children that contain it.

A large angle between initial and trained weights means that the weights have learned much, so a larger angle is better.
In a space of mixed types the raw form mostly compares the types, because some types have larger angles than others.
The other forms correct this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from hnas.ranges import Count, PositiveInt
from hnas.shrinking import angles, children
from hnas.shrinking.angles import AngleBasis, AngleTable
from hnas.shrinking.children import Rows
from hnas.shrinking.graph import Floats
from hnas.shrinking.loop import scored_choices
from hnas.space import Arch, Option, Space
from hnas.study import Study

Form = Literal["raw", "block", "standardised", "slots"]
FORMS: tuple[Form, ...] = get_args(Form)
_WHOLE = ("raw", "slots")  # forms that measure the whole child, not single blocks


def scores(
    study: Study,
    space: Space,
    *,
    samples: PositiveInt = 1000,
    form: Form = "raw",
    vectors: bool = False,
    balance: str | None = None,
    seed: Count = 0,
    basis: AngleBasis | None = None,
) -> dict[tuple[str, Option], float]:
    """Return {(choice, option): angle}, in radians unless standardised.

    samples: children for each operation (1000); one child serves all operations that it contains.
    form: one of four.
        1. "raw": the mean angle of the children that contain the operation, as published.
        2. "block": the mean angle of the operation's own weights.
        3. "standardised": case 2 minus the mean over all slots of its type, in standard deviations; 0 for a type
           without weights.
        4. "slots": case 1 without the weights that every child has (stem, classifier, reduction blocks).
    vectors: whether weights of one axis (norms, biases) count (False).
    balance: an option ("identity") whose number in a child is drawn first; None: no such option.
    seed: of the children (0).
    basis: what angles are measured from; None: the initial weights.
    """
    _refuse_unknown(form)
    names = scored_choices(study, space)
    table = AngleTable(study, space, basis, vectors=vectors)
    rows = angles.sample_rows(space, samples, seed, balance)
    if form in _WHOLE:  # cases 1 and 4
        values = table.angles(rows, fixed=form == "raw")
        found = _means(space, names, rows, dict.fromkeys(names, values))
        return {key: value for key, value in found.items() if np.isfinite(value)}
    # Cases 2 and 3. Slots with one option left are included, because they are part of the mean of a type.
    own = _own(table, space, rows, [f"{slot}.op" for slot in space.slots])
    if form == "standardised":  # case 3
        own = angles.standardise(own)
    return {key: value for key, value in own.items() if key[0] in names and np.isfinite(value)}


def angles_of(
    study: Study,
    archs: Sequence[Arch],
    *,
    form: Form = "raw",
    space: Space | None = None,
    vectors: bool = False,
    basis: AngleBasis | None = None,
) -> Floats:
    """Return [archs]: the angle of each architecture, in radians unless standardised.

    form: as in ``scores``; "block" is the mean over the blocks, "standardised" the mean of their z.
    space: the space of the architectures; None: the study's.
    vectors: as in ``scores``.
    basis: what angles are measured from; None: the initial weights.
    """
    _refuse_unknown(form)
    space = space or study.supernet.space
    table = AngleTable(study, space, basis, vectors=vectors)
    rows = children.rows_of(space, archs)
    if form in _WHOLE:
        return table.angles(rows, fixed=form == "raw")
    blocks = table.blocks(rows)
    if form == "standardised":
        names = [f"{slot}.op" for slot in space.slots]
        z = angles.standardise(_own(table, space, rows, names))
        for k, name in enumerate(names):
            worth = np.array([z[name, option] for option in space.choices[name].options] + [np.nan])
            blocks[:, k] = np.where(np.isfinite(blocks[:, k]), worth[rows[:, children.column_of(space, name)]], np.nan)
    known = np.isfinite(blocks)
    means: Floats = np.where(known, blocks, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    return means


def _own(table: AngleTable, space: Space, rows: Rows, names: Sequence[str]) -> dict[tuple[str, Option], float]:
    """Return the mean angle of each operation's own weights; NaN for an operation without weights."""
    blocks = table.blocks(rows)
    values = {f"{slot}.op": blocks[:, k] for k, slot in enumerate(table.slots)}
    return _means(space, names, rows, {name: values[name] for name in names})


def _means(
    space: Space, names: Sequence[str], rows: Rows, values: dict[str, Floats]
) -> dict[tuple[str, Option], float]:
    found: dict[tuple[str, Option], float] = {}
    for name in names:
        options = space.choices[name].options
        means = children.mean_by_option(rows, children.column_of(space, name), len(options), values[name])
        found |= {(name, option): float(mean) for option, mean in zip(options, means, strict=True)}
    return found


def _refuse_unknown(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"no form {form!r} of the angle; known: {', '.join(FORMS)}")
