"""Check that an artifact computes what its module computes: ``check(expected, got, precision)``. Needs numpy only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hnas.export.device.records import decode
from hnas.export.proof.slices import LARGEST_DB, OutputSlice, worst_slice
from hnas.export.proof.statistics import binomial_interval

Outputs = Sequence[tuple[NDArray[Any], ...]]
_Grade = Literal["as float", "close", "degraded", "broken"]

# The first grade whose two figures an artifact reaches: SQNR of the worst slice in dB, top-1 agreement.
_GRADES: tuple[tuple[_Grade, float, float], ...] = (("as float", 30.0, 0.99), ("close", 20.0, 0.95))
_MARGIN_DB = 30.0  # SQNR of "as float": the noise within which a float network's decision is a near tie
_SLACK_DB = 15.0  # an artifact may lie this far below the sensitivity of its module
_FLOOR_DB = 30.0  # no sensitivity lowers a limit further: such an artifact still is "as float"
_STEPS = {"int8": 255}  # steps of the integer type that one output shares
_LIMIT = re.compile(r"(?:(?P<level>\d+(?:\.\d+)?)dB)?(?:(?:^|\|)(?P<share>\d+(?:\.\d+)?)%)?", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Hold the minimum figures that an artifact of a precision must reach.

    sqnr_db: signal to quantisation noise ratio in dB, of every slice of every output.
    agreement: share of decisions that keep their top-1 class, 0 to 1.
    strict: True for the limits of a user. The share itself must reach ``agreement`` then; otherwise only a share whose
        whole 95 % interval is below ``agreement`` fails.
    """

    sqnr_db: float
    agreement: float
    strict: bool = False

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Return the strict limits in ``text``: "25dB", "97%", or "25dB|97%". A figure that is not given is 0.

        Raises:
            ValueError: ``text`` is none of these.
        """
        found = _LIMIT.fullmatch(text.replace(" ", ""))
        if found is None or not text.strip():
            raise ValueError(f"limit is {text[:40]!r}, expected dB, a share, or both, such as '25dB|97%'")
        level, share = float(found["level"] or 0), float(found["share"] or 0) / 100
        if share > 1 or level > LARGEST_DB:
            raise ValueError(f"limit is {text[:40]!r}, expected at most {LARGEST_DB:g}dB and 100%")
        return cls(level, share, strict=True)

    def at_least(self, other: Limits) -> Limits:
        """Return limits with the higher of each figure; strict if ``other`` is."""
        return Limits(max(self.sqnr_db, other.sqnr_db), max(self.agreement, other.agreement), other.strict)


# fp32 must reach 90 dB: a limit of 60 dB would accept bfloat16 arithmetic. w8 has int8 weights and fp32 activations.
LIMITS = {
    "fp32": Limits(90.0, 0.999),
    "fp16": Limits(40.0, 0.99),
    "bf16": Limits(25.0, 0.98),
    "int8": Limits(10.0, 0.80),
    "w8": Limits(25.0, 0.98),
}


@dataclass(frozen=True)
class Check:
    """Hold the result of a comparison with the module.

    max_error: largest absolute error over all outputs; infinite if an output is not finite where the module's is.
    sqnr_db: SQNR of the worst output over all samples together, between -200 and 200 dB.
    agreement: share of decisions with the same top-1 class, 0 to 1; None if the outputs are no class scores.
    n: number of samples.
    limits: the limits that apply to these outputs.
    worst: the worst slice of all outputs, see `worst_slice`; None if no slice carries information.
    decisions: number of rows that count for the agreement, see `check`; None in older records: every row.
    sensitivity_db: SQNR of the module under rounding noise of its inputs, where it lowered the limit.
    """

    precision: str
    max_error: float
    sqnr_db: float
    agreement: float | None
    n: int
    limits: Limits
    worst: OutputSlice | None = None
    decisions: int | None = None
    sensitivity_db: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a share or a number of samples that cannot be."""
        if self.n < 0 or not 0 <= (self.decisions or 0) <= max(self.n, 0):
            raise ValueError(f"n is {self.n} and decisions is {self.decisions}, expected 0 <= decisions <= n")
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise ValueError(f"agreement is {self.agreement}, expected 0 to 1")

    @property
    def lowest_db(self) -> float:
        """Return the SQNR that is judged: of the worst output, or of the worst slice if that is lower."""
        return self.sqnr_db if self.worst is None else min(self.sqnr_db, self.worst.sqnr_db)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the agreement (Clopper and Pearson), or None without an agreement."""
        many = self.n if self.decisions is None else self.decisions
        return None if self.agreement is None else binomial_interval(round(self.agreement * many), many)

    @property
    def passed(self) -> bool:
        """Return True if every figure reaches its limit."""
        return math.isfinite(self.max_error) and self.lowest_db >= self.limits.sqnr_db and not self._disagrees

    @property
    def grade(self) -> _Grade:
        """Return how close the artifact is to its module: "as float", "close", "degraded", or "broken" if it fails."""
        share = 1.0 if self.agreement is None else self.agreement
        kept = (name for name, level, least in _GRADES if self.lowest_db >= level and share >= least)
        return next(kept, "degraded") if self.passed else "broken"

    @property
    def _disagrees(self) -> bool:
        if self.agreement is None or self.interval is None:
            return False
        return (self.agreement if self.limits.strict else self.interval[1]) < self.limits.agreement

    def line(self) -> str:
        """Return one line for a person: the verdict, the grade, every figure and every limit."""
        head = f"{self.precision} {'holds' if self.passed else 'fails'} on {self.n} samples"
        if not math.isfinite(self.max_error):
            return f"{head}: the output is not finite where the module's is"
        limit = f"limit {self.limits.sqnr_db:g}"
        if self.sensitivity_db is not None:
            limit += f", as the network itself keeps {self.sensitivity_db:.0f} dB of its last bit"
        figures = [f"max error {self.max_error:.1e}", f"SQNR {self.sqnr_db:.1f} dB ({limit})"]
        if self.worst is not None and self.worst.sqnr_db < self.sqnr_db:
            what = "deviation of" if self.worst.axis is None else "worst slice"
            figures.append(f"{what} {self.worst} {self.worst.sqnr_db:.1f} dB")
        if self.agreement is not None and self.interval is not None:
            low, high = self.interval
            many = self.n if self.decisions is None else self.decisions
            shown = f"top-1 agreement {self.agreement:.1%} of {many} decisions"
            figures.append(f"{shown} (95 % interval {low:.1%} to {high:.1%}, limit {self.limits.agreement:.1%})")
        lost = self.sqnr_db >= self.limits.sqnr_db > self.lowest_db
        cause = "; a part of the output is lost beside the rest" if lost else ""
        return f"{head}{f', {self.grade}' if self.passed else ''}: {', '.join(figures)}{cause}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the verdict and the grade as JSON values."""
        return {**asdict(self), "passed": self.passed, "grade": self.grade}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Check:
        """Read the output of ``to_json``, also of older versions; raise ValueError for a missing or wrong field."""
        try:
            agreement, limits, worst = record["agreement"], record["limits"], record.get("worst")
            decisions, sensitivity = record.get("decisions"), record.get("sensitivity_db")
            return cls(
                precision=str(record["precision"]),
                max_error=float(record["max_error"]),
                sqnr_db=float(record["sqnr_db"]),
                agreement=None if agreement is None else float(agreement),
                n=int(record["n"]),
                limits=Limits(float(limits["sqnr_db"]), float(limits["agreement"]), bool(limits.get("strict", False))),
                worst=None if worst is None else decode(OutputSlice, worst, "verification", "worst"),
                decisions=None if decisions is None else int(decisions),
                sensitivity_db=None if sensitivity is None else float(sensitivity),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verification record: {type(error).__name__} {error}") from error


def check(
    expected: Outputs,
    got: Outputs,
    precision: str,
    *,
    names: Sequence[str] = (),
    classifier: bool = False,
    limits: Limits | None = None,
    sensitivity_db: float | None = None,
) -> Check:
    """Compare the outputs of the module with those of the artifact, sample by sample.

    1. Several outputs: the worst one counts, and of each output the worst slice (`worst_slice`).
    2. An output is NaN or infinite where the module's is finite: fails.
    3. The module's own infinities (masks): must be equal in the artifact, and are left out of the noise.
    4. Equal outputs: 200 dB.
    5. Class scores: the agreement is the share of decisions that keep their first class. A row is a decision if
       noise at 30 dB, or at the limit if that is higher, cannot change the order of the module's first two classes.
    6. The module amplifies rounding: the limit of a float precision is at most 15 dB less than ``sensitivity_db``, but
       at least 30 dB.

    expected, got: one tuple of output arrays for each sample.
    precision: a key of ``LIMITS``.
    names: the names of the outputs; default output_0, output_1, ...
    classifier: True if the first output holds class scores [n, classes], of which the largest is the answer.
    limits: strict limits are asked for in addition to those of ``LIMITS``; other limits replace them.
    sensitivity_db: the SQNR of the module where each of its inputs is changed by one unit in the last place.

    Raises:
        ValueError: there is nothing to compare, shapes differ, the precision has no limits, or the limits ask for an
        agreement and the first output is not [n, classes].

    Example: ``check([program.arrays(x)], [runner(x)], "int8").line()``
    """
    if precision not in LIMITS:
        raise ValueError(f"no limits for precision {precision!r}; known: {', '.join(LIMITS)}")
    if not expected or len(expected) != len(got):
        raise ValueError(
            f"expected and got must have the same length, at least one sample: {len(expected)} and {len(got)}"
        )
    if {len(sample) for sample in (*expected, *got)} != {len(expected[0])}:
        raise ValueError("samples differ in their number of outputs")
    asked, used = _asked(precision, limits, sensitivity_db)
    error, level, worst = _worst_output(expected, got, names, precision, asked.sqnr_db)  # case 1
    scores, answers = [sample[0] for sample in expected], [sample[0] for sample in got]
    rows = sum(map(len, scores)) if _are_scores(scores) else len(expected)
    agreement, decisions = None, None
    if _is_classifier(scores, classifier, limits):
        agreement, decisions = _agreement(scores, answers, max(_MARGIN_DB, asked.sqnr_db))
    return Check(precision, error, level, agreement, rows, asked, worst, decisions, used)


def recorded_terms(record: object) -> dict[str, Any]:
    """Return the arguments of ``check`` by which an artifact was judged, from its record; empty if that is unknown.

    Example: ``check(expected, got, precision, **recorded_terms(artifact.notes.get("verification")))``.
    """
    if not isinstance(record, dict):
        return {}
    was = Check.from_json(record)
    classifier = was.agreement is not None
    limits = replace(was.limits, agreement=was.limits.agreement if classifier else 0.0) if was.limits.strict else None
    return {"classifier": classifier, "limits": limits, "sensitivity_db": was.sensitivity_db}


def _asked(precision: str, limits: Limits | None, sensitivity_db: float | None) -> tuple[Limits, float | None]:
    """Return the limits that apply, and the sensitivity if it lowered them (case 6)."""
    strict = limits if limits is not None and limits.strict else None
    asked = LIMITS[precision] if limits is None or limits.strict else limits
    used = None
    if sensitivity_db is not None and precision not in ("int8", "w8"):
        level = max(sensitivity_db - _SLACK_DB, _FLOOR_DB)
        if level < asked.sqnr_db:
            asked, used = replace(asked, sqnr_db=level), sensitivity_db
    return (asked if strict is None else asked.at_least(strict)), used


def _is_classifier(scores: Sequence[NDArray[Any]], said: bool, limits: Limits | None) -> bool:
    """Return whether decisions are judged: the caller says so, or the user asks for an agreement."""
    if limits is None or not limits.strict or limits.agreement == 0:
        return said and _are_scores(scores)
    if not _are_scores(scores):
        shape = list(scores[0].shape)
        raise ValueError(f"a limit on the agreement needs class scores [n, classes]; the first output is {shape}")
    return True


def _are_scores(outputs: Sequence[NDArray[Any]]) -> bool:
    return all(output.ndim == 2 and output.shape[1] > 1 for output in outputs)


def _worst_output(
    expected: Outputs, got: Outputs, names: Sequence[str], precision: str, limit_db: float
) -> tuple[float, float, OutputSlice | None]:
    """Return the largest error, the lowest SQNR in dB, and the worst slice, each over all outputs.

    limit_db: the SQNR that is asked for, below which a slice of an integer type is lost whatever its noise comes from.
    """
    errors, levels, slices = [], [], []
    steps = _STEPS.get(precision, 0)
    floor = limit_db if steps else -math.inf
    for index in range(len(expected[0])):
        want, have = [sample[index] for sample in expected], [sample[index] for sample in got]
        error, level = _noise(want, have)
        errors.append(error)
        levels.append(level)
        if math.isfinite(error) and want[0].dtype.kind == "f":
            name = names[index] if index < len(names) else f"output_{index}"
            slices.append(worst_slice(name, want, have, steps, floor))
    return max(errors), min(levels), min(filter(None, slices), key=lambda each: each.sqnr_db, default=None)


def _noise(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return the max error and the SQNR in dB of one output over all samples."""
    signal = noise = worst = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape:
            raise ValueError(f"output shapes differ: {want.shape} from the module, {have.shape} from the artifact")
        finite = np.isfinite(want)
        # cases 2 and 3
        if not np.isfinite(have[finite]).all() or not np.array_equal(want[~finite], have[~finite], equal_nan=True):
            return math.inf, -LARGEST_DB
        reference = want[finite].astype(np.float64)
        difference = have[finite].astype(np.float64) - reference
        signal += float(np.square(reference).sum())
        noise += float(np.square(difference).sum())
        worst = max(worst, float(np.abs(difference).max(initial=0.0)))
    if noise == 0.0:  # case 4
        return worst, LARGEST_DB
    level = 10.0 * math.log10(signal / noise) if signal > 0.0 else -LARGEST_DB
    return worst, max(-LARGEST_DB, min(LARGEST_DB, level))


def _agreement(
    expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]], margin_db: float
) -> tuple[float | None, int]:
    """Return the share of decisions that keep their class, and their number (case 5); None if no row decides."""
    want, have = np.concatenate(expected).astype(np.float64), np.concatenate(got)
    second, first = np.partition(want, -2, axis=1)[:, -2:].T
    finite = np.where(np.isfinite(want), want, np.nan)
    spread = float(np.sqrt(np.nanmean(np.square(finite - np.nanmean(finite, axis=1, keepdims=True)))))
    noise = spread * 10 ** (-margin_db / 20)
    with np.errstate(invalid="ignore"):
        decided = first - second > 2 * math.sqrt(2) * noise  # twice the deviation of a difference of two noisy scores
    chosen = np.take_along_axis(want, have.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    kept = (chosen >= first)[decided]
    return (float(kept.mean()) if len(kept) else None), len(kept)
