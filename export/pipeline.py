"""From a module to an artifact that was proved on its saved file; and from an artifact to something that runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import hw_profiles
from export import backends
from export.artifact import RECORD, Artifact
from export.compiling import convert
from export.errors import ExportError, Unavailable
from export.quantisation import LADDER
from export.schema import JSON
from export.verification import LIMITS, Check, check
from export.worker import Worker

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from export.compiler import Compiler
    from export.program import Program
    from export.runtimes import Runner

    Arrays = tuple[NDArray[Any], ...]
    Sample = Sequence[torch.Tensor | NDArray[Any]] | torch.Tensor | NDArray[Any]

PROBES = 4  # random samples that stand in where the caller has no real ones


def compile(
    network: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sample,
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
    module = _module_of(network)
    profile = hw_profiles.load(device)
    name = _choose(profile, backend, precision)
    target = free_path(Path(path))
    examples = _samples([example_inputs])[0]
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs calibration batches; pass calibration=..., an iterable of input tuples")
    images = None if calibration is None else _split(_samples(calibration), examples, "calibration")
    proof = None if evidence is None else _split(_samples(evidence), examples, "evidence")
    rungs = _rungs(recover, precision)
    program = _marked(_program(module, examples, name), keep_float, precision)
    by = convert if compiler is None else compiler.convert
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
                    called=type(module).__name__,
                )
                samples = proof or images or _probes(program)
                found = verify(module, artifact, samples)
            if found.passed and opened is not None:
                found = verify(module, artifact, samples, opened)
            if found.passed:
                break
        if not found.passed:
            raise ExportError(f"{name} does not compute what {type(module).__name__} does: {found.line()}")
        notes = {**artifact.notes, "passes": [list(pair) for pair in program.fired], "verification": found.to_json()}
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
    module: torch.nn.Module,
    artifact: Artifact,
    evidence: Sequence[Arrays],
    opened: Callable[[Artifact], Worker] = Worker,
) -> Check:
    """Compare the saved artifact, in the new process that ``opened`` starts, with the module in eager mode."""
    expected = _eager(module, evidence)
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
    from export.mixed import keep_float as mark

    return mark(program, keep_float)


def _recovered(program: Program, images: Sequence[Arrays] | None, rung: str | None) -> tuple[Program, list[JSON]]:
    """The program with the edits of a rung, and what each of them gained."""
    if rung is None or images is None:
        return program, []
    from export.recovery import recover

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


def _samples(values: Iterable[Sample]) -> list[Arrays]:
    """Input tuples as numpy; a bare tensor or array is a tuple of one."""
    samples = []
    for value in values:
        parts = tuple(value) if isinstance(value, tuple | list) else (value,)
        samples.append(tuple(_array(part) for part in parts))
    if not samples or not samples[0]:
        raise ValueError("inputs must be at least one tuple of at least one tensor, got none")
    return samples


def _array(value: Any) -> NDArray[Any]:
    plain = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    if not isinstance(plain, np.ndarray) or plain.dtype.kind not in "biuf":
        raise ValueError(f"inputs must be tensors or arrays of numbers, got {type(value).__name__}")
    return np.ascontiguousarray(plain)


def _split(samples: list[Arrays], examples: Arrays, what: str) -> list[Arrays]:
    """The samples at the batch size of the examples: a loader's batch of 32 becomes 32 samples of 1."""
    found = []
    for sample in samples:
        if [part.shape for part in sample] == [part.shape for part in examples]:
            pieces = [sample]
        else:
            pieces = _pieces(sample, examples)
        if not pieces or [part.dtype for part in sample] != [part.dtype for part in examples]:
            raise ValueError(f"{what} inputs are {_list(sample)}, the example inputs {_list(examples)}")
        found.extend(pieces)
    if not all(np.isfinite(part).all() for sample in found for part in sample if part.dtype.kind == "f"):
        raise ValueError(f"{what} inputs hold NaN or infinity")
    return found


def _pieces(sample: Arrays, examples: Arrays) -> list[Arrays]:
    """The sample in pieces of the examples' batch, or none where it does not come out even."""
    pairs = list(zip(sample, examples, strict=False))
    if len(sample) != len(examples) or not all(a.ndim and b.ndim and a.shape[1:] == b.shape[1:] for a, b in pairs):
        return []
    counts = {(len(a) // len(b), len(a) % len(b)) if len(b) else (0, 1) for a, b in pairs}
    (count, rest), *others = counts
    if others or rest:
        return []
    return [tuple(a[index * len(b) : (index + 1) * len(b)] for a, b in pairs) for index in range(count)]


def _list(sample: Sequence[NDArray[Any]]) -> str:
    return ", ".join(f"{part.dtype}{list(part.shape)}" for part in sample)


def prepared(
    network: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sample,
    calibration: Iterable[Sample],
    backend: str,
) -> tuple[Program, list[Arrays]]:
    """The fused program of a network for a backend, and calibration inputs at the batch size of the examples."""
    examples = _samples([example_inputs])[0]
    images = _split(_samples(calibration), examples, "calibration")
    return _program(_module_of(network), examples, backend), images


def _module_of(network: torch.nn.Module | torch.export.ExportedProgram) -> torch.nn.Module:
    from export.program import module_of

    return module_of(network)


def _program(module: torch.nn.Module, examples: Sequence[NDArray[Any]], backend: str) -> Program:
    """The captured program of the module, fused by the passes of the backend."""
    import torch

    from export.fusion import fuse, passes_for
    from export.program import capture

    return fuse(capture(module, [torch.from_numpy(part) for part in examples]), passes_for(backend))


@contextmanager
def _naming(program: Program, backend: str, by: Callable[..., Artifact]) -> Iterator[None]:
    """Say which operators of the program the backend cannot take, where it fails because of some."""
    try:
        yield
    except Unavailable:
        raise
    except ExportError as error:
        from export.unsupported import unsupported

        if named := unsupported(program, backend, by):
            raise ExportError(f"{named} ({error})") from error
        raise


def _eager(module: torch.nn.Module, evidence: Sequence[Arrays]) -> list[Arrays]:
    """What the module itself says, in eval mode; copies go in, as a module may write into its inputs."""
    import torch

    from export.program import as_tuple, evaluating

    with evaluating(module), torch.no_grad():
        runs = [module(*(torch.from_numpy(part.copy()) for part in sample)) for sample in evidence]
    return [tuple(output.numpy() for output in as_tuple(run)) for run in runs]


def _probes(program: Program) -> list[Arrays]:
    """The example inputs and random ones like them, as far as the program is finite on those."""
    import torch

    from export.fusion import noise

    probes = [program.inputs]
    for seed in range(1, PROBES + 1):
        probe = noise(program.inputs, seed)
        if all(bool(torch.isfinite(output).all()) for output in program(*probe) if output.is_floating_point()):
            probes.append(probe)
    return [tuple(part.numpy() for part in probe) for probe in probes]
