"""Receive artifacts on a device: the device's end of `hnas.export.remote.upload`. Interrupted uploads are resumed.

``python -m hnas.export.device.serve_files`` answers requests on stdin. The folder of an artifact is named by its
digest. Bytes are written to the same name with ``.part``, which is renamed when every file has its sha256. Two parents
that send the same artifact at once write the same bytes.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from hnas.export.device.artifact import check_files, digest_file, verify_files
from hnas.export.device.errors import ExportError
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve

KEPT = 2**30  # bytes of artifacts that are kept (an LRU cache)
SPARE = 2**24  # bytes that stay free on the disk: runtimes unpack and compile files


def cache_folder() -> Path:
    """Return the cache folder of hnas: $XDG_CACHE_HOME/hnas or ~/.cache/hnas. It may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hnas"


class Store:
    """Answer the requests of an upload: begin, write, finish."""

    def __init__(self) -> None:
        self._root = cache_folder() / "artifacts"

    def do_begin(self, header: Header, _: Arrays) -> Frame:
        """Prepare to receive the ``files`` [[name, bytes, sha256], ...] of the artifact ``digest``.

        The reply has:

        ``path``: the folder if all files are there already, else None.
        ``have``: the number of bytes of each file that arrived before; only if ``path`` is None.
        """
        files = {name: sha for name, _, sha in header["files"]}
        check_files(files)
        whole, part = self._folders(header)
        if whole.is_dir():
            try:
                verify_files(whole, files)
                os.utime(whole)
                return {"path": str(whole)}, ()
            except ValueError:  # the files were damaged
                shutil.rmtree(whole)
        with _disk(whole):
            part.mkdir(parents=True, exist_ok=True)
            os.utime(part)
            for name, size, sha in header["files"]:
                self._borrow(part / name, name, size, sha)
            have = [min(size, _size(part / name)) for name, size, _ in header["files"]]
            wanted = sum(size for _, size, _ in header["files"]) - sum(have)
            make_room(self._root, keep=part, bytes_wanted=wanted)
        return {"path": None, "have": have}, ()

    def do_write(self, header: Header, arrays: Arrays) -> Frame:
        """Write bytes (uint8) to the file ``name`` at ``offset``."""
        check_files({header["name"]: "0" * 64})
        _, part = self._folders(header)
        path = part / header["name"]
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                offset, left = int(header["offset"]), memoryview(arrays[0].tobytes())
                while left:
                    written = os.pwrite(descriptor, left, offset)
                    offset, left = offset + written, left[written:]
            finally:
                os.close(descriptor)
        return {}, ()

    def do_finish(self, header: Header, _: Arrays) -> Frame:
        """Check the sha256 of every file. If all are right, publish the folder and return it as ``path``.

        Files with a wrong sha256 are deleted, and the reply lists them as ``spoiled``.
        """
        whole, part = self._folders(header)
        files = {name: sha for name, _, sha in header["files"]}
        check_files(files)
        if not part.is_dir() and whole.is_dir():  # another parent finished it
            return {"path": str(whole), "spoiled": []}, ()
        spoiled = [name for name, sha in files.items() if digest_file(part, name) != sha]
        for name in spoiled:
            (part / name).unlink()
        if spoiled:
            return {"path": None, "spoiled": spoiled}, ()
        with _disk(whole):
            for name in files:
                _settle(part / name)
            part.rename(whole)
        return {"path": str(whole), "spoiled": []}, ()

    def _borrow(self, path: Path, name: str, size: int, sha: str) -> None:
        """Link or copy a file that another artifact on this device already has, such as the same model file."""
        for folder in () if path.exists() else self._root.iterdir():
            found = folder / name
            if found.is_file() and _size(found) == size and digest_file(folder, name) == sha:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(found, path)
                except OSError:  # Android forbids hard links
                    shutil.copyfile(str(found), str(path))
                return

    def _folders(self, header: Header) -> tuple[Path, Path]:
        digest = header["digest"]
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"digest is {digest!r}, expected a sha256")
        return self._root / digest, self._root / (digest + ".part")


def make_room(root: Path, *, keep: Path, bytes_wanted: int) -> None:
    """Delete the least recently used folders until the cache fits into ``KEPT`` and the disk has enough space.

    ``keep``: the folder that is never deleted.
    ``bytes_wanted``: bytes that are going to be written.

    Raises:
        ExportError: the disk does not have enough space.
    """
    older = sorted((f for f in root.iterdir() if f != keep), key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: sum(map(_size, folder.rglob("*"))) for folder in older}
    for folder in older:
        free = shutil.disk_usage(root).free - SPARE
        if sum(sizes.values()) + bytes_wanted <= KEPT and free >= bytes_wanted:
            return
        shutil.rmtree(folder, ignore_errors=True)
        del sizes[folder]
    free = shutil.disk_usage(root).free - SPARE
    if free < bytes_wanted:
        mend = "make room there and run it again; the upload resumes"
        raise ExportError(f"the disk at {root} has {_mb(max(0, free))} free, {_mb(bytes_wanted)} are needed; {mend}")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an ExportError that names ``path`` and says how to continue."""
    try:
        yield
    except OSError as error:
        where = f"cannot write {path}: {error.strerror or error}"
        raise ExportError(f"{where}; fix that and run it again; the upload resumes") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _settle(path: Path) -> None:
    """Flush a file to the disk: a published folder must survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    serve(dispatch(Store()))
