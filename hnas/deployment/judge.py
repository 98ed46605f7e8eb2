"""Choose the artifact of a network to keep, and give the reason against each of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hnas.cost import Price
from hnas.deployment.build import Built
from hnas.deployment.plan import ROUNDING, Plan
from hnas.export.proof.measurement import Comparison


@dataclass(frozen=True)
class JudgedArtifact:
    """An artifact with its comparison with the baseline (None where nothing is measured) and the verdict on it.

    allowed: whether it keeps the accuracy and meets every constraint, so that it may replace the kept artifact.
    """

    built: Built
    comparison: Comparison | None
    verdict: str
    allowed: bool

    @property
    def speed(self) -> float:
        """Return the measured speedup; 1 if nothing is measured."""
        return 1.0 if self.comparison is None else self.comparison.ratio

    @property
    def reason(self) -> str:
        """Return the precision, and why its artifact is not kept."""
        return f"{self.built.label}: {self.verdict.removeprefix('not taken: ')}"


INT8_GAIN = 1.15  # on a GPU, int8 must be this many times faster than fp16: less is not worth its loss of accuracy

_Objection = Callable[[Built, Comparison | None], str | None]


def judge_artifacts(
    built: Sequence[Built],
    comparisons: Sequence[Comparison | None],
    fp32_accuracy: float,
    guard: float,
    objection: _Objection = lambda _built, _comparison: None,
    predicted: Mapping[str, float] | None = None,
) -> tuple[int | None, list[JudgedArtifact]]:
    """Return the index of the artifact to keep, and each artifact with its verdict.

    predicted: precision -> predicted latency on a GPU; None for any other device.

    1. The accuracy on the search images is more than ``guard`` below ``fp32_accuracy``: the artifact is refused.
    2. ``objection`` returns a reason, such as a constraint that the artifact misses: the artifact is refused.
    3. Of the other artifacts, keep the one with the highest measured speedup. If nothing is measured, keep the last
       one, which has the lowest precision.
    4. All artifacts are refused: the index is None.
    5. The accuracy is not known, because there are no labelled images: case 1 refuses no artifact.
    6. int8 on a GPU is less than ``INT8_GAIN`` times faster than fp16, which is allowed: int8 is refused. The times
       are measured, or predicted if nothing is measured.
    """
    misses = []
    for each, comparison in zip(built, comparisons, strict=True):
        misses.append(_lost(each, fp32_accuracy, guard) or objection(each, comparison))  # cases 1 and 2
    reasons = misses if predicted is None else _without_slow_int8(built, comparisons, misses, predicted)  # case 6
    speeds = [c.ratio if c is not None else float(i) for i, c in enumerate(comparisons)]
    left = [i for i, reason in enumerate(reasons) if reason is None]
    best = max(left, key=lambda i: speeds[i], default=None)  # cases 3 and 4
    rows = []
    for i, (each, comparison) in enumerate(zip(built, comparisons, strict=True)):
        reason = reasons[i]
        if i != best and best is not None and reason is None:
            reason = _slower(comparison, comparisons[best], built[best].label)
        verdict = "kept" if reason is None else f"not taken: {reason}"
        rows.append(JudgedArtifact(each, comparison, verdict, misses[i] is None))
    return best, rows


def _without_slow_int8(
    built: Sequence[Built],
    comparisons: Sequence[Comparison | None],
    reasons: Sequence[str | None],
    predicted: Mapping[str, float],
) -> list[str | None]:
    """Return the reasons of case 6 with those of the other cases."""
    allowed = [i for i, each in enumerate(built) if each.artifact.precision == "fp16" and reasons[i] is None]
    found = list(reasons)
    for i, each in enumerate(built):
        if each.artifact.precision != "int8" or found[i] is not None or not allowed:
            continue
        half, own = comparisons[allowed[0]], comparisons[i]
        measured = half is not None and own is not None
        gain = own.ratio / half.ratio if half and own else predicted["fp16"] / predicted["int8"]
        if gain < INT8_GAIN:
            found[i] = hardly_faster(gain, "measured" if measured else "predicted")
    return found


def hardly_faster(gain: float, how: str) -> str:
    """Return the sentence on int8 that is only ``gain`` times faster than fp16 on a GPU, measured or predicted."""
    return f"int8 is hardly faster here: {gain:.2f}x of fp16, {how} ({INT8_GAIN:g}x is worth it)"


def _lost(built: Built, fp32_accuracy: float, guard: float) -> str | None:
    """Return the reason of case 1."""
    lost = fp32_accuracy - built.accuracy.get("search", fp32_accuracy)  # case 5: nothing lost
    if lost <= guard + ROUNDING:
        return None
    return f"loses {100 * lost:.1f} points on the search images (guard {100 * guard:g})"


def _slower(comparison: Comparison | None, kept: Comparison | None, label: str) -> str:
    if comparison is None or kept is None:
        return "a lower precision is kept"
    return f"{kept.ratio / comparison.ratio:.2f}x the time of {label}"


def objection_of(plan: Plan, predicted: Mapping[str, Price], floor: float | None = None) -> _Objection:
    """Return a function that names the first constraint that an artifact misses. The search has tested only the subnet.

    predicted: precision -> predicted latency, which is used if nothing is measured.
    floor: the required accuracy if the user gives no constraint; None: no requirement.
    """

    def objection(built: Built, comparison: Comparison | None) -> str | None:
        reached = {"size_bytes": float(built.artifact.size_bytes)}
        if "search" in built.accuracy:
            reached["accuracy"] = built.accuracy["search"]
        measured = comparison is not None
        latency = comparison.b.median_ms if comparison is not None else predicted[built.artifact.precision].value
        for bound in plan.bounds:
            value = reached.get(bound.metric, latency)
            if not bound.admits(value):
                return bound.describe_miss(value, predicted=not measured)
        if floor is not None and not built.reaches(floor):
            said = f"{built.accuracy['search']:.2%} on the search images"
            return f"it reaches {said} (the largest subnet less the guard: {floor:.2%})"
        return None

    return objection


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of ``n`` images."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
