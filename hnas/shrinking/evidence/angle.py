"""The angle of ABS (arXiv 2004.13431, section 3.2): an operation is worth the mean angle of children that contain it.

Weights that training has turned far from their initialisation have learnt; the larger the angle, the better. In a space
of mixed types the raw form mistakes speed for worth, hence ``form``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hnas.shrinking import angles, children
from hnas.shrinking import loop as shrinking
from hnas.shrinking.angles import Floats, Graph, Snapshot, Table
from hnas.shrinking.children import Rows
from hnas.space import Arch, Option, Space
from hnas.study import Study

FORMS = ("raw", "block", "standardised", "slots")
WHOLE = ("raw", "slots")  # of the whole child, not of blocks


def scores(
    study: Study,
    space: Space,
    *,
    samples: int = 1000,
    form: str = "raw",
    graph: Graph | None = None,
    reference: Snapshot | None = None,
    vectors: bool = False,
    balance: Option | None = None,
    seed: int = 0,
) -> dict[tuple[str, Option], float]:
    """Of ``samples`` children for each operation, shared between operations:

    1. "raw": the mean angle of the children that contain it, as published.
    2. "block": the mean angle of its own weights alone.
    3. "standardised": 2., less the mean over all slots of its type, in deviations; a type without weights scores 0.
    4. "slots": 1. without what every child has (stem, classifier, reduction blocks), which turns, too.

    balance: an option ("identity") whose number in a child is drawn first. The rest is of
    ``hnas.shrinking.angles.Table``.
    """
    _known(form)
    names = shrinking.scored(study, space)
    table = Table(study, space, reference=reference, graph=graph, vectors=vectors)
    rows = angles.sample(space, samples, seed, balance)
    if form in WHOLE:
        values = table.angles(rows, fixed=form == "raw")
        found = _means(space, names, rows, dict.fromkeys(names, values))
        return {key: value for key, value in found.items() if np.isfinite(value)}
    own = _own(table, space, rows, [f"{slot}.op" for slot in space.slots])  # decided slots are part of a type's mean
    if form == "standardised":
        own = angles.standardise(own)
    return {key: value for key, value in own.items() if key[0] in names and np.isfinite(value)}


def of(
    study: Study,
    archs: Sequence[Arch],
    *,
    form: str = "raw",
    space: Space | None = None,
    graph: Graph | None = None,
    reference: Snapshot | None = None,
    vectors: bool = False,
) -> Floats:
    """[archs]: the angle of each; in "block" form the mean over its blocks, in "standardised" that of their z."""
    _known(form)
    space = space or study.supernet.space
    table = Table(study, space, reference=reference, graph=graph, vectors=vectors)
    rows = children.rows_of(space, archs)
    if form in WHOLE:
        return table.angles(rows, fixed=form == "raw")
    blocks = table.blocks(rows)
    if form == "standardised":
        names = [f"{slot}.op" for slot in space.slots]
        z = angles.standardise(_own(table, space, rows, names))
        for k, name in enumerate(names):
            worth = np.array([z[name, option] for option in space.choices[name].options] + [np.nan])
            blocks[:, k] = np.where(np.isfinite(blocks[:, k]), worth[rows[:, children.column(space, name)]], np.nan)
    known = np.isfinite(blocks)
    means: Floats = np.where(known, blocks, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    return means


def _own(table: Table, space: Space, rows: Rows, names: Sequence[str]) -> dict[tuple[str, Option], float]:
    """The mean angle of each operation's own weights; NaN where it has none."""
    blocks = table.blocks(rows)
    values = {f"{slot}.op": blocks[:, k] for k, slot in enumerate(table.slots)}
    return _means(space, names, rows, {name: values[name] for name in names})


def _means(
    space: Space, names: Sequence[str], rows: Rows, values: dict[str, Floats]
) -> dict[tuple[str, Option], float]:
    found: dict[tuple[str, Option], float] = {}
    for name in names:
        options = space.choices[name].options
        means = children.mean_by_option(rows, children.column(space, name), len(options), values[name])
        found |= {(name, option): float(mean) for option, mean in zip(options, means, strict=True)}
    return found


def _known(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"no form {form!r} of the angle; known: {', '.join(FORMS)}")
