"""The folder of a run. One process locks it, only a run with equal options resumes it, and leftovers are removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from hnas.deployment.places import RUN, check_places, require_free
from hnas.deployment.plan import Plan
from hnas.export.device.errors import ExportError
from hnas.files import locked, read_json, write_json
from hnas.journal import Journal

WORK = ".work"  # the folder of the artifacts of a user's own network, until the bundle is written


class Unreachable(ExportError):
    """No subnet meets every constraint. The message states the nearest values."""


class _RunSource(Protocol):
    """The weights and the data of a run."""

    @property
    def digest(self) -> str:
        """Return the sha256 of the weights file."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """Return the digest of each part of the data."""
        ...


@contextmanager
def open_run(plan: Plan, source: _RunSource, resume: bool) -> Iterator[Journal]:
    """Lock the folder of the run and yield its journal.

    1. Another process works in the folder, or it cannot be written: ValueError.
    2. The folder holds a run: FileExistsError unless ``resume``. ValueError where the run has other options, weights,
       images, another CPU or another version of hnas.
    3. The folder holds something else: FileExistsError.
    4. A new run ends with ``Unreachable``, or any run ends before a call has finished: the run is removed, so that the
       folder is free for a run with other bounds.
    """
    with locked(plan.out, left=(plan.out / RUN).exists()):  # case 1
        fresh = _claim(plan, run_identity(plan, source), resume)
        _sweep(plan.out)
        journal = Journal(plan.out / "journal.jsonl")
        removed = False
        try:
            yield journal
        except Unreachable:
            removed = fresh
            raise
        finally:
            journal.close()
            if removed or not journal.entries:  # case 4
                _forget(plan.out)


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Lock ``out`` and yield a folder in it for artifacts. This folder is removed after the block.

    ``out`` is removed too if it is empty then, and new, or holds what a killed run left.

    Raises:
        FileExistsError: ``out`` is neither new nor empty.
        ValueError: another process works in ``out``, or it cannot be written.
    """
    if not out.is_dir():
        require_free(out)
    with locked(out, left=(out / WORK).exists()):
        _sweep(out)
        require_free(out)
        try:
            (out / WORK).mkdir()
            yield out / WORK
        finally:
            _sweep(out)


def run_identity(plan: Plan, source: _RunSource) -> dict[str, Any]:
    """Return the values that must be equal for a run to be resumed, as a JSON object."""
    made = {"hnas": version("hnas"), "cpu": plan.machine.processor}
    return {**plan.identity(), "supernet": source.digest, "data": dict(source.digests), **made}


def _claim(plan: Plan, wanted: dict[str, Any], resume: bool) -> bool:
    """Write the identity of a new run, or compare it with the one on disk. Return whether the run is new."""
    file = plan.out / RUN
    if not file.exists():
        check_places(plan, resume=False)  # case 3
        try:
            write_json(file, wanted)
        except OSError as error:
            raise ValueError(f"cannot write to {plan.out}: {error.strerror or error}; choose another --out") from None
        return True
    check_places(plan, resume=resume)  # case 2
    compare_run(plan, wanted)
    return False


def compare_run(plan: Plan, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if the folder holds a run whose identity is not ``wanted``: options, weights, images, CPU, hnas.

    wanted: as `run_identity` returns it.
    """
    file = plan.out / RUN
    if not file.exists():
        return
    begun = _begun(file)
    differ = [key for key, value in wanted.items() if begun.get(key) != value]
    if others := [key for key in differ if key not in ("hnas", "cpu")]:
        raise ValueError(f"{plan.out} holds a run with other {', '.join(others)}; choose another --out")
    if differ:
        there, here = (", ".join(f"{key} {found.get(key)}" for key in differ) for found in (begun, wanted))
        raise ValueError(f"{plan.out} was begun on {there}, this is {here}; continue it there or choose another --out")


def _begun(file: Path) -> dict[str, Any]:
    """Return the identity of the run on disk."""
    try:
        return read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; the run cannot be continued, choose another --out") from None


def _forget(out: Path) -> None:
    """Remove a run that has nothing to resume from."""
    shutil.rmtree(out / "artifacts", ignore_errors=True)
    for name in (RUN, "journal.jsonl"):
        (out / name).unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Remove files that a kill left half-written. The folder is locked, so none of them is in use."""
    for left in (out / WORK, *out.glob(".bundle.*"), *out.glob(".plan.json.*"), *out.glob("artifacts/*/.*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
