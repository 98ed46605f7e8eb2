"""Score subnets of a trained supernet once, for all its later searches: ``score(supernet, data, subnets=300)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnas.deployment.options import MOST_SCORES, Progress
from hnas.deployment.places import require_folders
from hnas.files import locked


def score(
    supernet: Path, data: Path | None = None, subnets: int = 300, on: Progress = lambda *_: None
) -> dict[str, Any]:
    """Evaluate subnets of ``supernet`` on its search images and write the accuracies into its folder.

    supernet: the folder of a trained supernet.
    data: the folder of its images; None: the images that are shipped with hnas.
    subnets: number of subnets, those that are scored already included.
    on: called with (stage, finished subnets, subnets).

    A killed call continues. Returns the number of subnets, and the lowest and the highest accuracy.

        score(Path("trained"), Path("photos"))

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: ``subnets`` is not from 1 to 500, the folder cannot be written, or a file is damaged.
    """
    if not 1 <= subnets <= MOST_SCORES:
        raise ValueError(f"subnets is {subnets}; give 1 to {MOST_SCORES}")
    require_folders(supernet, data)
    from hnas.deployment.scores import SCORES, score_subnets  # these import torch
    from hnas.deployment.source import open_source
    from hnas.study import Study

    with locked(supernet, "score a copy of the folder"):
        source = open_source(supernet, data)
        study = Study(source.supernet, source.task)
        on("score", 0, subnets)
        found = score_subnets(study, supernet / SCORES, source.identity, subnets, lambda n: on("score", n, subnets))
    return {"subnets": len(found), "lowest": min(found.values()), "highest": max(found.values())}
