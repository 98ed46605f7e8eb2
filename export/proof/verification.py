"""Check that an artifact computes what its module computes: ``check(expected, got, precision)``. Needs numpy only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.proof.slices import OutputSlice

Outputs = Sequence[tuple[NDArray[Any], ...]]

_JUDGED_FROM = 50  # images; with fewer, one changed class exceeds the limit
_LIMIT = re.compile(r"(?=.*\\d)(?:(?P<level>\d+(?:\.\d+)?)dB)?\|?(?:(?P<share>\d+(?:\.\d+)?)%)?", re.IGNORECASE)
_NO_NOISE_DB = 200.0  # equal outputs; JSON has no infinity


@dataclass(frozen=True)
class Limits:
    """Hold the minimum figures that an artifact of a precision must reach.

    sqnr_db: signal to quantisation noise ratio in dB.
    agreement: share of decisions that keep their top-1 class, 0 to 1.
    strict: True where a user asks for these figures, see `Limits.parse`.
    """

    sqnr_db: float
    agreement: float
    strict: bool = False

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Return the limits in ``text``: "25dB", "97%", or "25dB|97%". A figure that is not given is 0.

        Raises:
            ValueError: ``text`` is none of these.
        """
        found = _LIMIT.fullmatch(text.replace(" ", ""))
        if found is None:
            raise ValueError(f"limit {text[:40]!r} is none; write dB, a share, or both, such as '25dB|97%'")
        level, share = float(found["level"] or 0), float(found["share"] or 0) / 100
        if share > 1:
            raise ValueError(f"limit {text[:40]!r} asks for more than 100 % agreement")
        return cls(level, share, strict=True)

    def at_least(self, other: Limits | None) -> Limits:
        """Return the stricter figure of each kind; ``other`` None: these limits."""
        if other is None:
            return self
        return Limits(max(self.sqnr_db, other.sqnr_db), max(self.agreement, other.agreement), other.strict)


# fp32 must reach 90 dB: a limit of 60 dB would accept bfloat16 arithmetic. w8 has int8 weights and fp32 activations.
LIMITS = {
    "fp32": Limits(90.0, 0.999),
    "fp16": Limits(40.0, 0.99),
    "bf16": Limits(25.0, 0.98),
    "int8": Limits(10.0, 0.97),
    "w8": Limits(25.0, 0.98),
}


