"""Time one case: ``measure_case(folder, case, blocks=12, processes=3)``.

Our artifact, the same artifact again, and every peer run interleaved in one session of fresh processes.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.benchmarks.peers.cases import OURS, Case, Folder, makers
from hnas.benchmarks.peers.unpinned import Unpinned
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.proof.measurement import Comparison
from hnas.export.proof.timing import compare_many
from hnas.export.remote.worker import Worker


def measure_case(folder: Folder, case: Case, *, blocks: int, processes: int) -> dict[str, Any]:
    """Return the record of a case with the ratios of our time by theirs; read it where the models are unchanged."""
    built = {maker: folder.artifact(case, maker) for maker in makers(case.backend)}
    digests = {maker: artifact.digest for maker, artifact in built.items() if artifact is not None}
    known = folder.times(case)
    if known is not None and known["digests"] == digests:
        return known
    record: dict[str, Any] = {"net": case.net, "backend": case.backend, "precision": case.precision}
    record |= {"digests": digests, "rows": [_row(folder, case, maker) for maker in makers(case.backend)]}
    ours = built.pop(OURS)
    if ours is not None:
        peers = {maker: artifact for maker, artifact in built.items() if artifact is not None}
        inputs = folder.inputs(case.net)
        found = compare_many(ours, [ours, *peers.values()], inputs, blocks=blocks, processes=processes)
        record["noise"] = _ratio(found[0])
        for maker, comparison in zip((OURS, *peers), found, strict=True):
            row = next(row for row in record["rows"] if row["maker"] == maker)
            row["median_ms"] = comparison.b.median_ms
            if maker != OURS:
                row |= _ratio(comparison)
        record["defaults"] = _at_defaults(ours, peers, inputs, blocks)
    folder.write_times(case, record)
    return record


def _row(folder: Folder, case: Case, maker: str) -> dict[str, Any]:
    """Return the record of making an artifact as a row."""
    made = folder.made(case, maker) or {"error": "not built; run --phase build"}
    kept = ("error", "sqnr_db", "seconds", "rss_mb", "bytes")
    return {"maker": maker, **{key: made[key] for key in kept if key in made}}


def _at_defaults(
    ours: Artifact, peers: dict[str, Artifact], inputs: tuple[NDArray[Any], ...], blocks: int
) -> list[dict[str, Any]]:
    """Time our pinned artifact against the peers at the defaults of the runtime: other threads, other precision."""
    rows = []
    for maker, artifact in peers.items():
        row: dict[str, Any] = {"maker": maker}
        try:
            with ExitStack() as stack:
                free: Any = stack.enter_context(Unpinned(artifact))
                (found,) = compare_many(stack.enter_context(Worker(ours)), [free], inputs, blocks=max(2, blocks // 2))
            row |= {"median_ms": found.b.median_ms, "threads": found.b.threads, **_ratio(found)}
        except ExportError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def _ratio(comparison: Comparison) -> dict[str, float]:
    """Return our time by theirs, with its interval."""
    return {key: float(np.round(getattr(comparison, key), 4)) for key in ("ratio", "low", "high")}
