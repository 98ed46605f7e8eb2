"""Compile a network to an artifact, verify the saved file, and open artifacts.

``hnas.export.compile(net, example_inputs, path="net")``; ``hnas.export.load("net")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.compiling.conversion import convert
from hnas.export.compiling.options import CompileOptions
from hnas.export.compiling.originals import capture_network, run_eager
from hnas.export.compiling.publishing import free_path, publish, staging
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.device.records import JSON
from hnas.export.graph.samples import to_samples
from hnas.export.int8.policy import LADDER
from hnas.export.onnx.source import OnnxSource, Original
from hnas.export.proof.verification import LIMITS, Check, check
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    import torch

    from hnas.export.compiling.originals import Captured, Network
    from hnas.export.device.runtimes import Runner
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import SampleLike, Samples
    from hnas.export.proof.verification import Outputs


def compile(
    network: Network,
    example_inputs: SampleLike | None = None,
    *,
    path: Path | str,
    device: str = "openvino-cpu",
    precision: str = "fp32",
    calibration: Iterable[SampleLike] | None = None,
    threads: int | None = None,
    options: CompileOptions = CompileOptions(),
) -> Artifact:
    """Capture ``network``, fuse and quantise it, compile it for ``device``, and verify the saved file in a new process.

    Example: ``compile(net, torch.randn(1, 3, 224, 224), device="openvino-cpu", path="net-fp32")``.

    ``network``: a module, an exported program, or the path of an ONNX file. An ONNX file is
    compiled unchanged, and its artifact is compared with the file itself.
    ``example_inputs``: a tensor, an array, or a tuple of them, with the shapes and types of one call. An ONNX file
    needs them only where it leaves sizes open.
    ``path``: the folder of the artifact. An older artifact there is replaced only after success. A failure writes
    nothing.
    ``device``: the name of a device profile, see `hnas.hw_profiles.names`.
    ``precision``: "fp32", or another precision that the device and the backend offer, such as "int8".
    ``calibration``: samples for int8, shaped as ``example_inputs``. Larger batches are split to the batch size of the
    examples.
    ``threads``: threads of the runtime. Default: those of the device profile.
    ``options``: evidence, backend, recovery of int8, blocks in float, see `CompileOptions`.

    Raises:
        ValueError: an argument is wrong; the message names it.
        Unavailable: the runtime is not installed.
        ExportError: the network cannot be compiled, or the artifact fails its verification.
    """
    job = _check_request(device, precision, threads, options)
    target = free_path(Path(path))
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs calibration batches; pass calibration=..., an iterable of input tuples")
    if isinstance(network, Original | Path | str):
        _require_plain(job)
    with capture_network(network, example_inputs, job.backend, options.keep_float) as source, staging(target) as folder:
        fitting, evidence = _check_samples(source, calibration, options.evidence)
        for rung in job.rungs:
            program, edits = _recover(source.program, fitting, rung)
            artifact = _quantise_and_compile(job, source, program, fitting, folder / (rung or "plain") / target.name)
            found = _verify_saved(source, artifact, evidence, options.open_worker)
            if found.passed:
                break
        else:
            cause = source.suspicion(evidence)
            raise Unfaithful(f"{job.backend} does not compute what {source.name} does: {found.line()}{cause}")
        replace(artifact, notes=_notes(job, source, artifact, found, edits, rung)).write()
        publish(artifact.path, target)
    return Artifact.read(target)


def load(artifact: Artifact | Path | str) -> Runner:
    """Open an artifact, or the artifact at a path, in this process, and return a function from arrays to arrays.

    Example: ``(logits,) = load("net-fp32")(image)``.

    Raises:
        Unavailable: the runtime is not installed.
        FileNotFoundError, ValueError: there is no valid artifact at the path.
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.read(artifact)
    backend = backends.load(opened.backend)
    missing = backend.missing()
    if missing is not None:
        raise Unavailable(missing)
    return backend.load(opened)


def verify(
    original: torch.nn.Module | Original,
    artifact: Artifact,
    samples: Samples,
    open_worker: Callable[[Artifact], Worker] = Worker,
) -> Check:
    """Compare the saved artifact with the original, and return the result.

    ``original``: a module, which runs in eager mode, or an ONNX file, which runs without graph optimisations.
    ``open_worker``: opens the artifact in a new process.
    """
    expected = original.outputs(samples) if isinstance(original, Original) else run_eager(original, samples)
    return _compare(expected, artifact, samples, open_worker)


@dataclass(frozen=True)
class _Job:
    """Hold the checked request.

    ``rungs``: the rungs of accuracy recovery to try, in order; None means no edit.
    """

    backend: str
    device: hw_profiles.Device
    precision: str
    threads: int
    rungs: Sequence[str | None]
    options: CompileOptions


def _check_request(device: str, precision: str, threads: int | None, options: CompileOptions) -> _Job:
    """Return the checked job. Raise ValueError for a wrong argument, Unavailable for a missing runtime."""
    profile = hw_profiles.load(device)
    if not isinstance(options, CompileOptions):
        raise TypeError(f"options is a {type(options).__name__}, expected CompileOptions(...)")
    name = _choose(profile, options.backend, precision)
    if threads is not None and not isinstance(threads, int):
        raise TypeError(f"threads is {threads!r}, expected a whole number")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")
    if options.keep_float and precision != "int8":
        raise ValueError(f"keep_float keeps blocks out of int8, got precision {precision}; leave it out")
    rungs = _rungs(options.recover, precision)
    return _Job(name, profile, precision, profile.threads if threads is None else threads, rungs, options)


