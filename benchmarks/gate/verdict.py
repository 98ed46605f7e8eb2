"""Judge the claim of a bundle: ``judge_evidence(evidence)`` returns *holds*, *fails* or *inconclusive*.

Nothing is measured here, so every rule can be tested from a table. docs/ci.md states the rules for users.
"""

from __future__ import annotations

from collections.abc import Iterable

from hnas.benchmarks.gate.records import BundleClaim, Evidence, GateVerdict, Outcome, PartVerdict, Ratio

_TOLERANCE = 0.9
"""Without ``--min-speedup`` a claim holds at 0.9 of the low end of its interval. Two process starts of one file may
differ by 7 to 15 %, and people ignore a gate that fails without a change in the code."""

_START_SPREAD = 1.15
"""The factor by which two process starts may differ; it widens an interval from a single process."""

_FLIPS = 0.005
"""The share of images that another CPU or runtime version may lose. Its kernels round differently, so an image on the
edge between two classes may change class. That is 10 of 2,000 images; a broken kernel loses hundreds."""


def threshold(claim: BundleClaim, min_speedup: float | None) -> float | None:
    """Return the speedup to reach, or ``None`` where no speedup is asked for.

    1. ``--min-speedup`` is given: that number.
    2. The bundle claims no speedup: none.
    3. Otherwise: that of ``tolerated``.
    """
    if min_speedup is not None:  # case 1
        return min_speedup
    if claim.speedup is None:  # case 2
        return None
    return tolerated(claim.speedup[0])  # case 3


def tolerated(low: float) -> float:
    """Return the speedup to reach on another day, from the low end of the interval of an earlier one.

    1. The whole interval is above 1: ``_TOLERANCE`` of its low end, at least 1. A slower artifact never meets a claim
       to be faster.
    2. Otherwise: ``_TOLERANCE`` of its low end.
    """
    return max(1.0, _TOLERANCE * low) if low > 1 else _TOLERANCE * low


def judge_evidence(evidence: Evidence) -> GateVerdict:
    """Return the verdict over speed and accuracy together, by ``combine_outcomes``."""
    asked = threshold(evidence.claim, evidence.min_speedup)
    parts = (judge_speed(evidence, asked), judge_accuracy(evidence))
    return GateVerdict(combine_outcomes(part.outcome for part in parts), parts, asked)


