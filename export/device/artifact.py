"""The artifact: a folder with the model file(s) of one runtime and ``artifact.json``, which says what they are.

It is what a backend writes, what a bundle carries and what a worker opens, so reading trusts nothing in it.
"""

from __future__ import annotations

import hashlib
import re
import stat
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath
from typing import Mapping, Tuple

from hnas.export.device.records import JSON, check_version, decode, encode, read_json, write_json

SCHEMA = 1
RECORD = "artifact.json"
_BARE = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "tflite"}  # suffix of a model file -> its backend
LARGEST = 2**28  # values of a tensor: 1 GiB of float32
_SHA256 = re.compile("[0-9a-f]{64}")
_CHUNK = 2**20


@dataclass(frozen=True)
class Tensor:
    """One input or output in the module's own layout (NCHW for images); ``dtype`` in numpy's words."""

    name: str
    shape: Tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if any(size < 0 for size in self.shape):
            raise ValueError(f"shape is {list(self.shape)}, expected sizes from 0")
        if prod(self.shape) > LARGEST:  # somebody will make an array of it
            raise ValueError(f"shape is {str(list(self.shape))[:60]}, expected at most {LARGEST} values in all")
        if not re.fullmatch(r"(float|int|uint)(8|16|32|64)|bool", self.dtype):
            raise ValueError(f"dtype is {self.dtype!r}, expected one like float32, int64, bool")


@dataclass(frozen=True)
class Artifact:
    """One compiled network: where it lies, what runs it, at which precision, and the hash of each of its files.

    ``files`` maps names relative to ``path`` to sha256; the first is the one that the runtime opens. ``inputs`` and
    ``outputs`` are empty for a bare model file: only its runtime knows them.
    """

    path: Path
    backend: str
    precision: str
    device: str
    threads: int
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    files: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.backend):  # it is imported by this name
            raise ValueError(f"backend is {self.backend!r}, expected a name such as onnxruntime")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, expected 1 or more")
        check_files(self.files)
        if not self.files:
            raise ValueError("files is empty, expected the model file first")

    @property
    def model(self) -> Path:
        """The file that the runtime opens."""
        return self.path / next(iter(self.files))

    @property
    def source(self) -> Path:
        """What ``read`` takes to give this artifact again: its folder, or the bare model file."""
        return self.model if self.notes.get("bare") is True else self.path

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and hashes of the files, whatever their order."""
        lines = "".join(f"{name} {sha}\n" for name, sha in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of the model files together."""
        return sum((self.path / name).stat().st_size for name in self.files)

    def write(self) -> None:
        """Write ``artifact.json`` next to the model files; every file must be there with its hash."""
        verify_files(self.path, self.files)
        record = encode(self)
        del record["path"]  # the folder may move
        write_json(self.path / RECORD, {"schema": SCHEMA, **record})

    @classmethod
    def read(cls, path: Path | str) -> Artifact:
        """The artifact in the folder ``path``, its record and every byte of its files checked.

        A bare .onnx, .xml or .tflite file is one, too: of the backend that reads it, pinned to fp32 and one thread.
        FileNotFoundError if nothing is there; ValueError in one line for anything wrong.
        """
        path = Path(path)
        if path.is_file():
            return _bare(path)
        if not path.is_dir():
            raise FileNotFoundError(f"no artifact at {path}; expected a folder with {RECORD} or a model file")
        value = read_json(path / RECORD)
        where = str(path / RECORD)
        check_version(value, where, SCHEMA)
        artifact = decode(cls, value, where, path=path)
        verify_files(path, artifact.files)
        return artifact


def digest_files(folder: Path, *names: str) -> dict[str, str]:
    """The sha256 of each of the files ``names`` in ``folder``, in the order given: what ``Artifact.files`` wants."""
    check_files(dict.fromkeys(names, "0" * 64))
    return {name: digest_file(folder, name) for name in names}


def digest_file(folder: Path, name: str) -> str:
    """The sha256 of the plain file ``name`` in ``folder``; ValueError if it is missing, special, or a link out."""
    path = folder / name
    try:
        if folder.resolve(strict=True) not in path.resolve(strict=True).parents:
            raise ValueError(f"{path} is a link that leaves {folder}; copy the file into the folder")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would hang the reader
            raise ValueError(f"{path} is not a plain file")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
        return digest.hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{path} cannot be read: {error}") from None


def check_files(files: Mapping[str, str]) -> None:
    """ValueError unless every name stays inside its folder and every value is a sha256."""
    for name, sha in files.items():
        check_name(name)
        if not _SHA256.fullmatch(sha):
            raise ValueError(f"files.{name} is {sha[:40]!r}, expected a sha256 of 64 hexadecimal digits")


def check_name(name: str) -> None:
    """ValueError unless ``name`` is a plain relative path with ``/`` that cannot leave its folder."""
    plain = str(PurePosixPath(name)) == name and not PurePosixPath(name).is_absolute() and name.isprintable()
    if not plain or name == "." or ".." in name.split("/") or "\\" in name or ":" in name:
        raise ValueError(f"file name {name!r} is not a plain path inside the folder")


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """ValueError that names the first of ``files`` that is missing or has another sha256 than stated."""
    for name, sha in files.items():
        found = digest_file(folder, name)
        if found != sha:
            raise ValueError(f"{folder / name} was changed: its sha256 is {found[:12]}, the record says {sha[:12]}")


def _bare(path: Path) -> Artifact:
    """The fp32 artifact of one model file; OpenVINO's weights beside it belong to it."""
    if path.suffix not in _BARE:
        raise ValueError(f"{path} is not a model file; known: {', '.join(_BARE)}, or a folder with {RECORD}")
    backend = _BARE[path.suffix]
    names = [path.name]
    if path.suffix == ".xml" and path.with_suffix(".bin").is_file():
        names.append(path.with_suffix(".bin").name)
    return Artifact(
        path=path.parent,
        backend=backend,
        precision="fp32",
        device=f"{backend}-cpu",
        threads=1,
        inputs=(),
        outputs=(),
        files=digest_files(path.parent, *names),
        notes={"bare": True},
    )
