"""Temporary folders. What a killed process left is removed by the next process that makes such a folder.

``with Scratch() as folder: ...``
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PREFIX = "hnas-"
_LOCK = ".lock"


class Scratch:
    """Make a temporary folder, which ``close``, the end of the block or the end of the process removes.

    Example: ``with Scratch() as folder: (folder / "a").write_text("")``.

    ``prefix``: the start of the folder's name. Before the new folder is made, folders of this user with the same start
    are removed if the process that made them has ended. A folder without a lock is never removed.
    ``parent``: the folder to make it in. Default: the temporary folder of the system, see `tempfile.gettempdir`.
    ``rescue``: called with each left folder before it is removed.

    The lock is a file that the process keeps locked; the system releases it when the process ends, however it ends.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self, prefix: str = PREFIX, parent: Path | None = None, rescue: Callable[[Path], object] = lambda _: None
    ) -> None:
        place = Path(tempfile.gettempdir()) if parent is None else parent
        for left in place.glob(f"{glob.escape(prefix)}*"):
            if "." not in left.name[len(prefix) :]:  # else it belongs to a longer prefix
                with suppress(OSError):
                    _remove_dead(left, rescue)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        part = self.path / f"{_LOCK}.part"
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._finalizer = weakref.finalize(self, _remove, self.path, descriptor)
        with suppress(OSError):  # a file system without locks: nobody can remove the folder after a kill
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The name follows the lock, so that no other process takes the folder for a left one.
            part.rename(self.path / _LOCK)

    def close(self) -> None:
        """Remove the folder. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove(folder: Path, descriptor: int) -> None:
    """Remove the folder, and then release its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _remove_dead(folder: Path, rescue: Callable[[Path], object]) -> None:
    """Remove a folder that ``Scratch`` made for this user, if its process has ended."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return
    descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(descriptor) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # the process is alive, or the file system has no locks
            return
        rescue(folder)
        shutil.rmtree(folder, ignore_errors=True)
