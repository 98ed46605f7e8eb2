"""The artifact in mixed precision: int8 where the guard and the clock allow it, float elsewhere, block by block."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas import hw_profiles
from hnas.export.compiling.pipeline import compile, free_path, prepared, published
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.device.records import JSON
from hnas.export.int8.mixed import TRIALS, Assignment, assign, sensitivities
from hnas.export.proof.measurement import compare

if TYPE_CHECKING:
    import torch

_SENSED = 32  # calibration samples on which blocks are ranked
TURNS = 10  # blocks of the comparison that times an assignment


def compile_mixed(
    network: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Any,
    *,
    accept: Callable[[Artifact], bool],
    calibration: Iterable[Any],
    path: Path | str,
    device: str = "openvino-cpu",
    backend: str | None = None,
    trials: int = TRIALS,
    **options: Any,
) -> Artifact:
    """The fastest int8 artifact that ``accept`` takes, with as many blocks in float as that needs, in ``path``.

    ``accept`` judges an artifact that was verified, for example by its accuracy on labelled images. Blocks are ranked
    by their sensitivity on the calibration samples and tried as `mixed.assign` says, ``trials`` of them at most; times
    are measured here, each assignment in turns with the first that verifies, which is all int8 as a rule. ``options``
    are those of ``compile``. Sensitivities, what was tried and what was chosen are in
    ``notes["quantisation"]["mixed"]``.

    1. An assignment that does not verify: refused.
    2. One whose blocks cannot be kept in float by themselves: refused.
    3. All in int8 cannot even be converted: its ExportError, as no block is to blame.
    4. No assignment but all float is accepted: ExportError.
    Else as ``compile``.
    """
    profile = hw_profiles.load(device)
    if trials < 1:
        raise ValueError(f"trials is {trials}; it is 1 or more")
    if not profile.local:
        raise ValueError(f"mixed precision is chosen by measured times; {device} is not this machine")
    target, samples = free_path(Path(path)), list(calibration)
    program, images = prepared(network, example_inputs, samples, backend or profile.backend)
    levels = sensitivities(program, images[:_SENSED])
    with tempfile.TemporaryDirectory(prefix="hnas-mixed-") as folder:
        built: dict[tuple[str, ...], Artifact] = {}

        def artifact(kept: tuple[str, ...]) -> Artifact:
            if kept not in built:
                built[kept] = compile(
                    network,
                    example_inputs,
                    precision="int8",
                    calibration=samples,
                    keep_float=kept,
                    path=Path(folder) / str(len(built)),
                    device=device,
                    backend=backend,
                    **options,
                )
            return built[kept]

        def accepted(kept: tuple[str, ...]) -> bool:
            try:
                return accept(artifact(kept))
            except Unavailable:
                raise
            except ExportError as error:
                if not kept and not isinstance(error, Unfaithful):
                    raise
                return False

        def time(kept: tuple[str, ...]) -> float:
            return _time(artifact(kept), next(iter(built.values())), images[0])

        chosen, tried = assign(levels, accepted, time, trials)
        if chosen is None:
            raise ExportError(f"no mixed precision is accepted: {len(tried)} assignments of {len(levels)} blocks tried")
        return _publish(built[chosen.kept], target, levels, tried, chosen)


def _time(artifact: Artifact, baseline: Artifact, inputs: Sequence[Any]) -> float:
    """The time of an artifact as a part of the baseline's, in turns with it."""
    if artifact.path == baseline.path:
        return 1.0
    return 1.0 / compare(baseline, artifact, tuple(np.asarray(value) for value in inputs), blocks=TURNS).ratio


def _publish(
    artifact: Artifact, target: Path, levels: dict[str, float], tried: Sequence[Assignment], chosen: Assignment
) -> Artifact:
    """The very files of the chosen artifact in ``target``, with the record of how they were chosen."""
    quantisation = artifact.notes["quantisation"]
    assert isinstance(quantisation, dict)
    record: dict[str, JSON] = {
        "sensitivity_db": {name: round(level, 1) for name, level in levels.items()},
        "float": list(chosen.kept),
        "tried": [{"float": list(each.kept), "accepted": each.accepted, "time": each.time} for each in tried],
    }
    with published(target) as folder:
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
        notes: dict[str, JSON] = {**artifact.notes, "quantisation": {**quantisation, "mixed": record}}
        replace(artifact, path=folder, notes=notes).write()
    return Artifact.read(target)
