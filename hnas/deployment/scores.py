"""Accuracies of subnets that were evaluated once and are kept in the folder of a supernet, in ``scores.jsonl``.

``score_subnets(study, file, identity, 300)`` evaluates and writes; ``scores_of(read_scores(file), space, identity)``
reads. A later search predicts from them: it needs fewer evaluations and depends less on luck.

The subnets are those that NSGA-II tries on accuracy and multiply-accumulates: good ones of every size, for any device.
A score belongs to weights, space and images: those of others are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hnas.cost import Price
from hnas.cost.flops import macs
from hnas.deployment.options import MOST_SCORES
from hnas.journal import Journal, read_entries
from hnas.space import Arch, Option, Space
from hnas.study import Study

SCORES = "scores.jsonl"
_COST = "macs"
_POPULATION = 32


def score_subnets(
    study: Study, file: Path, identity: str, count: int, notify: Callable[[int], None] = lambda _: None
) -> dict[Arch, float]:
    """Return the accuracies of ``count`` subnets on the search images. Those that ``file`` has are not evaluated again.

    file: each accuracy is written when it is known, so that a killed run continues.
    identity: of weights, space and images.
    notify: called with the number of finished subnets.

        score_subnets(Study(supernet, task), Path("trained/scores.jsonl"), source.identity, 300)

    Raises:
        ValueError: ``file`` is damaged or cannot be written.
    """
    from hnas.strategies.evolution import EvolutionOptions, search  # pymoo takes a second

    space = study.supernet.space

    def cost(arch: Arch) -> Price:
        value = float(macs(study.supernet.skeleton(arch), *space.example(arch)))
        return Price(value, "MACs", value, value, "predicted")

    found: dict[Arch, float] = {}
    with closing(Journal(file)) as journal:
        own = replace(study, costs={_COST: cost}, known=scores_of(journal.entries, space, identity), journal=Journal())
        options = EvolutionOptions(cost=_COST, evaluations=count, population=_POPULATION, seed=study.seed)
        for candidate in search(own, space, options):
            found[candidate.arch] = candidate.metrics["accuracy"]
            journal.call(f"{identity}/{_places(space, candidate.arch)}", partial(found.__getitem__, candidate.arch))
            notify(len(found))
    return found


def read_scores(file: Path) -> dict[str, Any]:
    """Return the lines of ``file`` for ``scores_of``; none if there is no file.

    Raises:
        ValueError: ``file`` is damaged.
    """
    try:
        return read_entries(file) if file.exists() else {}
    except ValueError:
        raise ValueError(f"{file} is damaged; delete it, or write it again with hnas-deploy score") from None


def scores_of(entries: Mapping[str, Any], space: Space, identity: str) -> dict[Arch, float]:
    """Return the accuracies of members of ``space`` with this identity. Other lines are left out.

    Of more than ``MOST_SCORES`` those are returned that have every k-th accuracy: the time of a predictor grows with
    the third power of their number.
    """
    own = {key.rpartition("/")[2]: value for key, value in entries.items() if key.rpartition("/")[0] == identity}
    found = decode_scores(space, own)
    if len(found) <= MOST_SCORES:
        return found
    ordered = sorted(found, key=lambda arch: found[arch])
    return {arch: found[arch] for arch in ordered[:: math.ceil(len(found) / MOST_SCORES)]}


def encode_scores(space: Space, scores: Mapping[Arch, float]) -> dict[str, float]:
    """Return the scores as JSON: the number of the option of every choice, ``-`` for one that is not active."""
    return {_places(space, arch): accuracy for arch, accuracy in scores.items()}


def decode_scores(space: Space, found: Mapping[str, Any]) -> dict[Arch, float]:
    """Return the scores that ``encode_scores`` has encoded. What is no member or no accuracy is left out."""
    numbered = {name: {str(k): o for k, o in enumerate(choice.options)} for name, choice in space.choices.items()}
    scores: dict[Arch, float] = {}
    for places, value in found.items():
        if isinstance(value, float) and 0 <= value <= 1:
            arch = _member(space, numbered, places.split(","))
            if arch is not None:
                scores[arch] = value
    return scores


def _places(space: Space, arch: Arch) -> str:
    return ",".join(
        str(choice.options.index(arch[name])) if name in arch else "-" for name, choice in space.choices.items()
    )


def _member(space: Space, numbered: Mapping[str, Mapping[str, Option]], places: Sequence[str]) -> Arch | None:
    if len(places) != len(numbered):
        return None
    pairs = zip(numbered.items(), places, strict=True)
    try:
        return space.arch({name: options[place] for (name, options), place in pairs if place in options})
    except ValueError:
        return None
