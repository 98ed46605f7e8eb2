"""Compile a network to an artifact, verify the saved file, and open artifacts.

``hnas.export.compile(net, example_inputs, path="net")``; ``hnas.export.load("net")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.compiling.attempts import Attempt, Attempts, Job
from hnas.export.compiling.compiler import limited_compiler
from hnas.export.compiling.evidence import gather
from hnas.export.compiling.options import CompileOptions
from hnas.export.compiling.originals import capture_network, run_eager
from hnas.export.compiling.publishing import free_path, publish, staging
from hnas.export.compiling.sizes import check_sizes, require_open
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Unavailable
from hnas.export.device.opening import open_runner
from hnas.export.device.records import JSON
from hnas.export.int8.policy import FILE_LADDER, LADDER
from hnas.export.onnx.source import OnnxSource, Original
from hnas.export.proof.verification import LIMITS, Check, check, recorded_terms
from hnas.export.remote.worker import Worker, open_first

if TYPE_CHECKING:
    import torch

    from hnas.export.compiling.originals import Captured, Network
    from hnas.export.device.runtimes import Runner
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import SampleLike, Samples


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
    ``example_inputs``: a tensor, an array, or a tuple or dict of nested ones, with the shapes and types of one call. An
    ONNX file needs them only where it leaves sizes open.
    ``path``: the folder of the artifact. An older artifact there is replaced only after success. A failure writes
    nothing.
    ``device``: the name of a device profile, see `hnas.hw_profiles.names`.
    ``precision``: "fp32", or another precision that the device and the backend offer, such as "int8".
    ``calibration``: samples for int8, shaped as ``example_inputs``. Larger batches are split to the batch size of the
    examples.
    ``threads``: threads of the runtime. Default: those of the device profile.
    ``options``: evidence, backend, recovery of int8, limits, an open size, see `CompileOptions`.

    Raises:
        ValueError: an argument is wrong; the message names it.
        Unavailable: the runtime is not installed.
        ExportError: the network cannot be compiled, or the artifact fails its verification.
    """
    job = check_request(device, precision, threads, options)
    target = free_path(Path(path))
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs calibration batches; pass calibration=..., an iterable of input tuples")
    if isinstance(network, Original | Path | str):
        _require_plain(job)
    if options.dynamic is not None:
        require_open(job.backend)
    with capture_network(network, example_inputs, job.backend, options.dynamic) as source:
        return compile_captured(source, job, calibration, target)


def compile_captured(source: Captured, job: Job, calibration: Iterable[SampleLike] | None, target: Path) -> Artifact:
    """Compile a network that is captured already, as `compile` does. Return the artifact at ``target``."""
    kept, options = job.options.keep_float, job.options
    source = source.keeping(kept) if kept else source
    with staging(target) as folder, _limited(job, source.program) as job:
        evidence = gather(source, calibration, job.precision, options)
        made = Attempts(job, evidence, folder, target.name).best()
        sizes = check_sizes(evidence, made.artifact)
        replace(made.artifact, notes=_notes(job, made, sizes)).write()
        publish(made.artifact.path, target)
    return Artifact.read(target)


