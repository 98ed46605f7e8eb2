"""Publish an artifact: write it to a temporary folder beside its target, and move it there when it is complete."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnas.export.device.artifact import RECORD
from hnas.export.remote.scratch import Scratch

_OLDER = ".older"


def free_path(path: Path) -> Path:
    """Return ``path`` as an absolute path. Raise ValueError if writing would overwrite anything but an artifact."""
    path = path.absolute()
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / RECORD).is_file()):
        raise ValueError(f"{path} exists and is not an artifact; choose an empty or new folder")
    return path


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``target``, and remove it after the block.

    Folders that killed processes left beside ``target`` are removed first. A process that was killed while it replaced
    an artifact has left the older one in such a folder: the older one is restored.
    """

    def restore(left: Path) -> None:
        for older in left.rglob(f"{glob.escape(target.name)}{_OLDER}"):
            if not target.exists():
                older.rename(target)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(f".{target.name}.", target.parent, restore)
    except OSError as error:
        raise ValueError(f"cannot write to {target.parent}: {error.strerror}") from error
    with scratch as folder:
        yield folder


def publish(folder: Path, target: Path) -> None:
    """Move ``folder`` to ``target``, on the same file system. Restore an older artifact at ``target`` on failure."""
    older = target.rename(folder.with_name(folder.name + _OLDER)) if target.exists() else None
    try:
        folder.rename(target)
    except OSError:
        if older is not None:
            older.rename(target)
        raise
