"""Verify the saved files of a bundle against its network in eager torch, in new processes.

Call `verify_bundle(path, ...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hnas.deployment.examples import GivenInputs
from hnas.deployment.loading import read_calibration
from hnas.deployment.network import StaticNetwork
from hnas.deployment.own import open_network
from hnas.deployment.pricing import held_out_samples
from hnas.deployment.source import SupernetSource, open_source
from hnas.export.bundle.bundle import Bundle, read_bundle
from hnas.export.bundle.manifest import Manifest
from hnas.export.compiling.pipeline import verify
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.diagnosis import reproduction
from hnas.export.diagnosis.trial import Call, Setting, TrialBench, TrialVerdict
from hnas.export.graph.fusion import noise_tensors
from hnas.export.graph.program import capture
from hnas.export.graph.samples import Sample, random_sample
from hnas.export.onnx.source import SUFFIX, Original
from hnas.export.proof.verification import Check
from hnas.space import Arch
from hnas.study import Study

COUNT = 256  # samples that a file is verified on
NOISE = 32  # random samples that are used if there are no real samples
_REDUCED = 16  # samples for the reduction of a failing network; each smaller network is compiled and run on all samples


@dataclass(frozen=True, eq=False)
class _BundleMember:
    """An artifact of a bundle, the network that it was made from, and samples of the network."""

    name: str
    artifact: Artifact
    net: nn.Module | Original
    samples: Sequence[Sample]


def verify_bundle(
    path: Path,
    *,
    supernet: Path | None = None,
    data: Path | None = None,
    model: str | None = None,
    calibration: Path | None = None,
    reduce: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Verify every artifact of the bundle at ``path``. Return plain values; ``passed`` is true if all artifacts pass.

    1. A bundle of a search: the subnet is extracted from ``supernet`` (None: the shipped one), whose weights must have
       the digest in the bundle. The samples are search images of ``data``.
    2. A bundle of a network of the user's own: ``model`` names the network, as for the export. For an ONNX file, the
       reference is the file instead of eager torch. The samples are those in ``calibration``, or else seeded noise.
    3. The folder of a saved reproduction: its trial is repeated.

    reduce: compile a failing network again, shrink it to the smallest part that still fails, and save this part.
    out: the folder of these parts; None: ``path`` with the suffix "-failing".

    Raises:
        ValueError: ``path`` is not a valid bundle, or the network or supernet is not that of the bundle.
        FileNotFoundError: a file or folder is missing.
        Unavailable: a runtime is missing.
    """
    if (path / reproduction.RECORD).is_file():  # case 3
        return _repeat_trial(path)
    bundle = read_bundle(path)
    with ExitStack() as stack:
        if model is None:
            members = _subnets(bundle, supernet, data)  # case 1
        else:
            members = _own_network(bundle, model, calibration, stack)  # case 2
        rows = [_row(member, verify(member.net, member.artifact, member.samples)) for member in members]
        if reduce:
            for member, row in zip(members, rows, strict=True):
                if not row["passed"]:
                    row["reduced"] = _reduce(member, (out or Path(f"{path.absolute()}-failing")) / member.name)
    return {"bundle": str(path), "passed": all(row["passed"] for row in rows), "rows": rows}


def _repeat_trial(path: Path) -> dict[str, Any]:
    verdict, record = reproduction.rerun(path)
    how = {"backend": record.setting.backend, "precision": record.setting.precision}
    row = {"file": "reproduction", **how, "passed": not verdict.failed, "line": verdict.line, "was": record.line}
    return {"bundle": str(path), "passed": not verdict.failed, "rows": [row]}


def _row(member: _BundleMember, found: Check) -> dict[str, Any]:
    artifact = member.artifact
    named = {"file": member.name, "backend": artifact.backend, "precision": artifact.precision}
    return {**named, **found.to_json(), "line": found.line()}


