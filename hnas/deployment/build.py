"""From a chosen network to artifacts that were verified, judged and measured in turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hnas import export
from hnas.export import backends
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Disconnected, ExportError, Unfaithful
from hnas.export.int8.policy import LADDER
from hnas.export.proof.measurement import Comparison
from hnas.export.proof.verification import Check, check
from hnas.export.remote.worker import Worker
from hnas.journal import Journal

Inputs = tuple[NDArray[Any], ...]
Stage = Callable[[str, int, int], None]  # stage, steps done, steps in all
CALIBRATION = 256  # images for int8 ranges; more change nothing that the guard can see
EVIDENCE = 48  # images on which a saved file is checked first; too few to judge agreement, which the search images do
PROCESSES, BLOCKS = 5, 10  # of the final measurement
TRIALS = 8  # artifacts that a search for blocks in float compiles, in a run; each takes some seconds
PATIENCE = 900.0  # seconds for one conversion; int8 of a large network takes a minute or two on a small machine


@dataclass(frozen=True)
class Images:
    """What artifacts are judged on, as inputs of one network: search decides, test only reports.

    expected: the fp32 network's own outputs on both splits, [N, classes].
    """

    calibration: Sequence[Inputs]
    search: Sequence[Inputs]
    test: Sequence[Inputs]
    labels: Mapping[str, NDArray[np.int64]]
    expected: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Built:
    """An artifact and what it does on images: ``accuracy`` by split, ``check`` against the fp32 network on search.

    ``engine`` is what a device said of the engine that it built from the artifact; empty where there is none.
    """

    artifact: Artifact
    check: Check
    accuracy: Mapping[str, float]
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The precision for a person: "mixed" where blocks of an int8 artifact are in float."""
        return "mixed" if mixed_record(self.artifact).get("float") else self.artifact.precision

    def to_json(self) -> dict[str, Any]:
        """All but the artifact itself, of which the digest stands here."""
        found = {"digest": self.artifact.digest, "check": self.check.to_json(), "accuracy": dict(self.accuracy)}
        return found | {"engine": dict(self.engine)}


