"""Judge what needs no clock: file size, multiply-accumulates, precisions and layers: ``judge_file(claim, ...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from hnas.benchmarks.gate.macs import count_macs
from hnas.benchmarks.gate.records import CountedAccuracy, PartVerdict

if TYPE_CHECKING:
    from hnas.benchmarks.gate.session import Inputs
    from hnas.benchmarks.gate.suite import SuiteClaim
    from hnas.export.device.artifact import Artifact
    from hnas.export.proof.inspection import Inspection

_RUNS = 3
_EDGE = 1e-9  # of a difference of two shares


def judge_file(
    claim: SuiteClaim, artifact: Artifact, target: str, inputs: Callable[[Artifact], Inputs]
) -> Iterator[PartVerdict]:
    """Yield the verdict on every bound of ``claim`` that needs no clock.

    target: that of the bundle, or the device that the artifact was compiled for.
    inputs: returns the arrays of a call.

    Raises:
        ExportError: the runtime fails.
    """
    from hnas.units import parse_size_bytes

    for name, wanted, found in (("target", claim.target, target), ("precision", claim.precision, artifact.precision)):
        if wanted:
            yield _part(name, found == wanted, f"the artifact states {found}, claimed {wanted}")
    if claim.max_size:
        size = artifact.size_bytes
        line = f"{size:,} bytes, at most {claim.max_size}"
        yield _part("size", size <= parse_size_bytes(claim.max_size), line)
    if claim.max_macs is not None:
        yield _judge_macs(claim.max_macs, artifact, inputs(artifact))
    if claim.inspected:
        from hnas.export.diagnosis.profiling import layers

        yield from _judge_layers(claim, layers(artifact, inputs(artifact), runs=_RUNS))


def _judge_macs(most: float, artifact: Artifact, inputs: Inputs) -> PartVerdict:
    """Judge the multiply-accumulates of a call; what cannot be counted is inconclusive."""
    try:
        macs = count_macs(artifact, inputs)
    except ValueError as error:
        return PartVerdict("macs", "inconclusive", str(error))
    return _part("macs", macs <= most, f"{macs:,} multiply-accumulates, at most {most:,.0f}")


def _judge_layers(claim: SuiteClaim, found: Inspection) -> Iterator[PartVerdict]:
    """Yield the verdict on the layers that the runtime executes."""
    from hnas.export.proof.inspection import STATED

    roles = (("kernels", "kernel"), ("qdq", "quantise"), ("reformats", "layout"))
    for name, role in roles:
        most = getattr(claim, f"max_{name}")
        if most is not None:
            count = sum(layer.role == role for layer in found.layers)
            yield _part(name, count <= most, f"{count} layers, at most {most}")
    yield from _judge_delegates(claim, found)
    if claim.precisions:
        present = sorted({layer.precision for layer in found.layers if layer.role == "kernel" and layer.precision})
        asked = [STATED.get(each, (each,)) for each in claim.precisions]
        right = all(set(each) & set(present) for each in asked) and set(present) <= {p for each in asked for p in each}
        line = f"kernels compute in {_listed(present)}, claimed {_listed(claim.precisions)}"
        yield (
            PartVerdict("precisions", "inconclusive", "the runtime does not state the precision of kernels")
            if (not present)
            else _part("precisions", right, line)
        )


def _judge_delegates(claim: SuiteClaim, found: Inspection) -> Iterator[PartVerdict]:
    """Yield the verdict on the parts that XNNPACK runs, and on the layers that built-in kernels run."""
    delegated = [layer.implementation.startswith("XNNPACK") for layer in found.layers]
    if claim.max_partitions is not None:
        count = sum(kind for kind, _ in groupby(delegated))
        yield _part("partitions", count <= claim.max_partitions, f"{count}, at most {claim.max_partitions}")
    if claim.max_undelegated is not None:
        count = delegated.count(False)
        line = f"built-in kernels run {count} layers, at most {claim.max_undelegated}"
        yield _part("undelegated", count <= claim.max_undelegated, line)


def judge_points(most: float, artifact: CountedAccuracy, baseline: CountedAccuracy) -> PartVerdict:
    """Judge how many points of top-1 the artifact loses, counted on the same images.

    1. One of the two was not counted: inconclusive, with the reason.
    2. Time ran out before the last image: inconclusive.
    3. It loses at most ``most`` points: holds, else fails.
    """
    for seen in (artifact, baseline):
        if seen.value is None:  # case 1
            return PartVerdict("points", "inconclusive", f"not counted: {seen.reason}")
        if seen.n < seen.planned:  # case 2
            line = f"time ran out after {seen.n} of {seen.planned} images; raise --max-time"
            return PartVerdict("points", "inconclusive", line)
    less = 100 * (baseline.hits - artifact.hits) / artifact.n  # case 3
    figures = f"{artifact.hits} of {artifact.n} images right, the baseline {baseline.hits}"
    return _part("points", less <= most + _EDGE, f"{figures}: {less:.2f} points less, at most {most:g}")


def _part(name: str, holds: bool, line: str) -> PartVerdict:
    return PartVerdict(name, "holds" if holds else "fails", line)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