def _subnets(bundle: Bundle, supernet: Path | None, data: Path | None) -> list[_BundleMember]:
    """Return the artifact and the baseline of a searched bundle with the subnets that they were made from."""
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
    return [_subnet(study, name, artifact, arch) for name, (artifact, arch) in members.items()]


def _source(manifest: Manifest, supernet: Path | None, data: Path | None) -> SupernetSource:
    """Return the supernet, whose weights have the digest in the manifest, and images for it."""
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


def _subnet(study: Study, name: str, artifact: Artifact, arch: Arch) -> _BundleMember:
    net = study.supernet.extract(arch, study.calibrate(arch))
    shapes = [tensor.shape[1:] for tensor in artifact.inputs]
    return _BundleMember(name, artifact, net, held_out_samples(study, "search", shapes, COUNT))


def _own_network(bundle: Bundle, model: str, calibration: Path | None, stack: ExitStack) -> list[_BundleMember]:
    """Return the artifacts of a bundle with the user's own network. ``stack`` keeps an ONNX file open."""
    artifact = bundle.artifact()
    network = stack.enter_context(open_network(model, _inputs_of(artifact, model)))
    found = [(value.shape, str(value.dtype)) for value in network.example]
    if found != [(tensor.shape, tensor.dtype) for tensor in artifact.inputs]:
        raise ValueError(f"{model} takes other inputs than {bundle.path}; name the network that it was made from")
    samples = _samples(network, calibration)
    members = [_BundleMember("artifact", artifact, network.module, samples)]
    if (baseline := bundle.baseline()) is not None:
        members.append(_BundleMember("baseline", baseline, network.module, samples))
    return members


def _inputs_of(artifact: Artifact, model: str) -> GivenInputs | None:
    """Return inputs for the network of an artifact; None where those of the callable are the only ones that fit.

    1. Floats with axes: their shapes.
    2. An ONNX file: values by name, because it states its types.
    """
    tensors = artifact.inputs
    if model.lower().endswith(SUFFIX):  # case 2
        return GivenInputs(values=dict(zip([tensor.name for tensor in tensors], random_sample(tensors), strict=True)))
    plain = all(tensor.shape and tensor.dtype == "float32" for tensor in tensors)
    return GivenInputs(shapes=tuple(("", tensor.shape) for tensor in tensors)) if plain else None  # case 1


def _samples(network: StaticNetwork, calibration: Path | None) -> list[Sample]:
    """Return the samples in the file ``calibration``, else seeded noise like the example."""
    if calibration is None:
        tensors = tuple(map(torch.from_numpy, network.example))
        return [tuple(value.numpy() for value in noise_tensors(tensors, seed)) for seed in range(NOISE)]
    return read_calibration(calibration, network.example, network.input_names)[:COUNT]


def _reduce(member: _BundleMember, folder: Path) -> dict[str, Any]:
    """Shrink the failing network and save the smallest part that still fails. Return the result as plain values."""
    artifact = member.artifact
    if isinstance(member.net, Original):
        raise ValueError("--reduce cuts torch graphs, which an ONNX file has not; leave it out")
    setting = Setting(artifact.backend, artifact.precision, artifact.device)
    calls: list[Call] = [tuple(map(torch.from_numpy, call)) for call in member.samples[:_REDUCED]]
    program = capture(member.net, calls[0])
    with TrialBench(timeout=120.0) as bench:
        verdict: TrialVerdict = bench.judge(program, calls, setting)
        if verdict.outcome == "holds":
            made = ", ".join(f"{name} {version}" for name, version in artifact.versions.items())
            return {"line": f"compiled anew here it holds ({verdict.line}): the file is at fault, made with {made}"}
        if verdict.outcome == "refused":
            raise ExportError(verdict.line)
        left, last = reproduction.reduce_and_save(folder, program, calls, setting, bench, verdict)
    return {"operators": left, "folder": str(folder), "line": last.line, "command": f"hnas-deploy verify {folder}"}
