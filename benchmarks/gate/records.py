"""What a check of a bundle leaves behind: frozen records, and the JSON and JUnit files a CI system reads.

Nothing here measures or judges: ``check`` fills the evidence, ``gate`` turns it into a verdict.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

Outcome = Literal["holds", "fails", "inconclusive", "not checked"]

_EXIT_CODES: Mapping[str, int] = {"holds": 0, "fails": 1, "inconclusive": 4}


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second of two artifacts is, with its bootstrap interval and the raw times.

    ``rounds`` holds, for every fresh process, its pairs (seconds of the first, seconds of the second), each pair from
    one interleaved block. ``planned`` is how many processes were asked for.
    """

    value: float
    low: float
    high: float
    confidence: float
    rounds: tuple[tuple[tuple[float, float], ...], ...]
    planned: int

    @property
    def processes(self) -> int:
        """How many fresh processes each side really had."""
        return len(self.rounds)

    @property
    def blocks(self) -> int:
        """How many interleaved blocks were run, over all processes."""
        return sum(len(pairs) for pairs in self.rounds)

    @property
    def cut(self) -> bool:
        """Whether time ran out before every planned process was started."""
        return self.processes < self.planned

    @property
    def spread(self) -> float:
        """The largest factor by which the interval allows the two sides to differ, 1 or more."""
        return max(self.high, 1 / self.low)

    def line(self) -> str:
        """The ratio as a person reads it: value, interval, and what it rests on."""
        count = f"{self.processes} process{'' if self.processes == 1 else 'es'}"
        cut = f", cut from {self.planned} for lack of time" if self.cut else ""
        interval = f"{self.confidence:.0%} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}x {interval}, {self.blocks} blocks in {count}{cut}"


@dataclass(frozen=True)
class Claim:
    """What a bundle says of itself, as far as it can be re-proved.

    ``cpu`` is all that its machine says of its processor, ``versions`` those of the runtime and what built for it.
    ``speedup`` is (low, high). ``None`` means that the bundle claims nothing there.
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

    @property
    def hits(self) -> int | None:
        """How many of its images the claim says are right."""
        return None if self.accuracy is None else round(self.accuracy * self.images)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of the artifact file over ``n`` of ``planned`` images; without a value, ``reason`` says why in one line.

    ``versions`` are those of the runtime that counted.
    """

    value: float | None
    n: int
    planned: int
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        """How many of the ``n`` images are right."""
        return round((self.value or 0.0) * self.n)


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict rests on: the claim, what was asked, and what was seen on the machine at hand."""

    claim: Claim
    cpu: str
    here: bool
    min_speedup: float | None
    noise: Ratio | None
    speed: Ratio | None
    accuracy: Accuracy


@dataclass(frozen=True)
class Part:
    """The outcome of one question, with the one sentence that explains it."""

    name: str
    outcome: Outcome
    line: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of a whole check and of each of its parts."""

    outcome: Outcome
    parts: tuple[Part, ...]
    threshold: float | None

    @property
    def exit_code(self) -> int:
        """0 holds, 1 fails, 4 inconclusive."""
        return _EXIT_CODES[self.outcome]


@dataclass(frozen=True)
class Report:
    """One finished check, complete enough to be judged again from its JSON."""

    bundle: str
    artifact_digest: str
    evidence: Evidence
    verdict: Verdict
    seed: int
    seconds: float
    machine: Mapping[str, object]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """The report as plain JSON values; ratios carry their derived figures too."""
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
            "versions": dict(self.versions),
        }


def junit(name: str, parts: Sequence[Part], seconds: float) -> str:
    """A JUnit document with one test case a part.

    1. *holds*: a passed case.
    2. *fails*: a case with a ``failure``.
    3. *inconclusive* and *not checked*: a case that is ``skipped``; the exit code tells them apart.
    """
    cases = []
    for part in parts:
        case = _case(name, part.name, part.line)
        if part.outcome == "fails":
            case.insert(0, ElementTree.Element("failure", {"message": part.line, "type": "fails"}))
        elif part.outcome != "holds":
            case.insert(0, ElementTree.Element("skipped", {"message": f"{part.outcome}: {part.line}"}))
        cases.append(case)
    return _document(cases, seconds)


def junit_error(name: str, line: str, code: int) -> str:
    """A JUnit document of a check that ended with an error instead of a verdict: one case with an ``error``."""
    case = _case(name, "check", line)
    case.insert(0, ElementTree.Element("error", {"message": line, "type": f"exit code {code}"}))
    return _document([case], 0.0)


def _case(name: str, part: str, line: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": f"hnas-bench.{name}", "name": part, "time": "0"})
    ElementTree.SubElement(case, "system-out").text = line
    return case


def _document(cases: Sequence[ElementTree.Element], seconds: float) -> str:
    kinds = {"failures": "failure", "skipped": "skipped", "errors": "error"}
    found = {key: str(sum(case.find(tag) is not None for case in cases)) for key, tag in kinds.items()}
    counts = {"tests": str(len(cases)), **found}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "hnas-bench check", "time": f"{seconds:.3f}", **counts})
    suite.extend(cases)
    ElementTree.indent(root)
    # XML has no way to write a control character, and a reader would refuse the whole file.
    text = "".join(c for c in ElementTree.tostring(root, encoding="unicode", xml_declaration=True) if _allowed(c))
    return text + "\n"


def _allowed(character: str) -> bool:
    """Whether XML 1.0 has the character."""
    return character in "\t\n" or " " <= character <= "\ud7ff" or "\ue000" <= character not in "\ufffe\uffff"


def to_text(record: Mapping[str, object]) -> str:
    """JSON with two-space indent; not-a-number is refused, since readers differ about it."""
    return json.dumps(record, indent=2, allow_nan=False)


def require_writable(path: Path) -> None:
    """ValueError in one line unless a file can be put at ``path``; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose another place") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"cannot write {path}: a folder is there, or its own cannot be written; choose another place")
