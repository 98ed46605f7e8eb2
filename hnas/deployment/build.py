"""Compile a network in one precision, verify the saved file, and measure its accuracy where labels are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hnas import export
from hnas.deployment.network import SPLITS, StaticNetwork
from hnas.deployment.options import Progress
from hnas.deployment.plan import GUARD, ROUNDING, Plan
from hnas.export import backends
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Disconnected, ExportError, Unfaithful
from hnas.export.graph.samples import Sample, tell
from hnas.export.int8.policy import FILE_LADDER, LADDER
from hnas.export.proof.verification import LIMITS, Check, Limits, check
from hnas.export.remote.worker import Worker
from hnas.journal import Journal

CALIBRATION = 256  # samples for int8 ranges; more samples do not change the accuracy by more than the guard
EVIDENCE = 48  # samples of the first verification; the accuracy is measured later, on all search images
TRIALS = 8  # artifacts that a search for blocks in float compiles in one run; each takes some seconds


@dataclass(frozen=True)
class Run:
    """The resources of one deployment.

    folder: the folder of artifacts, with a sub-folder for each network.
    sample_of: returns the sample on which an artifact is timed.
    notify: called with (stage, steps done, steps in total).
    limits: figures that a user asks of every artifact, see `Limits.parse`; None: those of its precision.
    """

    plan: Plan
    journal: Journal
    compiler: Compiler
    folder: Path
    sample_of: Callable[[Artifact], Sample]
    notify: Progress
    limits: Limits | None = None


@dataclass(frozen=True)
class Built:
    """A verified artifact.

    check: the comparison of the artifact's outputs with those of the network in eager fp32.
    accuracy: split -> top-1 of the artifact; empty without labelled images.
    engine: measurements of the engine that a device built from the artifact; empty if no engine was built.
    """

    artifact: Artifact
    check: Check
    accuracy: Mapping[str, float] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return the precision for tables: "mixed" if blocks of an int8 artifact are in float."""
        return "mixed" if mixed_record(self.artifact).get("float") else self.artifact.precision

    def reaches(self, floor: float) -> bool:
        """Return whether the accuracy on the search images is at least ``floor``, or is unknown."""
        return self.accuracy.get("search", floor) >= floor - ROUNDING

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON. The artifact is represented by its digest."""
        found = {"digest": self.artifact.digest, "check": self.check.to_json(), "accuracy": dict(self.accuracy)}
        return found | {"engine": dict(self.engine)}


@dataclass(frozen=True)
class Refused:
    """A precision without an artifact.

    reason: one line.
    unfaithful: an artifact was built, but it does not compute what the network does.
    """

    precision: str
    reason: str
    unfaithful: bool = False


def build_precision(run: Run, network: StaticNetwork, precision: str) -> Built:
    """Return the verified artifact of ``network`` in ``precision``. An artifact of an interrupted run is reused.

    If int8 loses too much accuracy, it is built again with accuracy recovery. With labelled images, this function
    decides; without them, `export.compile` decides.
    """
    if precision != "int8":
        return _build_once(run, network, precision)
    if network.labelled is None:
        return _build_once(run, network, precision, "auto")
    floor = network.accuracy["search"] - GUARD
    make = partial(_build_once, run, network, precision)
    return build_within(floor, make, LADDER if network.editable else FILE_LADDER)


def build_mixed(
    run: Run, network: StaticNetwork, floor: float, known: Sequence[Built] = (), slow: Sequence[str] = ()
) -> Built:
    """Return the fastest int8 artifact with blocks in float whose accuracy on the search images reaches ``floor``.

    known: artifacts of the network, of which the one with all blocks in int8 is not built again.
    slow: the layers of that artifact that are slower than in float, the slowest first; empty: unknown.

    The fastest artifact may have no block in float. Raise ExportError if ``TRIALS`` assignments give no artifact.
    """
    assert isinstance(network.module, nn.Module)
    assert network.calibration is not None
    plain = next((each for each in known if each.label == "int8" and _is_plain(each.artifact)), None)

    def accept(artifact: Artifact) -> bool:
        if plain is not None and artifact.digest == plain.artifact.digest:
            return plain.reaches(floor)
        return network.labelled is None or verify_artifact(run, network, artifact, ("search",)).reaches(floor)

    compile_mixed = partial(
        export.compile_mixed,
        network.module,
        network.example,
        accept=accept,
        calibration=network.calibration,
        device=run.plan.device.name,
        threads=run.plan.threads,
        options=export.MixedOptions(
            evidence=network.evidence,
            limits=run.limits,
            classifier=_classifier(network),
            compiler=run.compiler,
            dynamic=network.dynamic,
            trials=TRIALS,
            plain=None if plain is None else plain.artifact,
            slow=slow,
        ),
    )

    def make(path: Path) -> Built:
        made = compile_mixed(path=path)
        if plain is not None and made.digest == plain.artifact.digest:  # no block in float pays
            return replace(plain, artifact=made)
        return verify_artifact(run, network, made)

    return build_once(run.journal, run.folder / network.key / "int8-mixed", make)


def _build_once(run: Run, network: StaticNetwork, precision: str, recover: str | None = None) -> Built:
    """Build the artifact with ``recover``: a rung of ``LADDER``, "auto", or None for no accuracy recovery."""

    def make(path: Path) -> Built:
        artifact = export.compile(
            network.module,
            network.example,
            device=run.plan.device.name,
            precision=precision,
            calibration=network.calibration if precision in ("int8", "fp16") else None,
            threads=run.plan.threads,
            path=path,
            options=export.CompileOptions(
                evidence=network.evidence,
                recover=recover or "none",
                limits=run.limits,
                classifier=_classifier(network),
                progress=run.notify if recover == "auto" else None,
                open_worker=run.plan.open if run.plan.site and network.labelled is None else None,
                compiler=run.compiler,
                dynamic=network.dynamic,
            ),
        )
        return verify_artifact(run, network, artifact)

    name = precision if recover in (None, "auto") else f"{precision}-{recover}"
    return build_once(run.journal, run.folder / network.key / name, make)


def _classifier(network: StaticNetwork) -> bool | None:
    """Return the option ``classifier`` of a compilation. With labelled images, changed classes are judged later."""
    return network.classifier if network.labelled is None else False


def verify_artifact(run: Run, network: StaticNetwork, artifact: Artifact, splits: Sequence[str] = SPLITS) -> Built:
    """Run the saved file on all labelled images of ``splits``, in a new process on the plan's machine.

    Without labelled images, the result of the verification in `export.compile` is used. With them, the accuracy decides
    on the artifact (`judge_artifacts`), and the verification refuses only outputs or slices that are broken.

    Raises:
        Unfaithful: an output on the search images, or a slice of one, is below the SQNR limit of the precision.
    """
    if network.labelled is None:
        found = Check.from_json(artifact.notes["verification"])
        if not run.plan.builds_engines:
            return Built(artifact, found)
        with run.plan.open(artifact) as worker:
            return Built(artifact, found, engine=_engine_of(worker))
    with run.plan.open(artifact) as worker:
        outputs = {split: worker.outputs(getattr(network.labelled, split)) for split in splits}
        engine = _engine_of(worker)
    expected = [(scores[None],) for scores in network.labelled.expected["search"]]
    first = [each[:1] for each in outputs["search"]]  # `export.compile` has verified the other outputs
    limits = replace(LIMITS[artifact.precision], agreement=0.0)  # the accuracy guard decides on changed classes
    own = Check.from_json(artifact.notes["verification"]).sensitivity_db
    found = check(expected, first, artifact.precision, classifier=True, limits=limits, sensitivity_db=own)
    if not found.passed:
        raise Unfaithful(f"the {artifact.precision} artifact is not the network: {found.line()}")
    return Built(artifact, found, {s: _top1(outputs[s], network.labelled.labels[s]) for s in outputs}, engine)


def mixed_record(artifact: Artifact) -> Mapping[str, Any]:
    """Return the record of how the blocks in float were chosen. Empty for an artifact without such blocks."""
    table = artifact.notes.get("quantisation")
    record = table.get("mixed") if isinstance(table, dict) else None
    return record if isinstance(record, dict) else {}


def _is_plain(artifact: Artifact) -> bool:
    """Return whether an int8 artifact was made without accuracy recovery, with all blocks in int8."""
    table = artifact.notes.get("quantisation")
    return isinstance(table, dict) and not table.get("recovery") and not table.get("blocks_in_float")


def _engine_of(worker: Worker) -> dict[str, Any]:
    """Return measurements of the engine that the worker's runtime built; empty if it built none.

    Tell the user about layers that run above their stated precision.
    """
    if not worker.report:
        return {}
    figures: dict[str, Any] = backends.load(worker.backend).engine_figures(worker.report)  # type: ignore[attr-defined]
    for line in figures.get("above", []):
        tell(f"engine: {line}")
    return dict(figures)


def build_once(journal: Journal, path: Path, make: Callable[[Path], Built]) -> Built:
    """Return the artifact at ``path`` with its record in the journal.

    Call ``make(path)`` if the journal has no record, or if the files are missing or changed.
    """
    record = journal.call(f"build/{path.parent.name}/{path.name}", lambda: make(path).to_json())
    try:
        artifact = Artifact.read(path)
    except (ValueError, FileNotFoundError):  # removed or changed since
        return make(path)
    if artifact.digest != record["digest"]:
        return make(path)
    return Built(artifact, Check.from_json(record["check"]), record["accuracy"], record.get("engine", {}))


def build_within(floor: float, make: Callable[[str | None], Built], rungs: Sequence[str] = LADDER) -> Built:
    """Return the plain artifact, or the first accuracy recovery that reaches ``floor`` on the search images.

    make: builds the artifact with one of ``rungs``, or None for no recovery.

    1. The plain artifact reaches ``floor``: return it.
    2. An artifact with one of ``rungs`` reaches ``floor``: return the first one.
    3. No artifact reaches ``floor``: return the most accurate one. The guard refuses it later.
    4. A build fails: try the next rung. If all builds fail, raise the ExportError of the plain artifact.
    """
    built: list[Built] = []
    failures: list[ExportError] = []
    for rung in (None, *rungs):
        try:
            built.append(make(rung))
        except Disconnected:
            raise
        except ExportError as error:  # case 4
            failures.append(error)
            continue
        if built[-1].reaches(floor):  # cases 1 and 2
            return built[-1]
    if not built:
        raise failures[0]
    return max(built, key=lambda found: found.accuracy["search"])  # case 3


def build_each(
    precisions: Sequence[str], make: Callable[[str], Built], advance: Callable[[int], None], *, spare: bool = False
) -> tuple[list[Built], list[Refused]]:
    """Build every precision. Return the artifacts, and the precisions that failed with their reasons.

    advance: called with k before the k-th build.
    spare: whether the caller has another candidate. An unfaithful artifact is then no error, even if no other is left.

    Raises:
        ExportError: the only precision fails, or all of them fail and there is no spare.
    """
    built: list[Built] = []
    refused: list[Refused] = []
    for done, precision in enumerate(precisions, 1):
        advance(done)
        try:
            built.append(make(precision))
        except Disconnected:  # not a fault of the precision
            raise
        except ExportError as error:
            unfaithful = isinstance(error, Unfaithful)
            if len(precisions) == 1 and not (spare and unfaithful):
                raise
            refused.append(Refused(precision, str(error), unfaithful))
    if not built and not spare:
        raise ExportError("; ".join(r.reason for r in refused))
    return built, refused


def _top1(outputs: Sequence[tuple[NDArray[Any], ...]], labels: NDArray[np.int64]) -> float:
    """Return the share of images whose highest score is the label. Each output is [1, classes]."""
    return float(np.mean([int(scores[0].argmax()) == label for scores, label in zip(outputs, labels, strict=True)]))
