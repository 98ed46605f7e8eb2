"""Where int8 is slow or loses too much: the layers to blame, and whether blocks in float are worth a try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hnas import export
from hnas.deployment.build import Built, Refused, Row, mixed_record
from hnas.deployment.plan import Plan
from hnas.export.bundle.manifest import Mixed
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.proof.slowdown import Slowdown, attainable

_WORST = 4  # slower stretches that are named
WORTH = 0.95  # of the time of fp32: what each layer in its faster precision must promise, for blocks to be tried


def slowdown(plan: Plan, rows: Sequence[Row], best: int | None) -> Slowdown | None:
    """Which layers make int8 no faster than the float artifact that is kept; None where it is faster.

    Only then both are profiled. Neither is where they run on another device, or where their runtime tells no times.
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
        worst = export.slower_layers(before, after)[:_WORST]
        return replace(found, layers=worst, attainable=attainable(before, after))
    except (ExportError, ValueError):  # what it lost is known all the same
        return found


def reason(
    plan: Plan, rows: Sequence[Row], refused: Sequence[Refused], slower: Slowdown | None, floor: float = 0.0
) -> str | None:
    """Why int8 with blocks in float is worth a try; None where it is not.

    1. No int8 in the plan, or no times that are measured on this machine: None.
    2. It was asked for.
    3. int8 is slower than what is kept: only where that is fp32, and its faster layers would pay for a change.
    4. int8 does not compute what the network does, or misses ``floor`` on the search images.
    """
    if not plan.mixes:
        return None
    if plan.precision == "mixed":
        return "it was asked for"
    if slower is not None:
        pays = slower.against == "fp32" and slower.attainable is not None and slower.attainable < WORTH
        return slower.headline() if pays else None
    for failed in refused:
        if failed.precision == "int8" and failed.unfaithful:
            return "int8 alone does not verify"
    for row in rows:
        reached = row.built.accuracy.get("search", floor)
        if row.built.label == "int8" and reached < floor - 1e-9:
            return f"int8 reaches {reached:.2%} on the search images (at least {floor:.2%} is asked)"
    return None


def attempt(make: Callable[[], Built]) -> Built | str:
    """The artifact with blocks in float that ``make`` builds, or in one line why there is none."""
    try:
        found = make()
    except Unavailable:
        raise
    except ExportError as error:
        return str(error)
    return found if found.label == "mixed" else "no block in float made it faster"


def record(why: str, row: Row) -> Mixed:
    """What the manifest says of an artifact in mixed precision."""
    said = mixed_record(row.built.artifact)
    return Mixed(why, row.verdict, tuple(said["float"]), dict(said["sensitivity_db"]), len(said["tried"]))
