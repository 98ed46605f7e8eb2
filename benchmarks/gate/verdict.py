"""The verdict over a bundle's claim: a pure function from evidence to *holds*, *fails* or *inconclusive*.

Nothing is measured here, so every rule can be tested from a table; docs/ci.md says the same for users.
"""

from __future__ import annotations

from hnas.benchmarks.gate.records import Claim, Evidence, Outcome, Part, Ratio, Verdict

_TOLERANCE = 0.9
"""Without ``--min-speedup`` a claim holds at 0.9 of its interval's low end: one process start of the very same file may
differ from the next by 7 to 15 %, and a gate that fails without a change in the code is soon ignored."""

_START_SPREAD = 1.15
"""How much one start of a process was seen to differ from the next; it stands in where only one was started."""

_FLIPS = 0.005
"""The share of images that may be lost to another CPU or runtime version: its kernels round otherwise, and an image on
the edge between two classes changes sides. On 2,000 images that is 10; a broken kernel loses hundreds."""


def threshold(claim: Claim, min_speedup: float | None) -> float | None:
    """The speedup to be reached, or ``None`` where nothing is asked.

    1. ``--min-speedup`` is given: that.
    2. The bundle claims no speedup: none.
    3. The claim's whole interval is above 1: ``_TOLERANCE`` of its low end, but never below 1.
       A claim to be faster is not held by something slower.
    4. Otherwise: ``_TOLERANCE`` of its low end.
    """
    if min_speedup is not None:
        return min_speedup
    if claim.speedup is None:
        return None
    low = claim.speedup[0]
    return max(1.0, _TOLERANCE * low) if low > 1 else _TOLERANCE * low


def judge(evidence: Evidence) -> Verdict:
    """The verdict over speed and accuracy together.

    1. A part fails: *fails*.
    2. No part fails, one is inconclusive: *inconclusive*.
    3. No part was checked: *inconclusive*; nothing was proved.
    4. Otherwise: *holds*. A part that was not checked is named, never counted.
    """
    asked = threshold(evidence.claim, evidence.min_speedup)
    parts = (judge_speed(evidence, asked), judge_accuracy(evidence))
    outcomes = {part.outcome for part in parts}
    outcome: Outcome
    if "fails" in outcomes:
        outcome = "fails"
    elif "inconclusive" in outcomes or outcomes == {"not checked"}:
        outcome = "inconclusive"
    else:
        outcome = "holds"
    return Verdict(outcome, parts, asked)


def judge_speed(evidence: Evidence, asked: float | None) -> Part:
    """Whether the artifact is as much faster than its baseline as was asked.

    1. No speedup is claimed and none is asked: not checked.
    2. The claim is a prediction for another device, and not ``here``: inconclusive; nothing measured can hold.
    3. There is no baseline to compare with, or nothing was measured: inconclusive.
    4. The CPU is another model than the claim's, and not ``here``: inconclusive, with the figures seen.
    5. Otherwise: ``judge_ratio``.
    """
    claim, speed, noise = evidence.claim, evidence.speed, evidence.noise
    if asked is None:
        return Part("speedup", "not checked", "the bundle claims no speedup; --min-speedup X asks for one")
    if claim.kind == "predicted" and not evidence.here:
        line = (
            f"the claim is predicted for {claim.target}, nothing was measured that could hold; --here says this is one"
        )
    elif not claim.has_baseline:
        line = "the bundle has no baseline to compare with; its reproduce command makes one"
    elif speed is None or noise is None:
        line = "nothing was measured"
    elif claim.cpu != evidence.cpu and not evidence.here:
        line = (
            f"claimed on {claim.cpu!r}, this is {evidence.cpu!r}; --here judges it all the same; seen: {speed.line()}"
        )
    else:
        return Part("speedup", *judge_ratio(speed, noise, asked))
    return Part("speedup", "inconclusive", line)


def judge_ratio(speed: Ratio, noise: Ratio, asked: float) -> tuple[Outcome, str]:
    """The measured speedup against the number asked for, and why.

    1. The number lies inside the interval: inconclusive.
    2. It lies outside, but no further from the speedup than the baseline's interval reaches from 1 when it is compared
       with itself: inconclusive; this machine shows as much between equals.
    3. The interval's low end reaches it: holds.
    4. The interval's high end is below it: fails.

    From a single process the interval is taken ``_START_SPREAD`` wider on both sides.
    """
    factor = _START_SPREAD if speed.processes == 1 else 1.0
    low, high = speed.low / factor, speed.high * factor
    figures = f"{speed.value:.3f}x [{low:.3f}, {high:.3f}]"
    if low < asked <= high:
        return "inconclusive", f"{figures} has {asked:.2f}x inside; raise --max-time and --processes"
    if max(speed.value / asked, asked / speed.value) < noise.spread:
        equal = f"the baseline against itself gives [{noise.low:.3f}, {noise.high:.3f}]"
        return "inconclusive", f"{figures} is too near to {asked:.2f}x for this machine's noise: {equal}"
    if low >= asked:
        return "holds", f"{figures} is at least {asked:.2f}x"
    return "fails", f"{figures} is below {asked:.2f}x"


def judge_accuracy(evidence: Evidence) -> Part:
    """Whether the artifact file is right on as many images as claimed. File and images are the claim's own, byte for
    byte, so its interval, which is about other images, has no say.

    1. No accuracy is claimed: not checked.
    2. The images are missing, or are others than the claim's: not checked, with the reason.
    3. Time ran out before the last image: inconclusive.
    4. Fewer hits than claimed, by more than ``_allowance``: fails.
    5. As many, or more, or fewer within the allowance: holds, and says which.
    """
    claim, seen = evidence.claim, evidence.accuracy
    claimed = claim.hits
    if claimed is None:
        return Part("accuracy", "not checked", "the bundle claims no accuracy")
    if seen.value is None:
        return Part("accuracy", "not checked", seen.reason)
    if seen.n < seen.planned:
        line = f"time ran out after {seen.n} of {seen.planned} images ({seen.value:.2%} so far); raise --max-time"
        return Part("accuracy", "inconclusive", line)
    allowed, why = _allowance(evidence)
    lost = claimed - seen.hits
    figures = f"{seen.hits} of {seen.n} images right ({seen.value:.2%}), claimed {claimed}"
    if lost > allowed:
        return Part("accuracy", "fails", f"{figures}; {why}, so at most {allowed} may be lost")
    return Part("accuracy", "holds", f"{figures}{f'; {why}' if lost else ''}")


def _allowance(evidence: Evidence) -> tuple[int, str]:
    """How many hits fewer than claimed are no failure, and why.

    1. The CPU and the runtime are those of the claim: none.
    2. The CPU is another, or the runtime's version: ``_FLIPS`` of the images, one at least.
    """
    claim, seen = evidence.claim, evidence.accuracy
    some = max(1, int(_FLIPS * seen.n))
    if claim.cpu != evidence.cpu:
        return some, "this is another CPU than the claim's"
    for name, version in seen.versions.items():
        if claim.versions.get(name) != version:
            return some, f"this is {name} {version}, the claim's is {claim.versions.get(name, 'unknown')}"
    return 0, "file, images, CPU and runtime are the claim's"
