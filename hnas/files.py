"""Files that stay complete if the process is killed, and folders that one process locks.

A file is written under a temporary name and then renamed. ``write_json(Path("record.json"), {"steps": 100})``
"""

from __future__ import annotations

import fcntl
import glob
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"
_LARGEST_JSON = 2**24  # bytes
_LARGEST_TENSORS = 2**33  # bytes


def read_plain(file: Path, largest: int) -> bytes:
    """Return the content of a plain file. Anything else is refused before it is opened: opening a pipe can block.

    Raises:
        ValueError: it is no plain file, or it has more than ``largest`` bytes.
        OSError: it is missing or cannot be read.
    """
    check_plain(file, largest)
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        return stream.read(largest)


def check_plain(file: Path, largest: int) -> None:
    """Raise ValueError unless ``file`` is a plain file of at most ``largest`` bytes. It is not opened."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} is not a plain file")
    if found.st_size > largest:
        raise ValueError(f"{file} has {found.st_size} bytes, at most {largest} are read")


def parse_number(text: str) -> float:
    """Return the number of a JSON text. Raise ValueError if it is too large for a float."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the largest number")
    return value


def write_text(file: Path, text: str) -> None:
    """Write ``text``; after a crash ``file`` is unchanged or complete. No temporary file stays."""
    if file.exists() and not file.is_file() and not file.is_dir():  # a rename would replace /dev/null
        raise FileExistsError(f"{file} is a device or a pipe, and no file; choose another place")
    aside = _aside(file)
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _aside(file: Path) -> Path:
    """Return the temporary name of this process for ``file``. Remove those that killed processes left."""
    for left in file.parent.glob(f".{glob.escape(file.name)}.*"):
        pid = left.name.rpartition(".")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            left.unlink(missing_ok=True)
    return file.with_name(f".{file.name}.{os.getpid()}")


def write_json(file: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; after a crash ``file`` is unchanged or complete."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is no JSON object, is not plain, or has over 16 MiB.
    """
    try:
        value = json.loads(read_plain(file, _LARGEST_JSON).decode(), parse_float=parse_number)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except RecursionError:
        raise ValueError(f"{file} cannot be read as JSON: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} contains a JSON {type(value).__name__}, expected an object")
    return value


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous clones as safetensors; after a crash ``file`` is unchanged or complete."""
    from safetensors.torch import save_file

    aside = _aside(file)
    try:
        save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, aside, dict(metadata))
        aside.chmod(0o644)  # safetensors gives the owner alone access
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(
    file: Path, largest: int = _LARGEST_TENSORS, *, only_metadata: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file of at most ``largest`` bytes.

    only_metadata: read no tensors (False).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is malformed, incomplete, too large or not plain.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_plain(file, largest)
        with safe_open(file, framework="pt") as reader:
            names = () if only_metadata else reader.keys()  # the reader itself is not iterable
            tensors = {name: reader.get_tensor(name) for name in names}
            return tensors, dict(reader.metadata() or {})
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a complete safetensors file: {error}") from None


@contextmanager
def locked(folder: Path, advice: str = "choose another --out", *, left: bool = False) -> Iterator[None]:
    """Lock ``folder`` for this process until the block or the process ends. A missing folder is created.

    1. Another process has the lock: raise ValueError with the number of that process.
    2. The folder cannot be created or written: raise ValueError.
    3. The file system has no locks: continue without a lock.
    4. The folder was created here, or ``left``, and is empty at the end: remove it.

    advice: what a person may do about cases 1 and 2; the end of the message.
    left: a killed run left the folder (False).
    """
    given = folder.exists() and not left
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = _lock(folder / LOCK, advice)
    except OSError as error:  # case 2
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; {advice}") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before the lock is released; the next process creates a new file
        stream.close()
        if not given:  # case 4
            with suppress(OSError):
                folder.rmdir()


def _lock(file: Path, advice: str) -> IO[str]:
    """Lock ``file`` and write the number of this process into it. Raise ValueError if another process has the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        stream = os.fdopen(descriptor, "r+", encoding="utf-8")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # case 1
            with stream:
                who = stream.read(20).strip() or "unknown"
            raise ValueError(f"another run is using {file.parent} (process {who}); wait for it or {advice}") from None
        except OSError:  # case 3
            pass
        # If the previous process removed the file before the lock, this lock has no effect: try again.
        if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            return stream
        stream.close()