@dataclass(frozen=True)
class Check:
    """Hold the result of a comparison with the module.

    max_error: largest absolute error over all outputs; infinite if an output is not finite where the module's is.
    sqnr_db: SQNR of the worst output over all samples together, between -200 and 200 dB.
    agreement: share of images with the same top-1 class, 0 to 1; None unless the first output is [n, classes]. The
        limit applies from 50 images on.
    n: number of samples.
    """

    precision: str
    max_error: float
    sqnr_db: float
    agreement: float | None
    n: int
    limits: Limits
    worst: OutputSlice | None = None
    sensitivity_db: float | None = None

    @property
    def grade(self) -> str:
        """Return "as float", "close", "degraded" or "broken"."""
        return "close" if self.passed else "broken"

    @property
    def passed(self) -> bool:
        """Return True if every figure reaches its limit."""
        return math.isfinite(self.max_error) and self.sqnr_db >= self.limits.sqnr_db and not self._disagrees

    @property
    def _judged(self) -> bool:
        return self.agreement is not None and self.n >= _JUDGED_FROM

    @property
    def _disagrees(self) -> bool:
        return self.agreement is not None and self._judged and self.agreement < self.limits.agreement

    def line(self) -> str:
        """Return one line for a person: the verdict, every figure and every limit."""
        if not math.isfinite(self.max_error):
            return f"{self.precision} fails on {self.n} samples: the output is not finite where the module's is"
        figures = [f"max error {self.max_error:.1e}", f"SQNR {self.sqnr_db:.1f} dB (limit {self.limits.sqnr_db:g})"]
        if self.agreement is not None:
            limit = f"limit {self.limits.agreement:.1%}" if self._judged else f"not judged below {_JUDGED_FROM}"
            figures.append(f"top-1 agreement {self.agreement:.2%} ({limit})")
        return f"{self.precision} {'holds' if self.passed else 'fails'} on {self.n} samples: {', '.join(figures)}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the verdict as JSON values."""
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Check:
        """Read the output of ``to_json``; raise ValueError for a missing or wrong field."""
        try:
            agreement = record["agreement"]
            return cls(
                precision=str(record["precision"]),
                max_error=float(record["max_error"]),
                sqnr_db=float(record["sqnr_db"]),
                agreement=None if agreement is None else float(agreement),
                n=int(record["n"]),
                limits=Limits(float(record["limits"]["sqnr_db"]), float(record["limits"]["agreement"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verification record: {type(error).__name__} {error}") from error


def check(
    expected: Outputs,
    got: Outputs,
    precision: str,
    *,
    names: Sequence[str] = (),  # noqa: ARG001
    classifier: bool = False,  # noqa: ARG001
    limits: Limits | None = None,
    sensitivity_db: float | None = None,  # noqa: ARG001
) -> Check:
    """Compare the outputs of the module with those of the artifact, sample by sample.

    1. Several outputs: the worst one counts.
    2. An output is NaN or infinite where the module's is finite: fails.
    3. The module's own infinities (masks): must be equal in the artifact, and are left out of the noise.
    4. Equal outputs: 200 dB.

    expected, got: one tuple of output arrays for each sample.
    precision: a key of ``LIMITS``.
    names: the names of the outputs; default output_0, output_1, ...
    classifier: True if the first output holds class scores [n, classes], of which the largest is the answer.
    limits: limits of the user. The stricter figure counts, of these and of those in ``LIMITS``.
    sensitivity_db: the SQNR of the module under rounding noise of its inputs, which a float artifact need not exceed.

    Raises:
        ValueError: there is nothing to compare, shapes differ, or the precision has no limits.

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
    errors, levels = [], []
    for index in range(len(expected[0])):
        error, level = _noise([sample[index] for sample in expected], [sample[index] for sample in got])
        errors.append(error)
        levels.append(level)
    agreement, n = _agreement([sample[0] for sample in expected], [sample[0] for sample in got])
    return Check(precision, max(errors), min(levels), agreement, n, LIMITS[precision].at_least(limits))  # case 1


def _noise(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return the max error and the SQNR in dB of one output over all samples."""
    signal = noise = worst = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape:
            raise ValueError(f"output shapes differ: {want.shape} from the module, {have.shape} from the artifact")
        finite = np.isfinite(want)
        # cases 2 and 3
        if not np.isfinite(have[finite]).all() or not np.array_equal(want[~finite], have[~finite], equal_nan=True):
            return math.inf, -_NO_NOISE_DB
        reference = want[finite].astype(np.float64)
        difference = have[finite].astype(np.float64) - reference
        signal += float(np.square(reference).sum())
        noise += float(np.square(difference).sum())
        worst = max(worst, float(np.abs(difference).max(initial=0.0)))
    if noise == 0.0:  # case 4
        return worst, _NO_NOISE_DB
    level = 10.0 * math.log10(signal / noise) if signal > 0.0 else -_NO_NOISE_DB
    return worst, max(-_NO_NOISE_DB, min(_NO_NOISE_DB, level))


def _agreement(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> tuple[float | None, int]:
    """Return the share of rows that keep their top-1 class, and the number of samples; ties count as kept."""
    if any(output.ndim != 2 or output.shape[1] < 2 for output in expected):
        return None, len(expected)
    want, have = np.concatenate(expected), np.concatenate(got)
    chosen = np.take_along_axis(want, have.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return float(np.mean(chosen >= want.max(axis=1))), len(want)
