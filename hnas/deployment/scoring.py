"""Score subnets of a trained supernet once, for all its later searches: ``score(supernet, data, subnets=300)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnas.deployment.options import Progress
from hnas.deployment.scores import LARGEST, SCORES, score_subnets
from hnas.deployment.source import open_source
from hnas.files import locked
from hnas.study import Study


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
    if not 1 <= subnets <= LARGEST:
        raise ValueError(f"subnets is {subnets}; give 1 to {LARGEST}")
    if not supernet.is_dir():
        raise FileNotFoundError(f"no folder {supernet}; --supernet takes what hnas-train --out wrote")
    with locked(supernet, "score a copy of the folder"):
        source = open_source(supernet, data)
        study = Study(source.supernet, source.task)
        on("score", 0, subnets)
        found = score_subnets(study, supernet / SCORES, source.identity, subnets, lambda n: on("score", n, subnets))
    return {"subnets": len(found), "lowest": min(found.values()), "highest": max(found.values())}
