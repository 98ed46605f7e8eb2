"""The folder of a run: held by one process, continued only by a run like it, and cleared of what a kill left there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hnas.deployment.plan import Plan
from hnas.deployment.source import Source
from hnas.export.device.errors import ExportError
from hnas.files import locked, read_json, write_json
from hnas.journal import Journal

WORK = ".work"  # of an export, within its folder


class Unreachable(ExportError):
    """No subnet keeps every bound; the message says the nearest that was reached."""


@contextmanager
def opened(plan: Plan, source: Source, resume: bool) -> Iterator[Journal]:
    """The journal of the run's folder, which nobody else works in meanwhile.

    1. Another process works there, or it cannot be written: ValueError.
    2. It holds a run: FileExistsError unless ``resume``; ValueError where options, weights, images, the CPU or the
       version of hnas are others than the run's.
    3. It holds something else: FileExistsError.
    4. A run that begins here and ends ``Unreachable`` or without a finished call leaves no trace: other bounds make
       another run. One that was resumed loses nothing.
    """
    with locked(plan.out):
        fresh = _claim(plan, identity(plan, source), resume)
        _sweep(plan.out)
        journal = Journal(plan.out / "journal.jsonl")
        lost = False
        try:
            yield journal
        except Unreachable:
            lost = fresh
            raise
        finally:
            journal.close()
            if lost or not journal.entries:
                _forget(plan.out)


@contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """A folder for artifacts within ``out`` that goes in any case; FileExistsError unless ``out`` is new or empty.

    ValueError where another process works there, or where it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} exists and is no folder; choose another --out")
    with locked(out):
        _sweep(out)
        if any(out.glob("[!.]*")):
            raise FileExistsError(f"{out} exists and is not empty; choose another --out")
        try:
            (out / WORK).mkdir()
            yield out / WORK
        finally:
            _sweep(out)


def identity(plan: Plan, source: Source) -> dict[str, Any]:
    """What must be equal for a run to be continued, as JSON."""
    made = {"hnas": version("hnas"), "cpu": plan.machine.processor}
    return {**plan.identity(), "supernet": source.digest, "data": source.digests, **made}


def _claim(plan: Plan, wanted: dict[str, Any], resume: bool) -> bool:
    """Write down what the run is, or hold it against what is written there; whether it begins here."""
    file = plan.out / "plan.json"
    if not file.exists():
        if any(plan.out.glob("[!.]*")):
            raise FileExistsError(f"{plan.out} is in use and holds no run; choose another --out")
        try:
            write_json(file, wanted)
        except OSError as error:
            raise ValueError(f"cannot write to {plan.out}: {error.strerror or error}; choose another --out") from None
        return True
    if not resume:
        raise FileExistsError(f"{plan.out} holds a run already; continue it with --resume or choose another --out")
    begun = read_json(file)
    differ = [key for key, value in wanted.items() if begun.get(key) != value]
    if others := [key for key in differ if key not in ("hnas", "cpu")]:
        raise ValueError(f"{plan.out} holds a run with other {', '.join(others)}; choose another --out")
    if differ:
        there, here = (", ".join(f"{key} {found.get(key)}" for key in differ) for found in (begun, wanted))
        raise ValueError(f"{plan.out} was begun on {there}, this is {here}; continue it there or choose another --out")
    return False


def _forget(out: Path) -> None:
    """Remove a run that has nothing to continue from."""
    shutil.rmtree(out / "artifacts", ignore_errors=True)
    for name in ("plan.json", "journal.jsonl"):
        (out / name).unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Remove what a kill left half-written; nobody else is at work here, so none of it is in use."""
    for left in (out / WORK, *out.glob(".bundle.*"), *out.glob(".plan.json.*"), *out.glob("artifacts/*/.*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