def combine_outcomes(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of several parts together.

    1. One fails: *fails*.
    2. None fails, one is inconclusive: *inconclusive*.
    3. None was checked: *inconclusive*, because nothing was proved.
    4. Otherwise: *holds*. A part that was not checked does not count.
    """
    found = set(outcomes)
    if "fails" in found:  # case 1
        return "fails"
    if "inconclusive" in found or found <= {"not checked"}:  # cases 2, 3
        return "inconclusive"
    return "holds"  # case 4


def judge_speed(evidence: Evidence, asked: float | None) -> PartVerdict:
    """Judge whether the artifact reaches the speedup ``asked`` over its baseline.

    1. No speedup is claimed and none is asked for: not checked.
    2. The claim is a prediction for another device, and not ``here``: inconclusive; there is no measurement.
    3. There is no baseline to compare with, or nothing was measured: inconclusive.
    4. The CPU is not the model of the claim, and not ``here``: inconclusive, with the measured figures.
    5. Otherwise: ``judge_ratio``.
    """
    claim, speed, noise = evidence.claim, evidence.speed, evidence.noise
    if asked is None:  # case 1
        return PartVerdict("speedup", "not checked", "the bundle claims no speedup; --min-speedup X asks for one")
    if claim.kind == "predicted" and not evidence.here:  # case 2
        line = f"the claim is predicted for {claim.target}, and nothing was measured; --here says this is that device"
    elif not claim.has_baseline:  # case 3
        line = "the bundle has no baseline to compare with; its reproduce command makes one"
    elif speed is None or noise is None:  # case 3
        line = "nothing was measured"
    elif claim.cpu != evidence.cpu and not evidence.here:  # case 4
        seen = speed.line()
        line = f"claimed on {claim.cpu!r}, this is {evidence.cpu!r}; --here judges on this machine; measured: {seen}"
    else:  # case 5
        return PartVerdict("speedup", *judge_ratio(speed, noise, asked))
    return PartVerdict("speedup", "inconclusive", line)


def judge_ratio(speed: Ratio, noise: Ratio, asked: float) -> tuple[Outcome, str]:
    """Judge the measured speedup against ``asked``; return the outcome and the reason.

    1. ``asked`` lies inside the interval: inconclusive.
    2. ``asked`` lies outside, but within the noise floor: its distance from the speedup is smaller than the spread of
       the baseline against itself. Inconclusive.
    3. The low end of the interval reaches ``asked``: holds.
    4. The high end of the interval is below ``asked``: fails.

    The interval of a single process is widened by ``_START_SPREAD`` on both sides.
    """
    low, high = widened_ends(speed)
    figures = f"{speed.value:.3f}x [{low:.3f}, {high:.3f}]"
    if low < asked <= high:  # case 1
        return "inconclusive", f"{figures} has {asked:.2f}x inside; raise --max-time and --processes"
    if max(speed.value / asked, asked / speed.value) < noise.spread:  # case 2
        equal = f"the baseline against itself gives [{noise.low:.3f}, {noise.high:.3f}]"
        return "inconclusive", f"{figures} is too near to {asked:.2f}x for this machine's noise: {equal}"
    if low >= asked:  # case 3
        return "holds", f"{figures} is at least {asked:.2f}x"
    return "fails", f"{figures} is below {asked:.2f}x"  # case 4


def widened_ends(speed: Ratio) -> tuple[float, float]:
    """Return the ends of the interval; those of a single process are widened by ``_START_SPREAD``."""
    factor = _START_SPREAD if speed.processes == 1 else 1.0
    return speed.low / factor, speed.high * factor


def judge_accuracy(evidence: Evidence) -> PartVerdict:
    """Judge whether the artifact file is right on as many images as claimed.

    File and images are byte for byte those of the claim. So the interval of the claimed accuracy is not used: it says
    how much the accuracy would differ on other images.

    1. No accuracy is claimed: not checked.
    2. The images are missing, or are not the images of the claim: not checked, with the reason.
    3. Time ran out before the last image: inconclusive.
    4. Fewer hits than claimed, by more than ``_allowance``: fails.
    5. As many hits, more, or fewer within the allowance: holds, with the figures.
    """
    claim, seen = evidence.claim, evidence.accuracy
    claimed = claim.hits
    if claimed is None:  # case 1
        return PartVerdict("accuracy", "not checked", "the bundle claims no accuracy")
    if seen.value is None:  # case 2
        return PartVerdict("accuracy", "not checked", seen.reason)
    if seen.n < seen.planned:  # case 3
        line = f"time ran out after {seen.n} of {seen.planned} images ({seen.value:.2%} so far); raise --max-time"
        return PartVerdict("accuracy", "inconclusive", line)
    allowed, why = _allowance(evidence)
    lost = claimed - seen.hits
    figures = f"{seen.hits} of {seen.n} images right ({seen.value:.2%}), claimed {claimed}"
    if lost > allowed:  # case 4
        return PartVerdict("accuracy", "fails", f"{figures}; {why}, so at most {allowed} may be lost")
    return PartVerdict("accuracy", "holds", f"{figures}{f'; {why}' if lost else ''}")  # case 5


def _allowance(evidence: Evidence) -> tuple[int, str]:
    """Return how many hits fewer than claimed are no failure, and why.

    1. CPU and runtime are those of the claim: none.
    2. The CPU or the version of the runtime is another: ``_FLIPS`` of the images, at least one.
    """
    claim, seen = evidence.claim, evidence.accuracy
    some = max(1, int(_FLIPS * seen.n))
    if claim.cpu != evidence.cpu:  # case 2
        return some, "this is another CPU than the claim's"
    for name, version in seen.versions.items():
        if claim.versions.get(name) != version:  # case 2
            return some, f"this is {name} {version}, the claim's is {claim.versions.get(name, 'unknown')}"
    return 0, "file, images, CPU and runtime are the claim's"  # case 1


def judge_same(speed: Ratio, noise: Ratio, percent: float, measure: str = "p50") -> tuple[Outcome, str]:
    """Judge whether two artifacts differ by at most ``percent``, in both directions; return outcome and reason.

    1. Faster or slower than that, by ``judge_ratio``: fails.
    2. The whole interval is inside: holds.
    3. Otherwise: inconclusive.
    """
    band = 1 + percent / 100
    word = relate(speed, noise, percent)
    figures = f"{speed.line()}; the band is [{1 / band:.3f}, {band:.3f}]"
    if word in ("faster", "slower"):  # case 1
        return "fails", f"{worded(word, measure)} by more than {percent:g} %: {figures}"
    if word == "inconclusive":  # case 3
        return "inconclusive", f"{figures}; raise --max-time and --processes"
    return "holds", f"{word}: {figures}"  # case 2


def worded(word: str, measure: str) -> str:
    """Return a word of ``relate`` as it is said of the figure ``measure``: memory is smaller, not faster."""
    return {"faster": "smaller", "slower": "larger"}.get(word, word) if measure == "peak_memory" else word


def relate(speed: Ratio, noise: Ratio, percent: float | None) -> str:
    """Return "faster", "slower", "same within 3 %" or "inconclusive" of the second artifact against the first.

    1. The interval and the noise of this machine are above a band around 1, or below it: faster, slower.
    2. They are inside the band: the same.

    percent: the half width of the band; None: it has no width, so nothing is the same.
    """
    band = 1 + (percent or 0.0) / 100
    above, below = (judge_ratio(speed, noise, edge)[0] for edge in (band, 1 / band))
    if above == "holds":
        return "faster"
    if below == "fails":
        return "slower"
    inside = percent is not None and above == "fails" and below == "holds"
    return f"same within {percent:g} %" if inside else "inconclusive"
