"""Does a bundle still compute what its network does? Its saved files, in new processes, against eager torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hnas.deployment.given import given
from hnas.deployment.network import Arrays, read_calibration
from hnas.deployment.pricing import samples
from hnas.deployment.source import Source, open_source
from hnas.export.bundle.bundle import Bundle, read_bundle
from hnas.export.bundle.manifest import Manifest
from hnas.export.compiling.pipeline import verify
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.diagnosis import reproduction
from hnas.export.diagnosis.trial import Call, Setting, TrialBench, TrialVerdict
from hnas.export.graph.fusion import noise_tensors
from hnas.export.graph.program import capture
from hnas.export.onnx.source import SUFFIX, Original
from hnas.export.proof.verification import Check
from hnas.space import Arch
from hnas.study import Study

COUNT = 256  # inputs that a file is held to
_REDUCED = 16  # of them, with which a failing network is reduced: each candidate is compiled and run on all
NOISE = 32  # seeded inputs where there are no real ones


@dataclass(frozen=True, eq=False)
class Subject:
    """An artifact of a bundle, the network that it was made from, and inputs of it."""

    name: str
    artifact: Artifact
    net: nn.Module | Original
    inputs: Sequence[Arrays]


def check_bundle(
    path: Path,
    *,
    supernet: Path | None = None,
    data: Path | None = None,
    model: str | None = None,
    calibration: Path | None = None,
    reduce: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Every file of the bundle at ``path`` against the network in eager torch, as plain values; ``passed`` is of all.

    1. A bundle of a search: the subnet comes out of ``supernet`` (None: the shipped one), whose weights must have the
       digest that the bundle states; inputs are search images.
    2. A bundle of a network of the user's own: ``model`` names it as it did for the export, an ONNX file
       standing for eager torch; inputs are those of ``calibration``, else seeded noise.
    3. The folder of a saved reproduction: its trial, once more.

    reduce: what fails is compiled anew and made as small as it still fails, into a folder within ``out``.
    ValueError and FileNotFoundError for wrong use, Unavailable for a missing runtime.
    """
    if (path / reproduction.RECORD).is_file():
        return _again(path)
    bundle = read_bundle(path)
    with ExitStack() as stack:
        own = None if model is None else _own(bundle, model, calibration, stack)
        subjects = own or _searched(bundle, supernet, data)
        rows = [_row(subject, verify(subject.net, subject.artifact, subject.inputs)) for subject in subjects]
        if reduce:
            for subject, row in zip(subjects, rows, strict=True):
                if not row["passed"]:
                    row["reduced"] = _reduced(subject, (out or Path(f"{path.absolute()}-failing")) / subject.name)
    return {"bundle": str(path), "passed": all(row["passed"] for row in rows), "rows": rows}


def _again(path: Path) -> dict[str, Any]:
    verdict, record = reproduction.rerun(path)
    how = {"backend": record.setting.backend, "precision": record.setting.precision}
    row = {"file": "reproduction", **how, "passed": not verdict.failed, "line": verdict.line, "was": record.line}
    return {"bundle": str(path), "passed": not verdict.failed, "rows": [row]}


def _row(subject: Subject, found: Check) -> dict[str, Any]:
    artifact = subject.artifact
    named = {"file": subject.name, "backend": artifact.backend, "precision": artifact.precision}
    return {**named, **found.to_json(), "line": found.line()}


def _searched(bundle: Bundle, supernet: Path | None, data: Path | None) -> list[Subject]:
    manifest = bundle.manifest
    if manifest.arch is None or manifest.space is None:
        made = f"this one was made by: {manifest.reproduce}"
        raise ValueError(f"{bundle.path} holds a network that no search found; name it with --model M:C; {made}")
    source = _source(manifest, supernet, data)
    study = Study(source.supernet, source.task, seed=manifest.seeds.get("search", 0))
    space = source.supernet.space
    members = {"artifact": (bundle.artifact(), space.arch(manifest.arch))}
    if (baseline := bundle.baseline()) is not None:
        members["baseline"] = (baseline, space.largest)
    return [_member(study, name, artifact, arch) for name, (artifact, arch) in members.items()]


