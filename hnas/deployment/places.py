"""Check the folders of a deployment before any work starts, without torch: `check_places(plan, resume=False)`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hnas.deployment.plan import Plan
from hnas.files import locked

RUN = "plan.json"  # the file that marks the folder of a run


def check_places(plan: Plan, *, resume: bool) -> None:
    """Check that the supernet and the images are there, and that ``out`` is free, or holds a run to resume.

    Raises:
        FileNotFoundError: a folder is missing, or ``resume`` is set and ``out`` holds no run.
        FileExistsError: ``out`` holds a run and ``resume`` is not set, or it holds other files.
    """
    if plan.supernet is not None and not plan.supernet.is_dir():
        raise FileNotFoundError(f"no folder {plan.supernet}; --supernet takes what hnas-train --out wrote")
    if plan.data is not None and not plan.data.exists():
        raise FileNotFoundError(f"no folder {plan.data}; --data takes the images that the supernet was trained on")
    if (plan.out / RUN).exists():
        if not resume:
            raise FileExistsError(f"{plan.out} holds a run already; continue it with --resume or choose another --out")
        return
    if plan.out.is_dir() and any(plan.out.glob("[!.]*")):
        raise FileExistsError(f"{plan.out} is in use and holds no run; choose another --out")
    if resume:
        raise FileNotFoundError(f"{plan.out} holds no run to continue; leave out --resume, or name its folder by --out")


def require_free(out: Path) -> None:
    """Raise FileExistsError unless the folder ``out`` of a user's own network is new or empty."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} exists and is not a folder; choose another --out")
    if any(out.glob("[!.]*")):
        raise FileExistsError(f"{out} exists and is not empty; choose another --out")


def try_writing(out: Path) -> None:
    """Raise ValueError unless ``out`` can be created and locked. Folders that this creates are removed again."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with locked(out):
            pass
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
