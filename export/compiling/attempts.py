"""Make artifacts of one network until one is good enough: ``Attempts(job, evidence, folder, name).best()``."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.compiling.conversion import convert
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.graph.samples import tell
from hnas.export.int8.policy import FILE_LADDER, int8_remarks
from hnas.export.onnx.biases import EDIT
from hnas.export.onnx.source import OnnxSource
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    from hnas import hw_profiles
    from hnas.export.compiling.evidence import EvidenceSet, Judgement
    from hnas.export.compiling.options import CompileOptions
    from hnas.export.device.artifact import Artifact
    from hnas.export.device.records import JSON
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.export.int8.ladder import Ladder
    from hnas.export.proof.verification import Check

_USUAL_DB = 100.0  # fp32 artifacts reach this; the passes of one that does not are examined
_MARGIN_DB = 20.0  # passes that cost more than this are left out, although the artifact verifies
_GRADES = ("broken", "degraded", "close", "as float")
_GOOD = ("close", "as float")
_MOST = 3  # passes that are left out one by one
_QUIET = 5.0  # seconds of recovery before its rungs are shown
_OF_FILES = ("none", *FILE_LADDER)
_FILE_REMARK = f"of the rungs of accuracy recovery an ONNX file takes {', '.join(FILE_LADDER)} alone; pass the module"
_LEARNING = ("round_weights", "finetune")  # edits with a parameter for each weight, which can overfit


@dataclass(frozen=True)
class Job:
    """Hold a checked request.

    rungs: the rungs of accuracy recovery to try, in order; "none" means no edit.
    """

    backend: str
    device: hw_profiles.Device
    precision: str
    threads: int
    rungs: Sequence[str]
    options: CompileOptions


@dataclass(frozen=True)
class Attempt:
    """Hold a verified artifact, and how it was made.

    judged: the result that is recorded; after rounding or fine-tuning on samples that no edit was fitted to.
    level: SQNR in dB on the samples that no edit of any attempt was fitted to, to compare attempts.
    edits: the record of each edit of accuracy recovery.
    """

    artifact: Artifact
    program: Program | OnnxSource
    judged: Judgement
    level: float
    rung: str = "none"
    edits: tuple[Mapping[str, JSON], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[int, float]:
        """Return the grade and the level: the best attempt has the largest."""
        return _GRADES.index(self.judged.check.grade), self.level


class Attempts:
    """Convert and verify programs of one network, each into a folder of its own below ``folder``."""

    def __init__(self, job: Job, evidence: EvidenceSet, folder: Path, name: str) -> None:
        self._job, self._evidence, self._folder, self._name = job, evidence, folder, name
        self._source = evidence.source
        self._made = 0
        self._ladder: Ladder | None = None

    def best(self) -> Attempt:
        """Return the artifact to publish.

        1. int8: the first attempt that is good enough, in the order of the rungs.
        2. int8, none is good enough: the best one.
        3. The graph without our passes verifies, and this artifact does not or is worse by 20 dB: the guilty passes are
           left out.

        Raises:
            ExportError: the program cannot be converted.
            Unfaithful: the best attempt is broken, or breaks a limit of the user.
        """
        found = self._climb() if self._job.precision == "int8" else self._make(self._source.program)
        doubt = self._evidence.on_examples(found.judged)
        if self._passes_are_suspect(found):  # case 3
            found = self._without_guilty(found)
        if not found.judged.check.passed:
            cause = self._source.suspicion(self._evidence.samples)
            tried = [rung for rung in self._job.rungs[: self._made] if rung != "none"]
            climbed = f"; recovery tried {', '.join(tried)}" if tried else ""
            line = f"{found.judged.check.line()}{climbed}{cause}"
            raise Unfaithful(f"{self._job.backend} does not compute what {self._source.name} does: {line}")
        limits = self._evidence.remarks(self._job.precision)
        for line in (*(limits if self._job.options.evidence is None else ()), *found.remarks):
            tell(line)
        return replace(found, remarks=(*limits, *doubt, *self._source.remarks, *found.remarks))

    def _climb(self) -> Attempt:
        """Return the attempt of cases 1 and 2 of ``best``. No program is converted twice."""
        in_file = isinstance(self._source.program, OnnxSource)
        automatic = self._job.options.recover == "auto"
        limit = self._job.options.recover_seconds if automatic else float("inf")
        begun = time.monotonic()
        end = begun + limit
        attempts: list[Attempt] = []
        for rung in self._job.rungs:
            if in_file and rung not in _OF_FILES:
                continue
            try:
                with self._shown(rung, begun, end):
                    attempts.extend(self._on_rung(rung, end - time.monotonic(), attempts))
            except TimeoutError:
                why = (f"accuracy recovery stopped in {rung!r} after its limit of {limit:g} s",)
                attempts = [replace(each, remarks=(*each.remarks, *why)) for each in attempts]
                break
            except ExportError as error:
                if isinstance(error, Unavailable) or not attempts:
                    raise
            if self._is_good(attempts[-1]):  # case 1
                return attempts[-1]
        best = max(attempts, key=lambda each: each.rank)  # case 2
        return replace(best, remarks=(*best.remarks, _FILE_REMARK)) if in_file and automatic else best

    def _on_rung(self, rung: str, seconds: float, before: Sequence[Attempt]) -> Iterator[Attempt]:
        """Yield the attempt of a rung, or nothing if an earlier attempt has the same edits."""
        program, samples = self._source.program, self._evidence.calibration
        if rung == "none":
            yield self._make(program)
        elif isinstance(program, OnnxSource):
            if seconds <= 0:
                raise TimeoutError
            yield self._make(replace(program, edits=(EDIT,)), rung, ({"edit": EDIT, "kept": True},))
        else:
            assert samples is not None
            ladder = self._ladder = self._ladder or _ladder(program, samples)
            edited, edits = ladder.climb(rung, seconds)
            if _kept(edits) not in [_kept(each.edits) for each in before]:
                yield self._make(edited, rung, edits, ladder.fitted)

    def _is_good(self, attempt: Attempt) -> bool:
        found = attempt.judged.check
        return found.passed and (self._evidence.limits is not None or found.grade in _GOOD)

    def _make(
        self,
        program: Program | OnnxSource,
        rung: str = "none",
        edits: Sequence[Mapping[str, JSON]] = (),
        fitted: Samples = (),
    ) -> Attempt:
        """Convert ``program`` into a new folder, and verify it on this machine, then on its device.

        1. Edits that have a parameter for each weight: verified on samples that they were not fitted to.
        2. There are no such samples: verified on all, with a remark.
        """
        self._made += 1
        artifact = self._convert(program, self._folder / str(self._made) / self._name)
        evidence, options = self._evidence, self._job.options
        judge = evidence.judge(artifact, Worker)
        every = range(len(evidence.samples))
        unseen = evidence.unseen(fitted) if fitted else list(every)
        learned = any(edit in _LEARNING for edit in _kept(edits))
        chosen = unseen if learned and unseen else every  # case 1
        judged = judge(chosen)
        if judged.check.passed and options.open_worker is not None:
            judged = evidence.judge(artifact, options.open_worker)(chosen)
        remarks = int8_remarks(artifact.notes.get("quantisation"))
        if learned and not unseen:  # case 2
            remarks += ("verified on the samples that int8 was fitted to; give 16 or more calibration samples",)
        level = _level(judge(unseen).check if unseen else judged.check)
        return Attempt(artifact, program, judged, level, rung, tuple(edits), remarks)

    def _convert(self, program: Program | OnnxSource, folder: Path) -> Artifact:
        folder.mkdir(parents=True)
        job = self._job
        by = convert if job.options.compiler is None else job.options.compiler.convert
        with _operators_named(program, job):
            return by(
                job.backend,
                program,
                folder,
                precision=job.precision,
                device=job.device,
                threads=job.threads,
                calibration=self._evidence.fitting(job.precision),
                called=self._source.name,
            )

    def _passes_are_suspect(self, attempt: Attempt) -> bool:
        """Return whether the artifact might verify better without passes, so that another one is worth its time."""
        if self._source.without is None or not self._fired():
            return False
        if not attempt.judged.check.passed:
            return self._job.precision == "fp32" or self._job.options.recover == "auto"
        if self._job.precision != "fp32":
            return False
        return attempt.level < _USUAL_DB and attempt.level < self._evidence.sensitivity_db - _MARGIN_DB

    def _without_guilty(self, attempt: Attempt) -> Attempt:
        """Find the passes that make the artifact worse, by bisection, and return the attempt without them.

        1. Without any pass it does not verify, or the given attempt verifies and is not worse by ``_MARGIN_DB``: the
           given attempt.
        2. The shortest beginning of the passes that is worse ends with a guilty one. It is left out, three at most.
        3. More are guilty: no pass at all.
        """
        names = self._fired()
        base = self._try_without(names)
        least = attempt.level + (_MARGIN_DB if attempt.judged.check.passed else 0.0)
        if base is None or base.level < least or not base.judged.check.passed:  # case 1
            return attempt
        # What verifies must lie in the upper half, if the two levels are close to each other.
        wanted = min(_USUAL_DB, max(base.level - _MARGIN_DB, (attempt.level + base.level) / 2))

        def good(left_out: Collection[str]) -> Attempt | None:
            found = self._try_without(left_out)
            enough = found is not None and found.level >= wanted and found.judged.check.passed
            return found if enough else None

        guilty: list[str] = []
        for _ in range(_MOST):  # case 2
            kept = [name for name in names if name not in guilty]
            low, high = 0, len(kept)  # a beginning of `low` passes is good, one of `high` is not
            while high - low > 1:
                middle = (low + high) // 2
                if good([*guilty, *kept[middle:]]):
                    low = middle
                else:
                    high = middle
            guilty.append(kept[high - 1])
            if found := good(guilty):
                return replace(found, remarks=(*found.remarks, _blame(guilty, attempt.level, found.level)))
        return replace(base, remarks=(*base.remarks, _blame(names, attempt.level, base.level)))  # case 3

    def _try_without(self, left_out: Collection[str]) -> Attempt | None:
        assert self._source.without is not None
        try:
            return self._make(self._source.without(left_out))
        except Unavailable:
            raise
        except ExportError:
            return None

    def _fired(self) -> list[str]:
        return list(dict.fromkeys(name for name, count in self._source.program.fired if count))

    @contextmanager
    def _shown(self, rung: str, begun: float, end: float) -> Iterator[None]:
        """Show the rung of the block by ``progress``. Without it: by a line, if "auto" has taken ``_QUIET`` seconds."""
        options = self._job.options
        if options.progress is not None:
            stage = "int8" if rung == "none" else f"int8, recovery: {rung}"
            options.progress(stage, self._made, len(self._job.rungs))
        if options.progress is not None or options.recover != "auto" or rung == "none":
            yield
            return
        quiet = begun + _QUIET - time.monotonic()
        timer = threading.Timer(quiet, lambda: tell(_trying(rung, end)))
        if quiet > 0:
            timer.start()
        else:
            tell(_trying(rung, end))
        try:
            yield
        finally:
            timer.cancel()


def _trying(rung: str, end: float) -> str:
    left = max(end - time.monotonic(), 0.0)
    return f"int8: trying {rung}" + (f", at most {left:.0f} s left" if left < float("inf") else "")


def _ladder(program: Program, samples: Samples) -> Ladder:
    from hnas.export.int8.ladder import Ladder

    return Ladder(program, samples)


def _kept(edits: Sequence[Mapping[str, JSON]]) -> tuple[str, ...]:
    return tuple(str(edit["edit"]) for edit in edits if edit["kept"])


def _level(found: Check) -> float:
    """Return the SQNR by which attempts are compared: of the worst slice, as in the verdict and the grade."""
    return found.lowest_db


def _blame(names: Sequence[str], with_them: float, without: float) -> str:
    return f"left out {', '.join(names)}: {with_them:.0f} dB with it, {without:.0f} dB without"


@contextmanager
def _operators_named(program: Program | OnnxSource, job: Job) -> Iterator[None]:
    """Add the operators that the backend refuses to an ExportError of the block, unless the program is an ONNX file."""
    try:
        yield
    except Unavailable:
        raise
    except ExportError as error:
        if isinstance(program, OnnxSource):
            raise
        from hnas.export.diagnosis.unsupported import unsupported

        if named := unsupported(program, job.backend, job.precision, str(error)):
            raise ExportError(f"{named} ({error})") from error
        raise
