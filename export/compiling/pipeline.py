"""From a module to an artifact that was proved on its saved file; and from an artifact to something that runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.compiling.conversion import convert
from hnas.export.device.artifact import RECORD, Artifact
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.device.records import JSON
from hnas.export.graph.samples import PROBES, as_arrays, split
from hnas.export.int8.policy import LADDER
from hnas.export.onnx.source import OnnxSource, Original
from hnas.export.proof.verification import LIMITS, Check, check
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    import torch

    from hnas.export.compiling.compiler import Compiler
    from hnas.export.device.runtimes import Runner
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Arrays, Sample

    Network: TypeAlias = torch.nn.Module | torch.export.ExportedProgram | Original | Path | str


def compile(
    network: Network,
    example_inputs: Sample | None = None,
    *,
    device: str = "openvino-cpu",
    precision: str = "fp32",
    calibration: Iterable[Sample] | None = None,
    path: Path | str,
    threads: int | None = None,
    evidence: Iterable[Sample] | None = None,
    backend: str | None = None,
    recover: str | None = None,
    keep_float: Sequence[str] = (),
    opened: Callable[[Artifact], Worker] | None = None,
    compiler: Compiler | None = None,
) -> Artifact:
    """The artifact of ``network`` for ``device`` in the folder ``path``, opened in a new process and verified there.

    ``network`` is a module, an exported program, or the path of an ONNX file. Such a file goes to the backend as it is,
    and its artifact is held against the file itself; it needs no example inputs unless it leaves sizes open, and has no
    ``recover`` and ``keep_float``, which edit the torch graph.

    ``calibration`` are input tuples (torch or numpy; batches are split to the examples' batch size), needed for int8;
    ``evidence`` are those that the verification runs on: by default the calibration, else the example inputs and a few
    random ones of the same spread. ``opened`` opens it on a device, where it is verified as well. A failure leaves
    nothing behind; an older artifact at ``path`` is replaced last.

    ``recover`` edits the network so that int8 loses less: a rung of ``LADDER``, or "auto", which takes the first with
    which verification holds, none to begin with. ``keep_float`` names blocks that stay in float (`mixed.blocks`).

    ``compiler`` converts in a process of its own, within its limits, to the same bytes; None: in this process.

    ValueError for wrong use, Unavailable for a missing runtime, ExportError when the network cannot be compiled or the
    artifact does not compute what it does. All of them are one line.
    """
    profile = hw_profiles.load(device)
    name = _choose(profile, backend, precision)
    target = free_path(Path(path))
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs calibration batches; pass calibration=..., an iterable of input tuples")
    rungs = _rungs(recover, precision)
    if isinstance(network, Original | Path | str):
        _require_plain(name, profile, recover, keep_float)
    with _opened(network, example_inputs) as (original, examples):
        images = None if calibration is None else split(as_arrays(calibration), examples, "calibration")
        proof = None if evidence is None else split(as_arrays(evidence), examples, "evidence")
        program: Program | OnnxSource
        if isinstance(original, Original):
            program, probes = original.source, original.probes
        else:
            program = _marked(_program(original, examples, name), keep_float, precision)
            probes = partial(_probes, program)
        called, by = _called(original), convert if compiler is None else compiler.convert
        with published(target) as folder:
            for rung in rungs:
                fitted, edits = _recovered(program, images, rung)
                with _naming(fitted, name, by):
                    artifact = by(
                        name,
                        fitted,
                        folder,
                        precision=precision,
                        device=profile,
                        threads=profile.threads if threads is None else threads,
                        calibration=images if precision == "int8" else None,
                        called=called,
                    )
                    samples = proof or images or probes()
                    found = verify(original, artifact, samples)
                if found.passed and opened is not None:
                    found = verify(original, artifact, samples, opened)
                if found.passed:
                    break
            if not found.passed:
                raise Unfaithful(f"{name} does not compute what {called} does: {found.line()}{_why(original, samples)}")
            notes = {
                **artifact.notes,
                "passes": [list(pair) for pair in program.fired],
                "verification": found.to_json(),
            }
            if isinstance(program, OnnxSource):
                notes["source"] = dict(program.notes)
            if edits or keep_float:
                added = {"recovery": edits, "rung": rung, "blocks_in_float": list(keep_float)}
                notes["quantisation"] = {**_table(artifact.notes["quantisation"]), **added}
            replace(artifact, notes=notes).write()
    return Artifact.read(target)


def load(artifact: Artifact | Path | str) -> Runner:
    """The artifact, or the one at a path, opened in this process; Unavailable where its runtime is not installed."""
    opened = artifact if isinstance(artifact, Artifact) else Artifact.read(artifact)
    backend = backends.load(opened.backend)
    missing = backend.missing()
    if missing is not None:
        raise Unavailable(missing)
    return backend.load(opened)


def verify(
    original: torch.nn.Module | Original,
    artifact: Artifact,
    evidence: Sequence[Arrays],
    opened: Callable[[Artifact], Worker] = Worker,
) -> Check:
    """Compare the saved artifact, in the new process that ``opened`` starts, with the module in eager mode.

    An ONNX file takes the module's place as it was written, without its runtime's rewritings.
    """
    expected = original.outputs(evidence) if isinstance(original, Original) else _eager(original, evidence)
    with opened(Artifact.read(artifact.source)) as worker:
        return check(expected, worker.outputs(evidence), artifact.precision)


def _choose(profile: hw_profiles.Device, backend: str | None, precision: str) -> str:
    """The backend to use; says what is offered where the wish is not."""
    name = backend or profile.backend
    chosen = backends.load(name)
    if name not in (*profile.backends, "reference"):
        raise ValueError(f"{profile.name} has no backend {name!r}; known: {', '.join(profile.backends)}")
    if precision not in LIMITS:
        raise ValueError(f"no precision {precision!r}; known: {', '.join(LIMITS)}")
    offered = [known for known in chosen.precisions if known in profile.precisions]
    if precision not in offered:
        raise ValueError(f"{profile.name} with {name} has no {precision}; offered: {', '.join(offered)}")
    # What is built for another device may be built without its runtime: verification then uses another (verify_with).
    missing = chosen.missing() if profile.local else None
    if missing is not None:
        raise Unavailable(missing)
    return name


def _require_plain(name: str, profile: hw_profiles.Device, recover: str | None, keep_float: Sequence[str]) -> None:
    """ValueError for what an ONNX file cannot have: a backend that starts from torch, and edits of the torch graph."""
    if why := backends.load(name).no_onnx:
        able = [other for other in profile.backends if not backends.load(other).no_onnx]
        mend = f"pass the torch module, or backend={' or '.join(map(repr, able))}" if able else "pass the torch module"
        raise ValueError(f"{name} takes no ONNX file: {why}; {mend}")
    if recover is not None or keep_float:
        raise ValueError(
            "recover and keep_float edit the torch graph, which an ONNX file has not; pass the torch module"
        )


@contextmanager
def _opened(network: Network, examples: Sample | None) -> Iterator[tuple[torch.nn.Module | Original, Arrays]]:
    """What the artifact is held against, and its example inputs; a file is open for as long as the block."""
    given = None if examples is None else as_arrays([examples])[0]
    if isinstance(network, Original):
        yield network, network.examples if given is None else given
    elif isinstance(network, Path | str):
        with Original(Path(network), given) as original:
            yield original, original.examples
    elif given is None:
        raise ValueError("a module does not say what it takes; pass example inputs")
    else:
        yield _module_of(network), given


def _why(original: torch.nn.Module | Original, samples: Sequence[Arrays]) -> str:
    """What an artifact may fail of, as the end of a sentence; a module with NaN in it was refused before."""
    return original.suspicion(samples) if isinstance(original, Original) else ""


def _called(original: torch.nn.Module | Original) -> str:
    return original.name if isinstance(original, Original) else type(original).__name__


def _rungs(recover: str | None, precision: str) -> Sequence[str | None]:
    """The rungs to try in turn; None is the network as it is."""
    if recover is None:
        return (None,)
    if recover not in ("auto", *LADDER):
        raise ValueError(f"no recover={recover!r}; known: auto, {', '.join(LADDER)}")
    if precision != "int8":
        raise ValueError(f"recover={recover!r} is for int8, got precision {precision}")
    return (None, *LADDER) if recover == "auto" else (recover,)


def _marked(program: Program, keep_float: Sequence[str], precision: str) -> Program:
    """The program with the named blocks marked to stay in float; ValueError where all of it does."""
    if not keep_float:
        return program
    if precision != "int8":
        raise ValueError(f"keep_float keeps blocks out of int8, got precision {precision}; leave it out")
    from hnas.export.int8.mixed import keep_float as mark

    return mark(program, keep_float)


def _recovered(
    program: Program | OnnxSource, images: Sequence[Arrays] | None, rung: str | None
) -> tuple[Program | OnnxSource, list[JSON]]:
    """The program with the edits of a rung, and what each of them gained."""
    if rung is None or images is None or isinstance(program, OnnxSource):
        return program, []
    from hnas.export.int8.ladder import recover

    return recover(program, images, rung)


def _table(value: JSON) -> dict[str, JSON]:
    assert isinstance(value, dict)
    return value


def free_path(path: Path) -> Path:
    """The path, made absolute; ValueError where writing would overwrite something that is no artifact."""
    path = path.absolute()
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / RECORD).is_file()):
        raise ValueError(f"{path} exists and is no artifact; choose an empty or new folder")
    return path


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block succeeds, and goes when it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {target.parent}: {error.strerror}") from error
    try:
        inner = folder / target.name  # a name that is fit to be shown in errors
        inner.mkdir()
        yield inner
        older = target.rename(folder / "older") if target.exists() else None
        try:
            inner.rename(target)
        except OSError:
            if older is not None:
                older.rename(target)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepared(
    network: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sample,
    calibration: Iterable[Sample],
    backend: str,
) -> tuple[Program, list[Arrays]]:
    """The fused program of a network for a backend, and calibration inputs at the batch size of the examples."""
    examples = as_arrays([example_inputs])[0]
    images = split(as_arrays(calibration), examples, "calibration")
    return _program(_module_of(network), examples, backend), images


def _module_of(network: torch.nn.Module | torch.export.ExportedProgram) -> torch.nn.Module:
    from hnas.export.graph.program import module_of

    return module_of(network)


def _program(module: torch.nn.Module, examples: Arrays, backend: str) -> Program:
    """The captured program of the module, fused by the passes of the backend."""
    import torch

    from hnas.export.graph.fusion import fuse, passes_for
    from hnas.export.graph.program import capture

    return fuse(capture(module, [torch.from_numpy(part) for part in examples]), passes_for(backend))


@contextmanager
def _naming(program: Program | OnnxSource, backend: str, by: Callable[..., Artifact]) -> Iterator[None]:
    """Say which operators of the program the backend cannot take, where it fails because of some.

    Those of an ONNX file the backend names itself.
    """
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


def _eager(module: torch.nn.Module, evidence: Sequence[Arrays]) -> list[Arrays]:
    """What the module itself says, in eval mode; copies go in, as a module may write into its inputs."""
    import torch

    from hnas.export.graph.program import as_tuple, evaluating

    with evaluating(module), torch.no_grad():
        runs = [module(*(torch.from_numpy(part.copy()) for part in sample)) for sample in evidence]
    return [tuple(output.numpy() for output in as_tuple(run)) for run in runs]


def _probes(program: Program) -> list[Arrays]:
    """The example inputs and random ones like them, as far as the program is finite on those."""
    import torch

    from hnas.export.graph.fusion import noise

    probes = [program.inputs]
    for seed in range(1, PROBES + 1):
        probe = noise(program.inputs, seed)
        if all(bool(torch.isfinite(output).all()) for output in program(*probe) if output.is_floating_point()):
            probes.append(probe)
    return [tuple(part.numpy() for part in probe) for probe in probes]
