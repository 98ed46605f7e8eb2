"""Explain an int8 artifact that is slow or inaccurate, and decide whether to try blocks in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hnas import export
from hnas.deployment.build import Built, Refused, mixed_record
from hnas.deployment.judge import JudgedArtifact
from hnas.deployment.plan import Plan
from hnas.export.bundle.manifest import Mixed
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.proof.slowdown import Slowdown, attainable

# Blocks in float are tried if a network with each layer in its faster precision would take less than this share of the
# time of fp32.
WORTH = 0.95


def explain_slowdown(plan: Plan, rows: Sequence[JudgedArtifact], best: int | None) -> Slowdown | None:
    """Return which layers make int8 slower than the float artifact that is kept; None if int8 is faster.

    Both artifacts are profiled only if int8 is slower, and only on this machine. Without a profiler in the runtime, the
    result names no layers.
    """
    kept = None if best is None else rows[best]
    int8 = next((row for row in rows if row.built.label == "int8"), None)
    if kept is None or int8 is None or kept.built.artifact.precision == "int8":
        return None
    if kept.comparison is None or int8.comparison is None or int8.comparison.ratio > kept.comparison.ratio:
        return None
    found = Slowdown(kept.built.label, int8.comparison.ratio / kept.comparison.ratio)
    if not plan.mixes:
        return found
    try:
        before, after = (export.layers(row.built.artifact) for row in (kept, int8))
        return replace(found, layers=export.slower_layers(before, after), attainable=attainable(before, after))
    except (ExportError, ValueError):  # the factor is known, the layers are not
        return found


def reason_to_mix(
    plan: Plan, rows: Sequence[JudgedArtifact], refused: Sequence[Refused], slower: Slowdown | None, floor: float = 0.0
) -> str | None:
    """Return why int8 with blocks in float should be tried; None if it should not.

    1. The plan has no int8, or times are not measured on this machine: None.
    2. The user asked for mixed precision: a reason.
    3. int8 is slower than the kept artifact: a reason only if the kept artifact is fp32, and a mixture of the faster
       layers of both would take less than ``WORTH`` of its time.
    4. int8 does not verify, or its accuracy on the search images is below ``floor``: a reason.
    """
    if not plan.mixes:  # case 1
        return None
    if plan.precision == "mixed":  # case 2
        return "it was asked for"
    if slower is not None:  # case 3
        pays = slower.against == "fp32" and slower.attainable is not None and slower.attainable < WORTH
        return slower.headline() if pays else None
    if any(failed.precision == "int8" and failed.unfaithful for failed in refused):  # case 4
        return "int8 alone does not verify"
    for row in rows:
        if row.built.label == "int8" and not row.built.reaches(floor):
            reached = row.built.accuracy["search"]
            return f"int8 reaches {reached:.2%} on the search images (at least {floor:.2%} is asked)"
    return None


def attempt_mixed(make: Callable[[], Built]) -> Built | str:
    """Return the artifact with blocks in float that ``make`` builds, or one line that says why there is none."""
    try:
        found = make()
    except Unavailable:
        raise
    except ExportError as error:
        return str(error)
    return found if found.label == "mixed" else "no block in float made it faster"


def mixing_record(why: str, row: JudgedArtifact) -> Mixed:
    """Return the manifest's record of an artifact in mixed precision."""
    record = mixed_record(row.built.artifact)
    return Mixed(why, row.verdict, tuple(record["float"]), dict(record["sensitivity_db"]), len(record["tried"]))