def _check_samples(
    source: Captured, calibration: Iterable[SampleLike] | None, evidence: Iterable[SampleLike] | None
) -> tuple[Samples | None, Samples]:
    """Return the calibration samples, or None, and the samples for the verification."""
    fitting = None if calibration is None else to_samples(calibration, source.examples, "calibration")
    proof = None if evidence is None else to_samples(evidence, source.examples, "evidence")
    return fitting, proof or fitting or source.probes()


def _choose(profile: hw_profiles.Device, backend: str | None, precision: str) -> str:
    """Return the name of the backend to use. Raise ValueError that names the choices if there is no such backend."""
    name = backend or profile.backend
    chosen = backends.load(name)
    if name not in (*profile.backends, "reference"):
        raise ValueError(f"{profile.name} has no backend {name!r}; known: {', '.join(profile.backends)}")
    if precision not in LIMITS:
        raise ValueError(f"no precision {precision!r}; known: {', '.join(LIMITS)}")
    offered = [known for known in chosen.precisions if known in profile.precisions]
    if precision not in offered:
        raise ValueError(f"{profile.name} with {name} has no {precision}; offered: {', '.join(offered)}")
    # An artifact for another device may be built without its runtime: verification then uses another (verify_with).
    missing = chosen.missing() if profile.local else None
    if missing is not None:
        raise Unavailable(missing)
    return name


def _rungs(recover: str | None, precision: str) -> Sequence[str | None]:
    if recover is None:
        return (None,)
    if recover not in ("auto", *LADDER):
        raise ValueError(f"no recover={recover!r}; known: auto, {', '.join(LADDER)}")
    if precision != "int8":
        raise ValueError(f"recover={recover!r} is for int8, got precision {precision}")
    return (None, *LADDER) if recover == "auto" else (recover,)


def _require_plain(job: _Job) -> None:
    """Raise ValueError if the backend does not take ONNX files, or if an option edits the torch graph."""
    if why := backends.load(job.backend).no_onnx:
        able = [other for other in job.device.backends if not backends.load(other).no_onnx]
        mend = f"pass the torch module, or backend={' or '.join(map(repr, able))}" if able else "pass the torch module"
        raise ValueError(f"{job.backend} takes no ONNX file: {why}; {mend}")
    if job.options.recover is not None or job.options.keep_float:
        raise ValueError(
            "recover and keep_float edit the torch graph, which an ONNX file does not have; pass the torch module"
        )


def _recover(
    program: Program | OnnxSource, samples: Samples | None, rung: str | None
) -> tuple[Program | OnnxSource, list[JSON]]:
    """Return the program with the edits of a rung, and the record of the gain of each edit."""
    if rung is None or samples is None or isinstance(program, OnnxSource):
        return program, []
    from hnas.export.int8.ladder import recover

    return recover(program, samples, rung)


def _quantise_and_compile(
    job: _Job, source: Captured, program: Program | OnnxSource, samples: Samples | None, folder: Path
) -> Artifact:
    """Return the artifact that the backend writes into the new ``folder``; int8 is quantised on ``samples``."""
    folder.mkdir(parents=True)
    by = convert if job.options.compiler is None else job.options.compiler.convert
    with _operators_named(program, job.backend, by):
        return by(
            job.backend,
            program,
            folder,
            precision=job.precision,
            device=job.device,
            threads=job.threads,
            calibration=samples if job.precision == "int8" else None,
            called=source.name,
        )


@contextmanager
def _operators_named(program: Program | OnnxSource, backend: str, by: Callable[..., Artifact]) -> Iterator[None]:
    """Add the operators that the backend lacks to an ExportError of the block, unless the program is an ONNX file."""
    try:
        yield
    except Unavailable:
        raise
    except ExportError as error:
        if isinstance(program, OnnxSource):
            raise
        from hnas.export.diagnosis.unsupported import unsupported

        if named := unsupported(program, backend, by):
            raise ExportError(f"{named} ({error})") from error
        raise


def _verify_saved(
    source: Captured, artifact: Artifact, samples: Samples, open_worker: Callable[[Artifact], Worker] | None
) -> Check:
    """Compare the artifact with its network on this machine; then, if ``open_worker`` is given, on its device too."""
    expected = source.outputs(samples)
    found = _compare(expected, artifact, samples, Worker)
    if found.passed and open_worker is not None:
        found = _compare(expected, artifact, samples, open_worker)
    return found


def _compare(
    expected: Outputs,
    artifact: Artifact,
    samples: Samples,
    open_worker: Callable[[Artifact], Worker],
) -> Check:
    with open_worker(Artifact.read(artifact.source)) as worker:
        return check(expected, worker.outputs(samples), artifact.precision)


def _notes(
    job: _Job, source: Captured, artifact: Artifact, found: Check, edits: list[JSON], rung: str | None
) -> dict[str, JSON]:
    """Return the notes of the backend, together with the notes on passes, recovery and verification."""
    program, kept = source.program, list(job.options.keep_float)
    notes: dict[str, JSON] = {
        **artifact.notes,
        "passes": [list(pair) for pair in program.fired],
        "verification": found.to_json(),
    }
    if isinstance(program, OnnxSource):
        notes["source"] = dict(program.notes)
    if edits or kept:
        quantisation = notes["quantisation"]
        assert isinstance(quantisation, dict)
        notes["quantisation"] = {**quantisation, "recovery": edits, "rung": rung, "blocks_in_float": kept}
    return notes