def _source(manifest: Manifest, supernet: Path | None, data: Path | None) -> Source:
    """The supernet with the digest that the manifest states, and images that it knows."""
    assert manifest.space is not None
    source = open_source(supernet, data)
    which = str(supernet) if supernet else "the shipped supernet"
    made = f"give the one that it was made from with --supernet DIR; it was made by: {manifest.reproduce}"
    own = source.supernet.space.to_json()
    if (own["name"], own["arguments"]) != (manifest.space.name, dict(manifest.space.arguments)):
        raise ValueError(f"{which} is of another space than the bundle's {manifest.space.name}; {made}")
    if manifest.space.supernet not in ("", source.digest):
        raise ValueError(f"{which} has other weights than those that the bundle was made from; {made}")
    return source


def _member(study: Study, name: str, artifact: Artifact, arch: Arch) -> Subject:
    net = study.supernet.extract(arch, study.calibrate(arch))
    shapes = [tensor.shape[1:] for tensor in artifact.inputs]
    return Subject(name, artifact, net, samples(study, "search", shapes, COUNT))


def _own(bundle: Bundle, model: str, calibration: Path | None, stack: ExitStack) -> list[Subject]:
    artifact = bundle.artifact()
    shapes = ["x".join(map(str, tensor.shape)) for tensor in artifact.inputs]
    file = model.lower().endswith(SUFFIX)  # which states its types, where a module's inputs are drawn as floats
    plain = all(tensor.shape and (file or tensor.dtype == "float32") for tensor in artifact.inputs)
    network = stack.enter_context(given(model, shapes if plain else None))
    net, examples = network.network, network.examples
    found = [(tuple(value.shape), str(value.dtype).removeprefix("torch.")) for value in examples]
    if found != [(tensor.shape, tensor.dtype) for tensor in artifact.inputs]:
        raise ValueError(f"{model} takes other inputs than {bundle.path}; name the network that it was made from")
    if calibration is None:
        calls = [tuple(value.numpy() for value in noise_tensors(examples, seed)) for seed in range(NOISE)]
    else:
        arrays, size = read_calibration(calibration, examples, network.inputs), len(examples[0])
        count = min(COUNT, len(arrays[0]) // size)
        parts = [np.split(array[: count * len(each)], count) for array, each in zip(arrays, examples, strict=True)]
        calls = list(zip(*parts, strict=True))
    subjects = [Subject("artifact", artifact, net, calls)]
    if (baseline := bundle.baseline()) is not None:
        subjects.append(Subject("baseline", baseline, net, calls))
    return subjects


def _reduced(subject: Subject, folder: Path) -> dict[str, Any]:
    """What the failing network was reduced to; or why it was not."""
    artifact = subject.artifact
    if isinstance(subject.net, Original):
        raise ValueError("--reduce cuts torch graphs, which an ONNX file has not; leave it out")
    setting = Setting(artifact.backend, artifact.precision, artifact.device)
    calls: list[Call] = [tuple(map(torch.from_numpy, call)) for call in subject.inputs[:_REDUCED]]
    program = capture(subject.net, calls[0])
    with TrialBench(timeout=120.0) as bench:
        verdict: TrialVerdict = bench.judge(program, calls, setting)
        if verdict.outcome == "holds":
            made = ", ".join(f"{name} {version}" for name, version in artifact.versions.items())
            return {"line": f"compiled anew here it holds ({verdict.line}): the file is at fault, made with {made}"}
        if verdict.outcome == "refused":
            raise ExportError(verdict.line)
        left, last = reproduction.reduce_and_save(folder, program, calls, setting, bench, verdict)
    return {"operators": left, "folder": str(folder), "line": last.line, "command": f"hnas-deploy verify {folder}"}
