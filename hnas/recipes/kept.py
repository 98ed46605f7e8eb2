"""Read what a run has in its folder: it continues only what it began itself, and a refused run changes nothing.

``finished_record(out, identity, resume=True)`` returns the record of a finished run, or None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnas.files import read_json
from hnas.journal import digest
from hnas.recipes import Recipe
from hnas.training.checkpoint import identity_of

LENGTH = "length.json"  # what was chosen for --minutes, so that a run continues with it
_RECORD = "supernet.json"


def known_length(out: Path, minutes: float | None, recipe: Recipe) -> dict[str, Any] | None:
    """Return the length that the run in ``out`` chose for ``minutes``; None if it chose none, or has finished.

    recipe: the recipe without this length.

    Raises:
        ValueError: it chose its length for other minutes, or another recipe.
    """
    if minutes is None or not (out / LENGTH).exists():
        return None
    known, own = read_json(out / LENGTH), digest_of(recipe)
    if known.get("minutes") == minutes and known.get("recipe", own) == own:
        return known
    if known.get("minutes") == minutes:  # space and [train] of the recipe would be replaced by those that were chosen
        raise ValueError(f"{out} holds a training with another recipe; choose another --out")
    if _has_finished(out):  # its record says what differs
        return None
    raise ValueError(
        f"{out} holds a training of {known.get('minutes')} minutes, got {minutes:g}; "
        f"continue it with --minutes {known.get('minutes')} or choose another --out"
    )


def digest_of(recipe: Recipe) -> str:
    """Return a digest of the recipe, which need not be valid."""
    return digest(json.loads(json.dumps(recipe.to_json(), default=str)))


def finished_record(out: Path, identity: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """Return the record of the finished run in ``out``; None if the run must be started or continued.

    Raises:
        ValueError: the run in ``out`` had another recipe, epochs, alone or seed.
        FileExistsError: there is a run, and ``resume`` is not set.
    """
    begun = checkpoints(out)
    if (out / _RECORD).exists() and not resume:
        raise FileExistsError(f"{out} already holds a trained supernet; choose another --out or --resume")
    if begun and not resume:
        raise FileExistsError(f"{out} holds an interrupted training; continue it with --resume or choose another --out")
    for file in begun:
        if differ := _differing(identity, identity_of(file)):
            raise ValueError(f"{file} belongs to another run (other {', '.join(differ)}); choose another --out")
    if not _has_finished(out):
        return None
    record = read_json(out / _RECORD)
    if differ := _differing(identity, record):
        raise ValueError(f"{out} holds the supernet of a run with other {', '.join(differ)}; choose another --out")
    return record


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints in ``out``."""
    return sorted(out.glob("checkpoint-*.safetensors"))


def _has_finished(out: Path) -> bool:
    return (out / _RECORD).exists() and not checkpoints(out)


def _differing(identity: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(identity, default=str))  # as it was written: tuples are lists
    return [key for key, value in plain.items() if other.get(key) != value]