def load(artifact: Artifact | Path | str) -> Runner:
    """Open an artifact, or that of a path or bundle, in this process, and return a function from arrays to arrays.

    A file that no worker of this process has opened is opened in one first: a broken file can end a process.

    Example: ``(logits,) = load("net-fp32")(image)``.

    Raises:
        Unavailable: the runtime is not installed.
        FileNotFoundError, ValueError: there is no valid artifact at the path.
        ExportError: the runtime refuses the file, or dies of it.
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.read(_artifact_in(Path(artifact)))
    backend = backends.load(opened.backend)
    missing = backend.missing()
    if missing is not None:
        raise Unavailable(missing)
    open_first(opened)
    return open_runner(backend, opened)


def _artifact_in(path: Path) -> Path:
    """Return the folder of the artifact where ``path`` is a bundle, else ``path``."""
    inner = path / "artifact"
    return inner if (path / "manifest.json").is_file() and inner.is_dir() else path


def verify(
    original: torch.nn.Module | Original,
    artifact: Artifact,
    samples: Samples,
    open_worker: Callable[[Artifact], Worker] = Worker,
) -> Check:
    """Compare the saved artifact with the original under the limits of its record, and return the result.

    ``original``: a module, which runs in eager mode, or an ONNX file, which runs without graph optimisations.
    ``open_worker``: opens the artifact in a new process.
    """
    expected = original.outputs(samples) if isinstance(original, Original) else run_eager(original, samples)
    names = [tensor.name for tensor in artifact.outputs]
    terms = recorded_terms(artifact.notes.get("verification"))
    with open_worker(Artifact.read(artifact.source)) as worker:
        return check(expected, worker.outputs(samples), artifact.precision, names=names, **terms)


def check_request(device: str, precision: str, threads: int | None, options: CompileOptions) -> Job:
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
    return Job(name, profile, precision, profile.threads if threads is None else threads, rungs, options)


@contextmanager
def _limited(job: Job, program: Program | OnnxSource) -> Iterator[Job]:
    """Yield a job that converts a file from elsewhere in a process with limits. A module stays in this process."""
    if job.options.compiler is not None or not isinstance(program, OnnxSource):
        yield job
        return
    with limited_compiler() as compiler:
        yield replace(job, options=replace(job.options, compiler=compiler))


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


def _rungs(recover: str, precision: str) -> Sequence[str]:
    if recover not in ("auto", "none", *LADDER):
        raise ValueError(f"no recover={recover!r}; known: auto, none, {', '.join(LADDER)}")
    if precision != "int8" and recover in LADDER:
        raise ValueError(f"recover={recover!r} is for int8, got precision {precision}")
    return ("none", *LADDER) if recover == "auto" else (recover,)


def _require_plain(job: Job) -> None:
    """Raise ValueError if the backend does not take ONNX files, or if an option edits the torch graph."""
    if why := backends.load(job.backend).no_onnx:
        able = [other for other in job.device.backends if not backends.load(other).no_onnx]
        mend = f"pass the torch module, or backend={' or '.join(map(repr, able))}" if able else "pass the torch module"
        raise ValueError(f"{job.backend} takes no ONNX file: {why}; {mend}")
    edits = job.options.recover in LADDER and job.options.recover not in FILE_LADDER
    if edits or job.options.keep_float:
        asked = "keep_float" if job.options.keep_float else f"recover={job.options.recover!r}"
        taken = f"an ONNX file takes recover={' or '.join(map(repr, FILE_LADDER))}"
        raise ValueError(f"{asked} edits the torch graph, which an ONNX file does not have; pass the module; {taken}")


def _notes(job: Job, made: Attempt, sizes: Sequence[int]) -> dict[str, JSON]:
    """Return the notes of the backend, together with the notes on passes, recovery and verification."""
    program, kept = made.program, list(job.options.keep_float)
    verification: dict[str, JSON] = made.judged.check.to_json()
    if made.judged.examples_db is not None:
        verification["examples_db"] = made.judged.examples_db
    notes: dict[str, JSON] = {
        **made.artifact.notes,
        "passes": [list(pair) for pair in program.fired],
        "verification": verification,
    }
    if isinstance(program, OnnxSource):
        notes["source"] = dict(program.notes)
    if sizes:
        notes["sizes"] = list(sizes)
    if made.remarks:
        notes["remarks"] = list(made.remarks)
    if made.edits or kept:
        quantisation = notes["quantisation"]
        assert isinstance(quantisation, dict)
        record: JSON = {"recovery": [dict(edit) for edit in made.edits], "rung": made.rung, "blocks_in_float": kept}
        notes["quantisation"] = {**quantisation, **record}
    return notes
