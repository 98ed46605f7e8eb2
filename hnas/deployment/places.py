"""Check the folders of a deployment before any work starts, without torch: `check_places(plan, resume=False)`."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hnas.deployment.plan import Plan
from hnas.files import locked

RUN = "plan.json"  # the file that marks the folder of a run


def check_places(plan: Plan, *, resume: bool) -> None:
    """Check that the supernet and the images are there, and that ``out`` is free, or holds a run to resume.

    Raises:
        FileNotFoundError: a folder is missing, or ``resume`` is set and ``out`` holds no run.
        FileExistsError: ``out`` holds a run and ``resume`` is not set, or it holds other files.
    """
    require_folders(plan.supernet, plan.data)
    if (plan.out / RUN).exists():
        if not resume:
            raise FileExistsError(f"{plan.out} holds a run already; continue it with --resume or choose another --out")
        return
    if plan.out.is_dir() and any(plan.out.glob("[!.]*")):
        raise FileExistsError(f"{plan.out} is in use and holds no run; choose another --out")
    if resume:
        raise FileNotFoundError(f"{plan.out} holds no run to continue; leave out --resume, or name its folder by --out")


def require_folders(supernet: Path | None, data: Path | None) -> None:
    """Raise FileNotFoundError if a supernet or its images are missing. None stands for the shipped ones."""
    if supernet is not None and not supernet.is_dir():
        raise FileNotFoundError(f"no folder {supernet}; --supernet takes what hnas-train --out wrote")
    if data is not None and not data.exists():
        raise FileNotFoundError(f"no folder {data}; --data takes the images that the supernet was trained on")


def require_model(model: str) -> None:
    """Check that an ONNX file, or the module of a callable, is there. Nothing of the user's is opened or imported.

    model: FILE.onnx or PACKAGE.MODULE:CALLABLE.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text has neither form, or there is no such module.
    """
    if model.lower().endswith(".onnx"):
        if not Path(model).is_file():
            raise FileNotFoundError(f"no ONNX file at {model}")
        return
    name, _, attribute = model.partition(":")
    if not (name and attribute):
        raise ValueError(f"--model {model!r} is not understood; write package.module:callable")
    if not _is_module(name):
        raise ValueError(f"no module {name!r} in the current directory or the environment")


def require_calibration(file: Path | None) -> None:
    """Raise FileNotFoundError if a file of real inputs is missing. None: none is given."""
    if file is not None and not file.exists():
        raise FileNotFoundError(f"no calibration file {file}")


def _is_module(name: str) -> bool:
    """Return whether there is such a module. Its packages are not imported: only their folders are looked into."""
    parts = name.split(".")
    places: Any = None  # the folders of the package so far
    for count, part in enumerate(parts, 1):
        # A loaded module may have no spec, such as __main__ of a script, or no file, if its package has made it.
        if (whole := ".".join(parts[:count])) in sys.modules:
            places = getattr(sys.modules[whole], "__path__", None)
            continue
        if not part or (count > 1 and places is None):
            return False
        spec = _spec_of(whole, places) if count > 1 else find_spec(part)
        if spec is None:
            return False
        places = spec.submodule_search_locations
    return True


def _spec_of(name: str, places: Any) -> ModuleSpec | None:
    """Return the spec of a sub-module from the first finder that knows it, as an import would; nothing is imported.

    places: the folders of its package.
    """
    for finder in sys.meta_path:
        # By its full name, PathFinder would look into sys.modules for the package of a folder without an __init__.py.
        asked = name.rpartition(".")[2] if finder is PathFinder else name
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(asked, places)) is not None:
            found: ModuleSpec = spec
            return found
    return None


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
