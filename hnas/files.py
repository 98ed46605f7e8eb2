"""Files that a kill at any moment leaves whole: written aside, then renamed; and folders that one process holds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"
SCRATCH = "hnas-"  # what the names of our folders in $TMPDIR begin with


def write_text(file: Path, text: str) -> None:
    """Write ``text`` so that ``file`` is either as before or complete; nothing is left beside it."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; one line says what is wrong with it otherwise."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except RecursionError:
        raise ValueError(f"{file} cannot be read as JSON: nested too deeply") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous clones as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, aside, dict(metadata))
        aside.chmod(0o644)  # safetensors writes for its owner alone
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file; one line says what is wrong with it otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118  # it does not iterate
            return tensors, dict(reader.metadata() or {})
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made where it is missing, for this process alone until the block or the process ends.

    1. Another process holds it: ValueError in one line that names that process.
    2. It cannot be made or written: ValueError in one line.
    3. Its file system knows no locks: nothing is held.
    4. It is empty in the end: it goes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = _lock(folder / LOCK)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is let go: a later one makes its own
        stream.close()
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in $TMPDIR that goes with the block; what killed processes of this user left there goes first."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):
            _remove_dead(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as name, _lock(Path(name, f"{LOCK}.part")):
        # The lock appears under its name when it is held already: nobody takes this folder for a dead one.
        Path(name, f"{LOCK}.part").rename(Path(name, LOCK))
        yield Path(name)


def _lock(file: Path) -> IO[str]:
    """``file``, locked and with the number of this process in it; ValueError where another process has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        stream = os.fdopen(descriptor, "r+", encoding="utf-8")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stream:
                who = stream.read(20).strip() or "unknown"
            raise ValueError(
                f"another run is at work in {file.parent} (process {who}); wait for it or choose another --out"
            ) from None
        except OSError:  # no locks here: as if it were alone
            pass
        # The one before may have removed the file between the opening and the lock: then this lock holds nothing.
        if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            return stream
        stream.close()


def _remove_dead(folder: Path) -> None:
    """Remove a folder that ``scratch`` made for this user in a process that has died."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return
    with (folder / LOCK).open("r") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # alive, or nobody can tell
            return
        shutil.rmtree(folder, ignore_errors=True)
