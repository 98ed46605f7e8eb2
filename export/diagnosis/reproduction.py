"""A failure that fits into a folder: the program, the calls, the setting, and the line that it ended with.

Nothing in it can execute: the graph is JSON that names ATen operators, weights are safetensors, calls are plain arrays.
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
from hnas.export.device.records import check_version, decode, read_json, write_json
from hnas.export.diagnosis.reduction import Fails, reduce
from hnas.export.diagnosis.trial import Bench, Setting, Verdict
from hnas.export.graph.program import Program, capture

SCHEMA = 1
RECORD, PROGRAM, CALLS = "reproduction.json", "program", "calls.npz"

Call = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Reproduction:
    """What failed, and how: ``outcome`` and ``line`` of the trial in which it did, ``torch`` its version."""

    setting: Setting
    outcome: str
    line: str
    torch: str


def failing(bench: Bench, setting: Setting, verdict: Verdict) -> Fails:
    """Whether a program fails under ``setting`` as it did in ``verdict``: by a mismatch, or by the same error."""

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
    bench: Bench,
    verdict: Verdict,
    seconds: float = 120.0,
) -> tuple[int, Verdict]:
    """Reduce what failed and save it to ``folder``: the operators that are left, and how they fail.

    ValueError where the failure does not come back from the program alone.
    """
    found = reduce(program, calls, failing(bench, setting, verdict), seconds=seconds)
    last = bench.judge(found.program, found.calls, setting)
    write(folder, found.program, found.calls, setting, last)
    return found.size[0], last


def write(folder: Path, program: Program, calls: Sequence[Call], setting: Setting, verdict: Verdict) -> None:
    """Save a failure; ValueError where the folder holds something already."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder")
    (folder / PROGRAM).mkdir(parents=True)
    make_artifact("reference", program, folder / PROGRAM, precision="fp32", device=setting.profile)
    named = {f"call{n}_input{i}": value.numpy() for n, call in enumerate(calls) for i, value in enumerate(call)}
    np.savez(folder / CALLS, **named)  # type: ignore[arg-type]
    record = {"setting": setting.to_json(), "outcome": verdict.outcome, "line": verdict.line}
    write_json(folder / RECORD, {"schema": SCHEMA, **record, "torch": version("torch")})


def read(folder: Path) -> tuple[Program, list[Call], _Reproduction]:
    """What ``write`` saved; ValueError in one line for anything else."""
    value = read_json(folder / RECORD)
    check_version(value, str(folder / RECORD), SCHEMA)
    record = decode(_Reproduction, value, str(folder / RECORD))
    artifact = Artifact.read(folder / PROGRAM)
    if artifact.backend != "reference":
        raise ValueError(f"{folder / PROGRAM} is of {artifact.backend}, expected a program of reference")
    module = reference.load(artifact).module
    calls = _read_calls(folder / CALLS, len(artifact.inputs))
    return capture(module, calls[0]), calls, record


def rerun(folder: Path) -> tuple[Verdict, _Reproduction]:
    """The trial of a saved failure once more, and what it was."""
    program, calls, record = read(folder)
    with Bench() as bench:
        return bench.judge(program, calls, record.setting), record


def _read_calls(file: Path, inputs: int) -> list[Call]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        count, rest = divmod(len(values), inputs)
        if rest or not count:
            raise ValueError(f"{len(values)} arrays for {inputs} inputs")
        return [tuple(values[f"call{n}_input{i}"] for i in range(inputs)) for n in range(count)]
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except Exception as error:  # a broken archive raises whatever its decoder likes
        raise ValueError(f"{file} holds no calls as they were saved: {error}") from error


def _kind(line: str) -> str:
    """A line without its figures and paths: what two failures have in common."""
    return re.sub(r"/\S+|\d|\W", "", line)[:80]
