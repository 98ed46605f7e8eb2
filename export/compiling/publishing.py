"""Publish an artifact: write it to a temporary folder beside its target, and move it there when it is complete."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnas.export.device.artifact import RECORD


def free_path(path: Path) -> Path:
    """Return ``path`` as an absolute path. Raise ValueError if writing would overwrite anything but an artifact."""
    path = path.absolute()
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / RECORD).is_file()):
        raise ValueError(f"{path} exists and is not an artifact; choose an empty or new folder")
    return path


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``target``, and remove it after the block."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {target.parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Move ``folder`` to ``target``, on the same file system. Restore an older artifact at ``target`` on failure."""
    older = target.rename(folder.with_name(f"{folder.name}.older")) if target.exists() else None
    try:
        folder.rename(target)
    except OSError:
        if older is not None:
            older.rename(target)
        raise
