"""Hold the records of a check, and write the JSON and JUnit files that a CI system reads.

Nothing here measures or judges: ``check`` fills the evidence, ``verdict`` judges it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from hnas.export.proof.load import Load

Outcome = Literal["holds", "fails", "inconclusive", "not checked"]

_EXIT_CODES: Mapping[str, int] = {"holds": 0, "fails": 1, "inconclusive": 4}


@dataclass(frozen=True)
class Ratio:
    """The speedup of the second of two artifacts over the first, with its bootstrap interval and the raw times.

    value, low, high: the ratio and the ends of its interval.
    confidence: of the interval, 0 to 1.
    rounds: for each fresh process, pairs (seconds of the first, seconds of the second), one pair for each block.
    planned: how many processes were asked for.
    """

    value: float
    low: float
    high: float
    confidence: float
    rounds: tuple[tuple[tuple[float, float], ...], ...]
    planned: int

    @property
    def processes(self) -> int:
        """Return how many fresh processes of each side were run."""
        return len(self.rounds)

    @property
    def blocks(self) -> int:
        """Return how many interleaved blocks were run, over all processes."""
        return sum(len(pairs) for pairs in self.rounds)

    @property
    def cut(self) -> bool:
        """Return whether time ran out before every planned process was started."""
        return self.processes < self.planned

    @property
    def spread(self) -> float:
        """Return the largest factor by which the two sides may differ within the interval, 1 or more."""
        return max(self.high, 1 / self.low)

    @property
    def width(self) -> float:
        """Return by how many per cent the high end of the interval is above the low end."""
        return 100 * (self.high / self.low - 1)

    def line(self) -> str:
        """Return the ratio as one line of text: value, interval, blocks and processes."""
        count = f"{self.processes} process{'' if self.processes == 1 else 'es'}"
        cut = f", cut from {self.planned} for lack of time" if self.cut else ""
        interval = f"{self.confidence:.0%} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}x {interval}, {self.blocks} blocks in {count}{cut}"


@dataclass(frozen=True)
class BundleClaim:
    """The claim of a bundle, as far as a check can repeat it. ``None`` means that the bundle makes no such claim.

    cpu: the processor of the machine that the claim was made on.
    kind: "measured" or "predicted".
    speedup: ends of the interval, (low, high).
    against: the network that the speedup compares with.
    accuracy: top-1 of the artifact file over ``images`` images.
    versions: of the runtime and of the converters.
    load: the load of the machine while the claim was measured, in words; empty if the bundle does not state it.
    """

    name: str
    target: str
    backend: str
    precision: str
    cpu: str
    kind: str
    speedup_value: float | None
    speedup: tuple[float, float] | None
    against: str
    has_baseline: bool
    accuracy: float | None
    images: int
    versions: Mapping[str, str]
    load: str = ""

    @property
    def hits(self) -> int | None:
        """Return the number of right images that the claim states."""
        return None if self.accuracy is None else round(self.accuracy * self.images)


@dataclass(frozen=True)
class CountedAccuracy:
    """Top-1 of the artifact file, counted over ``n`` of ``planned`` images.

    reason: why there is no value, in one line.
    versions: of the runtime that counted.
    """

    value: float | None
    n: int
    planned: int
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        """Return how many of the ``n`` images are right."""
        return round((self.value or 0.0) * self.n)


@dataclass(frozen=True)
class Evidence:
    """Everything that decides a verdict: the claim, the options, and the measurements.

    cpu: the processor of the machine that ran the artifacts.
    here: whether to judge by this machine, even if the claim is for another CPU or is predicted.
    min_speedup: the speedup that the user requires, or None.
    noise: the ratio of the baseline to itself, or None.
    speed: the speedup of the artifact over the baseline, or None.
    """

    claim: BundleClaim
    cpu: str
    here: bool
    min_speedup: float | None
    noise: Ratio | None
    speed: Ratio | None
    accuracy: CountedAccuracy


@dataclass(frozen=True)
class PartVerdict:
    """The outcome of one part of a check (speedup, accuracy), with one line that explains it."""

    name: str
    outcome: Outcome
    line: str


@dataclass(frozen=True)
class GateVerdict:
    """The outcome of a check and of each of its parts; ``threshold`` is the speedup to reach."""

    outcome: Outcome
    parts: tuple[PartVerdict, ...]
    threshold: float | None

    @property
    def exit_code(self) -> int:
        """Return the exit code: 0 holds, 1 fails, 4 inconclusive."""
        return _EXIT_CODES[self.outcome]


@dataclass(frozen=True)
class GateReport:
    """One finished check; its JSON holds enough to judge it again.

    load: the load of this machine during the check; None on another machine, or where it is not known.
    """

    bundle: str
    artifact_digest: str
    evidence: Evidence
    verdict: GateVerdict
    seed: int
    seconds: float
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    load: Load | None = None

    @property
    def outcome(self) -> Outcome:
        """Return "holds", "fails" or "inconclusive"."""
        return self.verdict.outcome

    def to_json(self) -> dict[str, object]:
        """Return the report as plain JSON values, with the derived figures of ratios."""
        evidence = asdict(self.evidence)
        for name in ("noise", "speed"):
            ratio: Ratio | None = getattr(self.evidence, name)
            if ratio is not None:
                evidence[name] |= {"processes": ratio.processes, "blocks": ratio.blocks, "cut": ratio.cut}
        return {
            "schema": 1,
            "outcome": self.verdict.outcome,
            "exit_code": self.verdict.exit_code,
            "threshold": self.verdict.threshold,
            "parts": [asdict(part) for part in self.verdict.parts],
            "bundle": self.bundle,
            "artifact_digest": self.artifact_digest,
            "evidence": evidence,
            "seed": self.seed,
            "seconds": self.seconds,
            "machine": dict(self.machine),
            "load": None if self.load is None else asdict(self.load),
            "versions": dict(self.versions),
        }


def junit(name: str, parts: Sequence[PartVerdict], seconds: float) -> str:
    """Return the JUnit document of a check, as ``junit_suite`` does."""
    return junit_suite("hnas-bench check", [(name, parts)], seconds)


def junit_suite(title: str, claims: Iterable[tuple[str, Sequence[PartVerdict]]], seconds: float) -> str:
    """Return a JUnit document with one test case for each part of each claim, which are (name, parts).

    1. *holds*: a passed case.
    2. *fails*: a case with a ``failure``.
    3. *inconclusive* and *not checked*: a ``skipped`` case; the exit code tells the two apart.
    """
    cases = []
    for name, part in ((name, part) for name, parts in claims for part in parts):
        case = _case(name, part.name, part.line)
        if part.outcome == "fails":  # case 2
            case.insert(0, ElementTree.Element("failure", {"message": part.line, "type": "fails"}))
        elif part.outcome != "holds":  # case 3
            case.insert(0, ElementTree.Element("skipped", {"message": f"{part.outcome}: {part.line}"}))
        cases.append(case)  # case 1 has no further element
    return _document(title, cases, seconds)


def junit_error(name: str, line: str, code: int) -> str:
    """Return the JUnit document of a check that ended with an error: one case with an ``error``."""
    case = _case(name, "check", line)
    case.insert(0, ElementTree.Element("error", {"message": line, "type": f"exit code {code}"}))
    return _document("hnas-bench", [case], 0.0)


def _case(name: str, part: str, line: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": f"hnas-bench.{name}", "name": part, "time": "0"})
    ElementTree.SubElement(case, "system-out").text = line
    return case


def _document(title: str, cases: Sequence[ElementTree.Element], seconds: float) -> str:
    kinds = {"failures": "failure", "skipped": "skipped", "errors": "error"}
    found = {key: str(sum(case.find(tag) is not None for case in cases)) for key, tag in kinds.items()}
    counts = {"tests": str(len(cases)), **found}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": title, "time": f"{seconds:.3f}", **counts})
    suite.extend(cases)
    ElementTree.indent(root)
    # XML cannot hold control characters; a reader would refuse the whole file.
    text = "".join(c for c in ElementTree.tostring(root, encoding="unicode", xml_declaration=True) if _allowed(c))
    return text + "\n"


def _allowed(character: str) -> bool:
    """Return whether XML 1.0 allows the character."""
    return character in "\t\n" or " " <= character <= "\ud7ff" or "\ue000" <= character not in "\ufffe\uffff"


def to_text(record: Mapping[str, object]) -> str:
    """Return JSON with two spaces of indent; raise ValueError for not-a-number, which readers treat differently."""
    return json.dumps(record, indent=2, allow_nan=False)


def require_writable(path: Path) -> None:
    """Make the folder of ``path``; raise ValueError in one line unless a file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose another place") from None
    if path.exists() and not path.is_file() and not path.is_dir():  # the file is renamed over what is there
        raise ValueError(f"cannot write {path}: it is a device or a pipe, and no file; choose another place")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"cannot write {path}: it is a folder, or its folder is read-only; choose another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it is read-only; choose another place")
