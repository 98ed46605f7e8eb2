"""Hold what a run of a suite found, with its exit code and its JSON: ``SuiteReport(...).exit_code``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from hnas.benchmarks.gate.measures import EndParts
from hnas.benchmarks.gate.records import GateVerdict, Outcome, PartVerdict, Ratio
from hnas.benchmarks.gate.verdict import combine_outcomes
from hnas.export.proof.load import Load


@dataclass(frozen=True)
class ClaimReport:
    """Describe one claim after its run.

    word: "faster" or "slower" (of memory "smaller" or "larger"), "same within 3 %" or "inconclusive"; empty: nothing
        was timed.
    parts: the verdict on each bound.
    speed, noise: of all looks together; None: nothing was timed.
    confirmation: the ratio of the fresh processes that a failure needs, or None.
    looks: how often the interval was judged, and extended if it did not decide.
    artifact, baseline: digests of the files; empty: there is no baseline.
    width: per cent by which the ends of the interval were allowed to differ; None: any width.
    ends: of an end-to-end claim, the parts of a call of the artifact and of the baseline.
    """

    name: str
    measure: str
    word: str
    parts: tuple[PartVerdict, ...]
    speed: Ratio | None
    noise: Ratio | None
    confirmation: Ratio | None
    looks: int
    artifact: str
    baseline: str
    width: float | None = None
    ends: Mapping[str, EndParts] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """Return the outcome of all parts together."""
        return combine_outcomes(part.outcome for part in self.parts)


@dataclass(frozen=True)
class SuiteReport:
    """Describe a finished run of a suite.

    calibration: a baseline against itself, before anything was judged; None: no claim is timed, or all failed.
    trusted: whether the interval of the calibration has 1 inside.
    """

    suite: str
    claims: tuple[ClaimReport, ...]
    calibration: Ratio | None
    trusted: bool
    seed: int
    seconds: float
    machine: Mapping[str, object]
    processor: str
    versions: Mapping[str, str]
    load: Load | None

    @property
    def verdict(self) -> GateVerdict:
        """Return the verdict over all claims: one that fails makes the suite fail."""
        parts: Sequence[PartVerdict] = [part for claim in self.claims for part in claim.parts]
        return GateVerdict(combine_outcomes(claim.outcome for claim in self.claims), tuple(parts), None)

    def calibration_line(self) -> str:
        """Return the calibration in one line."""
        if self.calibration is None and any(claim.measure for claim in self.claims):
            return "failed: the runtime of every timed claim failed"
        if self.calibration is None:
            return "none: no claim is timed"
        told = "1 is inside" if self.trusted else "1 is outside, so its far end is the noise of every claim"
        return f"a baseline against itself {self.calibration.line()}; {told}"

    def to_json(self) -> dict[str, object]:
        """Return the report as plain JSON values, with every pair of times."""
        claims = [{"outcome": claim.outcome, **asdict(claim)} for claim in self.claims]
        rest = {key: value for key, value in asdict(self).items() if key != "claims"}
        verdict = self.verdict
        return {
            "schema": 1,
            "outcome": verdict.outcome,
            "exit_code": verdict.exit_code,
            "claims": claims,
            **rest,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, object], file: str) -> SuiteReport:
        """Read the output of ``to_json``; raise ValueError in one line for anything else."""
        from hnas.export.device.records import check_version, decode

        stated = dict(record)
        check_version(stated, file, 1)
        machine, claims = stated.pop("machine", None), stated.get("claims")
        if not isinstance(machine, dict) or not isinstance(claims, list):
            raise ValueError(f"{file} is no record of hnas-bench run")
        stated["claims"] = [_without(claim, "outcome") for claim in claims]
        return decode(cls, _without(stated, "outcome", "exit_code"), file, machine=machine)


def _without(record: object, *derived: str) -> object:
    """Return a record without what ``to_json`` derives."""
    return {key: each for key, each in record.items() if key not in derived} if isinstance(record, dict) else record