def limited_compiler() -> Compiler:
    """A compiler for a whole run, not started yet: it may take ``PATIENCE`` a conversion, and half of the memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return Compiler(timeout=PATIENCE, memory_mb=max(2048, total // 2))


@dataclass(frozen=True)
class Refused:
    """A precision that was tried and gave no artifact, and why in one line.

    ``unfaithful``: there was one, which did not compute what the network does.
    """

    precision: str
    reason: str
    unfaithful: bool = False


def build(
    net: nn.Module,
    images: Images,
    *,
    device: str,
    precision: str,
    threads: int,
    path: Path,
    recover: str | None = None,
    opened: Callable[[Artifact], Worker] = Worker,
    compiler: Compiler | None = None,
) -> Built:
    """Compile ``net``, open the saved file in a new process, and run every search and test image through it.

    ``recover`` is a rung of ``LADDER``, fitted to the calibration images alone. ``opened`` starts
    that process, on another machine perhaps; ``compiler`` is the one that converts (None: this process).
    """
    artifact = export.compile(
        net,
        images.search[0],
        device=device,
        precision=precision,
        calibration=images.calibration[:CALIBRATION] if precision == "int8" else None,
        threads=threads,
        path=path,
        options=export.CompileOptions(evidence=images.search[:EVIDENCE], recover=recover, compiler=compiler),
    )
    return seen(artifact, images, ("search", "test"), opened)


def build_mixed(
    net: nn.Module, images: Images, floor: float, *, device: str, threads: int, path: Path, compiler: Compiler
) -> Built:
    """The fastest int8 artifact with blocks in float that reaches ``floor`` on the search images; perhaps without any.

    ExportError where ``TRIALS`` assignments give none.
    """

    def accept(artifact: Artifact) -> bool:
        return seen(artifact, images, ("search",)).accuracy["search"] >= floor - 1e-9

    artifact = export.compile_mixed(
        net,
        images.search[0],
        accept=accept,
        device=device,
        calibration=images.calibration[:CALIBRATION],
        threads=threads,
        path=path,
        options=export.MixedOptions(evidence=images.search[:EVIDENCE], compiler=compiler, trials=TRIALS),
    )
    return seen(artifact, images, ("search", "test"))


def seen(
    artifact: Artifact, images: Images, splits: Sequence[str], opened: Callable[[Artifact], Worker] = Worker
) -> Built:
    """What the saved file does on all images of ``splits``; Unfaithful where it is not the network on search images."""
    with opened(artifact) as worker:
        outputs = {split: worker.outputs(getattr(images, split)) for split in splits}
        engine = engine_of(worker)
    expected = [(row[None],) for row in images.expected["search"]]
    found = check(expected, outputs["search"], artifact.precision)
    if not found.passed:
        raise Unfaithful(f"the {artifact.precision} artifact is not the network: {found.line()}")
    shares = {split: accuracy(outputs[split], images.labels[split]) for split in outputs}
    return Built(artifact, found, shares, engine)


def mixed_record(artifact: Artifact) -> Mapping[str, Any]:
    """What an artifact in mixed precision says of how its blocks were chosen; empty for any other."""
    table = artifact.notes.get("quantisation")
    record = table.get("mixed") if isinstance(table, dict) else None
    return record if isinstance(record, dict) else {}


def engine_of(worker: Worker) -> dict[str, Any]:
    """What the runtime of ``worker`` said of the engine that it built, in figures; empty where it built none."""
    return dict(backends.load(worker.backend).engine_figures(worker.report)) if worker.report else {}  # type: ignore[attr-defined]


def build_once(journal: Journal, path: Path, make: Callable[[Path], Built]) -> Built:
    """What the journal says was built at ``path``, if those bytes still lie there; else what ``make(path)`` builds."""
    record = journal.call(f"build/{path.parent.name}/{path.name}", lambda: make(path).to_json())
    try:
        artifact = Artifact.read(path)
    except (ValueError, FileNotFoundError):  # gone or changed since
        return make(path)
    if artifact.digest != record["digest"]:
        return make(path)
    return Built(artifact, Check.from_json(record["check"]), record["accuracy"], record.get("engine", {}))


def build_within(floor: float, make: Callable[[str | None], Built]) -> Built:
    """What ``make(None)`` builds; where it misses ``floor`` on the search images, the cheapest recovery that does not.

    1. The plain artifact reaches it: taken.
    2. A rung of ``LADDER`` reaches it: the first that does.
    3. None does: the most accurate, for the guard to refuse with its figure.
    4. A build that fails counts as a miss; ExportError of the plain one where all fail.
    """
    built: list[Built] = []
    failures: list[ExportError] = []
    for rung in (None, *LADDER):
        try:
            built.append(make(rung))
        except Disconnected:
            raise
        except ExportError as error:
            failures.append(error)
            continue
        if built[-1].accuracy["search"] >= floor - 1e-9:
            return built[-1]
    if not built:
        raise failures[0]
    return max(built, key=lambda found: found.accuracy["search"])


def build_each(
    precisions: Sequence[str], make: Callable[[str], Built], advance: Callable[[int], None], *, spare: bool = False
) -> tuple[list[Built], list[Refused]]:
    """Every precision that can be built; one that fails is kept with its reason, unless it is the only one.

    ``advance(k)`` is called before the k-th one. ``spare``: something else will be tried where none is faithful.
    """
    built: list[Built] = []
    refused: list[Refused] = []
    for done, precision in enumerate(precisions, 1):
        advance(done)
        try:
            built.append(make(precision))
        except Disconnected:  # which says nothing about the precision
            raise
        except ExportError as error:
            unfaithful = isinstance(error, Unfaithful)
            if len(precisions) == 1 and not (spare and unfaithful):
                raise
            refused.append(Refused(precision, str(error), unfaithful))
    if not built and not spare:
        raise ExportError("; ".join(r.reason for r in refused))
    return built, refused


def accuracy(outputs: Sequence[tuple[NDArray[Any], ...]], labels: NDArray[np.int64]) -> float:
    """Top-1 of scores [1, classes] for each image."""
    return float(np.mean([int(scores[0].argmax()) == label for scores, label in zip(outputs, labels, strict=True)]))


def interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share that was seen in ``n`` images."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    built: Built
    comparison: Comparison | None
    verdict: str


def judge(
    built: Sequence[Built],
    comparisons: Sequence[Comparison | None],
    fp32_accuracy: float,
    guard: float,
    objection: Callable[[Built, Comparison | None], str | None] = lambda _built, _comparison: None,
) -> tuple[int | None, list[Row]]:
    """Which artifact to keep: the fastest that keeps the accuracy guard and every window; and why not the others.

    1. search accuracy below the fp32 network's minus ``guard``: refused, whatever its speed.
    2. ``objection`` (a window that the artifact itself misses): refused with that reason.
    3. measured: the highest speedup of the rest. predicted (no comparison): the last, that is lowest, precision.
    4. nothing is left: None.
    5. no accuracy is known (a network that came without images): case 1 refuses nobody.
    """
    reasons = []
    most = guard + 1e-9  # 90 % - 89 % is a rounding error more than 1 %
    for b, c in zip(built, comparisons, strict=True):
        lost = fp32_accuracy - b.accuracy.get("search", fp32_accuracy)
        slips = f"loses {100 * lost:.1f} points on the search images (guard {100 * guard:g})" if lost > most else None
        reasons.append(slips or objection(b, c))
    speed = [c.ratio if c is not None else float(i) for i, c in enumerate(comparisons)]
    allowed = [i for i, reason in enumerate(reasons) if reason is None]
    best = max(allowed, key=lambda i: speed[i], default=None)
    rows = []
    for i, (b, c, reason) in enumerate(zip(built, comparisons, reasons, strict=True)):
        if i == best:
            verdict = "kept"
        elif reason is None and best is not None and c is not None and (kept := comparisons[best]) is not None:
            verdict = f"not taken: {kept.ratio / c.ratio:.2f}x the time of {built[best].label}"
        else:
            verdict = f"not taken: {reason or 'a lower precision is kept'}"
        rows.append(Row(b, c, verdict))
    return best, rows
