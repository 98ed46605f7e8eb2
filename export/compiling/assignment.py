"""Choose mixed precision: which blocks compute in int8, and which in float.

``hnas.export.compile_mixed(net, example_inputs, accept=..., calibration=..., path="net-mixed")``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hnas import hw_profiles
from hnas.export.compiling.options import MixedOptions
from hnas.export.compiling.originals import capture_network
from hnas.export.compiling.pipeline import check_request, compile_captured
from hnas.export.compiling.publishing import free_path, publish, staging
from hnas.export.compiling.sizes import require_open
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.device.records import JSON
from hnas.export.graph.samples import to_samples
from hnas.export.int8.mixed import Assignment, assign, blocks_of_layers, sensitivities
from hnas.export.onnx.source import OnnxSource
from hnas.export.proof.timing import compare
from hnas.export.remote.scratch import Scratch
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    from hnas.export.compiling.attempts import Job
    from hnas.export.compiling.originals import Captured, Module
    from hnas.export.graph.samples import SampleLike, Samples

_SENSED = 32  # calibration samples on which blocks are ranked by sensitivity
_BLOCKS = 10  # interleaved blocks of the comparison that times an assignment


def compile_mixed(
    network: Module,
    example_inputs: SampleLike,
    *,
    accept: Callable[[Artifact], bool],
    calibration: Iterable[SampleLike],
    path: Path | str,
    device: str = "openvino-cpu",
    threads: int | None = None,
    options: MixedOptions = MixedOptions(),
) -> Artifact:
    """Compile the fastest int8 artifact that ``accept`` accepts, with some blocks in float if necessary.

    Example: ``compile_mixed(net, x, accept=lambda made: accuracy(made) > 0.9, calibration=images, path="net-mixed")``.

    ``accept``: takes a verified artifact, and returns whether it is good enough, for example accurate enough on
    labelled images.
    ``options``: the options of `compile`, and the number of trials, see `MixedOptions`.
    The other parameters are those of `compile`.

    Blocks are ranked by their sensitivity on the calibration samples and tried in the order of
    `hnas.export.int8.mixed.assign`. Times are measured on this machine. Each assignment is interleaved with the first
    one that passed its verification, which is usually all int8. ``notes["quantisation"]["mixed"]`` records the
    sensitivities, the assignments that were tried, and the chosen one.

    1. The artifact of an assignment fails its verification: the assignment is refused.
    2. The blocks of an assignment cannot be kept in float: the assignment is refused.
    3. The network cannot be converted with all blocks in int8: the ExportError is raised, because no block causes it.
    4. No assignment with an int8 block is accepted: ExportError.

    Raises:
        ValueError: the device is not this machine, ``keep_float`` is given, or as in `compile`.
        Unavailable: as in `compile`.
        ExportError: cases 3 and 4.
    """
    profile = hw_profiles.load(device)
    if options.trials < 1:
        raise ValueError(f"trials is {options.trials}, expected 1 or more")
    if options.keep_float:
        raise ValueError("compile_mixed chooses the blocks that stay in float; leave keep_float out")
    if not profile.local:
        raise ValueError(f"mixed precision is chosen by measured times; {device} is not this machine")
    job = check_request(device, "int8", threads, options)
    if options.dynamic is not None:
        require_open(job.backend)
    target = free_path(Path(path))
    with capture_network(network, example_inputs, job.backend, options.dynamic) as source, Scratch() as folder:
        if isinstance(source.program, OnnxSource):
            raise ValueError("an ONNX file has no blocks; pass the torch module")
        names = [tensor.name for tensor in source.program.signature[0]]
        samples = to_samples(calibration, source.examples, "calibration", names)
        options = replace(options, evidence=samples if options.evidence is None else list(options.evidence))
        levels = sensitivities(source.program, samples[:_SENSED])
        with _Trials(source, replace(job, options=options), samples, folder, accept) as trials:
            slow = blocks_of_layers(source.program, options.slow)
            chosen, tried = assign(levels, trials.accept, trials.time, options.trials, slow)
            if chosen is None:  # case 4
                raise ExportError(
                    f"no mixed precision is accepted; {len(tried)} assignments of {len(levels)} blocks tried"
                )
            _publish_copy(trials.artifact(chosen.kept), target, _record(levels, tried, chosen))
    return Artifact.read(target)


class _Trials:
    """Compile, judge and time assignments of one captured network, each once. A context manager, for its workers.

    folder: where the artifacts are kept.
    accept: takes a verified artifact, and returns whether it is good enough.
    """

    def __init__(
        self, source: Captured, job: Job, samples: Samples, folder: Path, accept: Callable[[Artifact], bool]
    ) -> None:
        self._source, self._job, self._samples, self._folder, self._accept = source, job, samples, folder, accept
        self._built: dict[tuple[str, ...], Artifact] = {}
        self._workers: list[Worker] = []  # of the first artifact, with which the others are compared, and of another
        options = job.options
        if isinstance(options, MixedOptions) and (plain := options.plain) is not None:
            given = (plain.precision, plain.backend, plain.threads)
            if given != (wanted := ("int8", job.backend, job.threads)):
                raise ValueError(f"precision, backend and threads of plain are {given}, expected {wanted}")
            self._built[()] = plain

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(0)

    def artifact(self, kept: tuple[str, ...]) -> Artifact:
        """Return the verified artifact with the blocks ``kept`` in float."""
        if kept not in self._built:
            job = replace(self._job, options=replace(self._job.options, keep_float=kept))
            target = self._folder / str(len(self._built))
            self._built[kept] = compile_captured(self._source, job, self._samples, target)
        return self._built[kept]

    def accept(self, kept: tuple[str, ...]) -> bool:
        """Return whether the artifact can be made and is accepted."""
        made = self._made(kept)
        return made is not None and self._accept(made)

    def time(self, kept: tuple[str, ...]) -> float | None:
        """Return the time of the artifact by that of the first one, measured interleaved; None if it is refused."""
        artifact = self._made(kept)
        if artifact is None:
            return None
        first = next(iter(self._built.values()))
        if artifact.path == first.path:
            return 1.0
        baseline = self._worker(0, first)
        try:
            found = compare(baseline, self._worker(1, artifact), self._samples[0], blocks=_BLOCKS)
        except Unavailable:
            raise
        except ExportError:  # its runtime does not open it, or dies of it
            self._close(1)
            return None
        return 1.0 / found.ratio

    def _made(self, kept: tuple[str, ...]) -> Artifact | None:
        """Return the artifact with the blocks ``kept`` in float; None if it is refused."""
        try:
            return self.artifact(kept)
        except Unavailable:
            raise
        except ExportError as error:
            if not kept and not isinstance(error, Unfaithful):  # case 3
                raise
            return None  # cases 1 and 2

    def _worker(self, place: int, artifact: Artifact) -> Worker:
        """Return a worker that runs ``artifact``. Two processes serve all trials: each imports the runtime once."""
        if place < len(self._workers) and self._workers[place].alive:
            if self._workers[place].artifact.digest != artifact.digest:
                self._workers[place].open(artifact)
        else:
            self._close(place)
            self._workers.append(Worker(artifact, backend=artifact.backend))
        return self._workers[place]

    def _close(self, place: int) -> None:
        """End the workers from ``place`` on."""
        for worker in self._workers[place:]:
            worker.close()
        del self._workers[place:]


def _record(levels: dict[str, float], tried: Sequence[Assignment], chosen: Assignment) -> dict[str, JSON]:
    """Return the record of the choice for the notes of the artifact."""
    return {
        "sensitivity_db": {name: round(level, 1) for name, level in levels.items()},
        "float": list(chosen.kept),
        "tried": [{"float": list(each.kept), "accepted": each.accepted, "time": each.time} for each in tried],
    }


def _publish_copy(artifact: Artifact, target: Path, record: dict[str, JSON]) -> None:
    """Publish the files of ``artifact`` at ``target``, with ``record`` in its notes."""
    quantisation = artifact.notes["quantisation"]
    assert isinstance(quantisation, dict)
    notes: dict[str, JSON] = {**artifact.notes, "quantisation": {**quantisation, "mixed": record}}
    with staging(target) as staged:
        folder = staged / target.name
        shutil.copytree(artifact.path, folder)
        replace(artifact, path=folder, notes=notes).write()
        publish(folder, target)
