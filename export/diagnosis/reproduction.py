"""Save a failing trial to a folder, and repeat it: the program, the calls, the setting and the failure's line.

``reduce_and_save(folder, ...)`` saves a trial, ``rerun(folder)`` repeats it. No file in the folder can run code: the
graph is JSON with names of ATen operators, weights are safetensors, calls are plain arrays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.reference import convert as reference
from hnas.export.device.artifact import Artifact
from hnas.export.device.disk import open_plain, plain_size
from hnas.export.device.records import check_version, decode, read_json, write_json
from hnas.export.diagnosis.reduction import Fails, reduce_program
from hnas.export.diagnosis.trial import Setting, TrialBench, TrialVerdict
from hnas.export.graph.program import Program, capture

SCHEMA = 1
RECORD, PROGRAM, CALLS = "reproduction.json", "program", "calls.npz"
_LARGEST_CALLS = 2**31  # bytes of the saved calls, packed and unpacked

Call = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Reproduction:
    """Hold the record of a saved failure.

    outcome, line: outcome and line of the trial that failed.
    torch: the version of torch that wrote the record.
    """

    setting: Setting
    outcome: str
    line: str
    torch: str


def failing(bench: TrialBench, setting: Setting, verdict: TrialVerdict) -> Fails:
    """Return a test of whether a program fails like ``verdict``: by a mismatch, or by the same kind of error."""

    def fails(program: Program, calls: Sequence[Call]) -> bool:
        found = bench.judge(program, calls, setting)
        if found.outcome != verdict.outcome:
            return False
        return found.outcome == "mismatch" or _kind(found.line) == _kind(verdict.line)

    return fails


def reduce_and_save(
    folder: Path,
    program: Program,
    calls: Sequence[Call],
    setting: Setting,
    bench: TrialBench,
    verdict: TrialVerdict,
    seconds: float = 120.0,
) -> tuple[int, TrialVerdict]:
    """Reduce a failing program, save it to ``folder``, and return its number of operators and its verdict.

    verdict: the verdict of the trial of ``program`` on ``calls`` with ``setting``.
    seconds: time limit of the reduction.

    Raises:
        ValueError: the failure does not occur again, or ``folder`` is not empty.
    """
    found = reduce_program(program, calls, failing(bench, setting, verdict), seconds=seconds)
    last = bench.judge(found.program, found.calls, setting)
    write_reproduction(folder, found.program, found.calls, setting, last)
    return found.size[0], last


def write_reproduction(
    folder: Path, program: Program, calls: Sequence[Call], setting: Setting, verdict: TrialVerdict
) -> None:
    """Save a failure. Raise ValueError if the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder")
    (folder / PROGRAM).mkdir(parents=True)
    make_artifact("reference", program, folder / PROGRAM, precision="fp32", device=setting.profile)
    named = {f"call{n}_input{i}": value.numpy() for n, call in enumerate(calls) for i, value in enumerate(call)}
    np.savez(folder / CALLS, **named)  # type: ignore[arg-type]
    record = {"setting": setting.to_json(), "outcome": verdict.outcome, "line": verdict.line}
    write_json(folder / RECORD, {"schema": SCHEMA, **record, "torch": version("torch")})


def read_reproduction(folder: Path) -> tuple[Program, list[Call], _Reproduction]:
    """Read a folder of ``write_reproduction``. Raise ValueError for any other folder."""
    value = read_json(folder / RECORD)
    check_version(value, str(folder / RECORD), SCHEMA)
    record = decode(_Reproduction, value, str(folder / RECORD))
    record.setting.check()
    artifact = Artifact.read(folder / PROGRAM)
    if artifact.backend != "reference":
        raise ValueError(f"{folder / PROGRAM} was compiled for {artifact.backend}, expected reference")
    module = reference.load(artifact).module
    calls = _read_calls(folder / CALLS, len(artifact.inputs))
    return capture(module, calls[0]), calls, record


def rerun(folder: Path) -> tuple[TrialVerdict, _Reproduction]:
    """Repeat the trial of a saved failure, and return the new verdict and the saved record."""
    program, calls, record = read_reproduction(folder)
    with TrialBench() as bench:
        return bench.judge(program, calls, record.setting), record


def _read_calls(file: Path, inputs: int) -> list[Call]:
    try:
        if plain_size(file) > _LARGEST_CALLS:
            raise ValueError(f"it has {plain_size(file)} bytes, at most {_LARGEST_CALLS} are read")
        with open_plain(file) as stream, np.load(stream, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > _LARGEST_CALLS:
                raise ValueError(f"its arrays have more than {_LARGEST_CALLS} bytes")
            values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        count, rest = divmod(len(values), inputs)
        if rest or not count:
            raise ValueError(f"{len(values)} arrays for {inputs} inputs")
        return [tuple(values[f"call{n}_input{i}"] for i in range(inputs)) for n in range(count)]
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except Exception as error:  # the decoder of a broken archive may raise anything
        raise ValueError(f"{file} is not a file of saved calls: {error}") from error


def _kind(line: str) -> str:
    """Return an error line without digits, paths and punctuation, so that lines of the same kind are equal."""
    return re.sub(r"/\S+|\d|\W", "", line)[:80]
