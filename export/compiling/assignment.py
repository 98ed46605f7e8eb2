"""Choose mixed precision: which blocks compute in int8, and which in float.

``hnas.export.compile_mixed(net, example_inputs, accept=..., calibration=..., path="net-mixed")``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas import hw_profiles
from hnas.export.compiling.options import MixedOptions
from hnas.export.compiling.originals import capture_module
from hnas.export.compiling.pipeline import compile
from hnas.export.compiling.publishing import free_path, publish, staging
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.device.records import JSON
from hnas.export.graph.samples import to_samples
from hnas.export.int8.mixed import Assignment, assign, sensitivities
from hnas.export.proof.timing import compare
from hnas.export.remote.scratch import Scratch

if TYPE_CHECKING:
    from hnas.export.compiling.originals import Module
    from hnas.export.graph.samples import SampleLike

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
    target = free_path(Path(path))
    program = capture_module(network, example_inputs, options.backend or profile.backend)
    examples = tuple(value.numpy() for value in program.inputs)
    samples = to_samples(calibration, examples, "calibration", program.input_names)
    options = replace(options, evidence=samples if options.evidence is None else list(options.evidence))
    levels = sensitivities(program, samples[:_SENSED])
    with Scratch() as folder:
        built: dict[tuple[str, ...], Artifact] = {}

        def artifact(kept: tuple[str, ...]) -> Artifact:
            if kept not in built:
                built[kept] = compile(
                    network,
                    example_inputs,
                    path=folder / str(len(built)),
                    device=device,
                    precision="int8",
                    calibration=samples,
                    threads=threads,
                    options=replace(options, keep_float=kept),
                )
            return built[kept]

        def time(kept: tuple[str, ...]) -> float:
            return _relative_time(artifact(kept), next(iter(built.values())), samples[0])

        chosen, tried = assign(levels, lambda kept: _accepted(artifact, accept, kept), time, options.trials)
        if chosen is None:  # case 4
            raise ExportError(f"no mixed precision is accepted; {len(tried)} assignments of {len(levels)} blocks tried")
        _publish_copy(built[chosen.kept], target, _record(levels, tried, chosen))
    return Artifact.read(target)


def _accepted(
    make: Callable[[tuple[str, ...]], Artifact], accept: Callable[[Artifact], bool], kept: tuple[str, ...]
) -> bool:
    """Return whether the artifact with the blocks ``kept`` in float can be made and is accepted."""
    try:
        return accept(make(kept))
    except Unavailable:
        raise
    except ExportError as error:
        if not kept and not isinstance(error, Unfaithful):  # case 3
            raise
        return False  # cases 1 and 2


def _relative_time(artifact: Artifact, baseline: Artifact, inputs: Sequence[Any]) -> float:
    """Return the time of an artifact divided by that of the baseline, measured interleaved."""
    if artifact.path == baseline.path:
        return 1.0
    return 1.0 / compare(baseline, artifact, tuple(np.asarray(value) for value in inputs), blocks=_BLOCKS).ratio


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
