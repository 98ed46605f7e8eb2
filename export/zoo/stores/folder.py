"""A store that is a folder with one sub-folder for each bundle: ``connect("/srv/zoo", ())``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hnas.export.bundle.card import MANIFEST
from hnas.export.device.disk import open_plain
from hnas.export.device.errors import Unavailable
from hnas.export.remote.scratch import Scratch
from hnas.export.zoo.arrival import Incoming, Untrusted


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        if not self._root.is_dir():
            raise Unavailable(f"no store at {self._root}: there is no such folder")
        return sorted(each.parent.name for each in self._root.glob(f"*/{MANIFEST}") if each.parent.name[0] != ".")

    def open(self, name: str, file: str) -> Incoming:
        path = self._root / name / file
        for each in (path, *path.parents[: len(Path(name, file).parts) - 1]):
            if each.is_symlink():
                raise Untrusted(f"{each} is a link")
        if not path.exists():
            raise FileNotFoundError(f"{self._root} has no {name}/{file}")
        try:
            return cast("Incoming", open_plain(path))
        except (ValueError, OSError) as error:
            raise Untrusted(str(error)) from None

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)

            def restore(left: Path) -> None:  # a process was killed between the two renames
                if (left / "old").exists() and not (self._root / name).exists():
                    (left / "old").rename(self._root / name)

            with Scratch(f".{name}.", self._root, restore) as scratch:
                for file in files:
                    (scratch / "new" / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / file, scratch / "new" / file)
                if (self._root / name).exists():
                    (self._root / name).rename(scratch / "old")
                (scratch / "new").rename(self._root / name)
        except OSError as error:
            raise Unavailable(f"cannot write to {self._root}: {error.strerror or error}") from None


def connect(place: str, _hosts: Sequence[str]) -> _Folder:
    """Return the store in the folder ``place``, which the first bundle creates."""
    return _Folder(Path(place))
