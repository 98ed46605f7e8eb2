"""Read and write artifacts: a folder with the model files of one runtime, and ``artifact.json`` that describes them.

``Artifact.read("net")``. An artifact may come from elsewhere, so every field and every file is checked when it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Iterable, Mapping, Tuple

from hnas.export.device.disk import LARGEST_MODEL, external_names, open_plain, plain_size
from hnas.export.device.records import JSON, check_version, decode, encode, read_json, write_json

SCHEMA = 1
RECORD = "artifact.json"
_BARE = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "tflite"}  # suffix of a model file -> its backend
LARGEST = 2**28  # values of a tensor: 1 GiB in float32
_MOST_THREADS = 1024
_LARGEST_FILES = 2**33  # bytes of all files of a record
_SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml", "tensorrt": ".onnx", "tflite": ".tflite"}
_SHA256 = re.compile("[0-9a-f]{64}")
_CHUNK = 2**20


@dataclass(frozen=True)
class TensorSpec:
    """Describe one input or output, in the layout of the module (NCHW for images).

    ``dtype``: the name of a numpy type, such as float32.

    Raises:
        ValueError: a size is negative, the tensor is too large, or the type is unknown.
    """

    name: str
    shape: Tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if any(size < 0 for size in self.shape):
            raise ValueError(f"shape is {list(self.shape)}, expected sizes of 0 or more")
        if prod(self.shape) > LARGEST:  # a reader allocates an array of it
            raise ValueError(f"shape is {str(list(self.shape))[:60]}, expected at most {LARGEST} values in all")
        if not re.fullmatch(r"(float|int|uint)(8|16|32|64)|bool", self.dtype):
            raise ValueError(f"dtype is {self.dtype!r}, expected one like float32, int64, bool")

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensor."""
        bits = int((re.findall(r"\d+", self.dtype) or ["8"])[0])
        return prod(self.shape) * bits // 8


@dataclass(frozen=True)
class Written:
    """Describe the files that a backend wrote. `hnas.export.backends.artifacts` makes an artifact from this record.

    ``files``: names of the model files. The first is the file that the runtime opens.
    ``versions``: the version of each package that affects the artifact or its speed, by package name.
    ``notes``: facts on how the files were made, for the notes of the artifact.
    """

    files: Tuple[str, ...]
    versions: Mapping[str, str]
    notes: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """Describe one compiled network and the files that it consists of.

    Example: ``Artifact.read("net").precision``.

    ``path``: the folder of the files.
    ``backend``: the name of the backend that made the files and of the runtime that opens them.
    ``precision``: "fp32", "fp16", "bf16", "int8" or "w8".
    ``device``: the name of the device profile that it was compiled for.
    ``threads``: the number of threads that the runtime uses.
    ``inputs``, ``outputs``: their names, shapes and types. Empty for a bare model file: only the runtime knows them.
    ``files``: the sha256 of each file, by its name relative to ``path``. The first is the file that the runtime opens.
    ``versions``: the version of each package that affects the artifact or its speed.
    ``notes``: how the artifact was made: passes, quantisation, verification, and notes of the backend.
    ``sizes``: the bytes of each file, which ``write`` fills in. Older artifacts do not state them.

    Raises:
        ValueError: ``backend``, ``threads``, ``files`` or ``sizes`` is not valid.
    """

    path: Path
    backend: str
    precision: str
    device: str
    threads: int
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    files: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, JSON] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.backend):  # a module of this name is imported
            raise ValueError(f"backend is {self.backend!r}, expected a name such as onnxruntime")
        check_threads(self.threads)
        if not self.files:
            raise ValueError("files is empty, expected the model file first")
        check_files(self.files, self.sizes)

    @property
    def model(self) -> Path:
        """Return the file that the runtime opens."""
        return self.path / next(iter(self.files))

    @property
    def source(self) -> Path:
        """Return the path that ``read`` takes to return this artifact: its folder, or the bare model file."""
        return self.model if self.notes.get("bare") is True else self.path

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over the names and hashes of the files, in sorted order."""
        lines = "".join(f"{name} {sha}\n" for name, sha in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Return the size of all files, in bytes."""
        return sum((self.path / name).stat().st_size for name in self.files)

    def write(self) -> None:
        """Write ``artifact.json`` beside the files.

        Raises:
            ValueError: a file is missing, or its hash differs from ``files``.
        """
        verify_files(self.path, self.files)
        record = encode(replace(self, sizes=measure_files(self.path, self.files)))
        del record["path"]  # the folder may move
        write_json(self.path / RECORD, {"schema": SCHEMA, **record})

    @classmethod
    def read(cls, path: Path | str) -> Artifact:
        """Return the artifact in the folder ``path``, after a check of its record, and of size and hash of each file.

        A bare .onnx, .xml or .tflite file is read as an fp32 artifact with one thread, for the backend of its suffix.

        Raises:
            FileNotFoundError: there is nothing at ``path``.
            ValueError: the record is not valid, a file does not have the recorded size or hash, or the runtime would
            open a file that is not in the record.
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
        verify_files(path, artifact.files, artifact.sizes)
        artifact._check_listed()
        return artifact

    def _check_listed(self) -> None:
        """Raise ValueError if the runtime would open a file that ``files`` does not list, with weights for example."""
        suffix = _SUFFIXES.get(self.backend, self.model.suffix)
        if self.model.suffix != suffix:  # a runtime chooses the format by the suffix
            raise ValueError(f"{self.model} is not a model file of {self.backend}, expected {suffix}")
        for name in _companions(self.model):
            if str(PurePosixPath(next(iter(self.files))).parent / name) not in self.files:
                raise ValueError(f"{self.path / RECORD} does not list {name[:60]!r}, which {self.model.name} needs")


def digest_files(folder: Path, *names: str) -> dict[str, str]:
    """Return the sha256 of each of the files ``names`` in ``folder``, in the given order."""
    check_files(dict.fromkeys(names, "0" * 64))
    return {name: digest_file(folder, name) for name in names}


def digest_file(folder: Path, name: str) -> str:
    """Return the sha256 of a file. Raise ValueError if it is missing, not plain, or a link out of ``folder``."""
    path = folder / name
    try:
        if folder.resolve(strict=True) not in path.resolve(strict=True).parents:
            raise ValueError(f"{path} is a link that leaves {folder}; copy the file into the folder")
        digest = hashlib.sha256()
        with open_plain(path) as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
        return digest.hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{path} cannot be read: {error}") from None


def measure_files(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the bytes of each of the files ``names``. Raise ValueError if one is missing or not plain."""
    try:
        return {name: plain_size(folder / name) for name in names}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing") from None
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None


def check_threads(threads: int) -> None:
    """Raise ValueError unless ``threads`` is a number of threads that a machine can have."""
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads is {str(threads)[:40]}, expected 1 to {_MOST_THREADS}")


def check_files(files: Mapping[str, str], sizes: Mapping[str, int] = MappingProxyType({})) -> None:
    """Raise ValueError unless every name stays inside its folder, and every hash and size is one.

    ``sizes``: the bytes of each file; empty: they are not stated.
    """
    for name, sha in files.items():
        check_name(name)
        if not _SHA256.fullmatch(sha):
            raise ValueError(f"files.{name} is {sha[:40]!r}, expected a sha256 of 64 hexadecimal digits")
    if sizes and (sizes.keys() != files.keys() or min(sizes.values()) < 0):
        raise ValueError("sizes does not have the bytes of each of the files, and of no other")
    if sum(sizes.values()) > _LARGEST_FILES:
        raise ValueError(f"sizes add up to more than {_LARGEST_FILES} bytes, the most that is read")


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a plain relative path with ``/`` that stays inside its folder."""
    plain = str(PurePosixPath(name)) == name and not PurePosixPath(name).is_absolute() and name.isprintable()
    if not plain or name == "." or ".." in name.split("/") or "\\" in name or ":" in name:
        raise ValueError(f"file name {name!r} is not a plain path inside the folder")


def verify_files(folder: Path, files: Mapping[str, str], sizes: Mapping[str, int] = MappingProxyType({})) -> None:
    """Raise ValueError for the first of ``files`` that is missing or does not have the recorded size or sha256.

    The sizes of all files are checked before the first is read. Without ``sizes``, a file of over 2 GiB is refused.
    """
    _check_sizes(folder, files, sizes)
    for name, sha in files.items():
        found = digest_file(folder, name)
        if found != sha:
            raise ValueError(f"{folder / name} was changed: its sha256 is {found[:12]}, the record says {sha[:12]}")


def _check_sizes(folder: Path, names: Iterable[str], sizes: Mapping[str, int]) -> None:
    for name, size in measure_files(folder, names).items():
        if size != sizes.get(name, size):
            raise ValueError(f"{folder / name} was changed: it has {size} bytes, the record says {sizes[name]}")
        if name not in sizes and size > LARGEST_MODEL:
            mend = "write it again with this version of hnas"
            raise ValueError(f"{folder / name} has {size} bytes, and no record states its size; {mend}")


def _companions(model: Path) -> tuple[str, ...]:
    """Return the names of the files that a runtime opens along with ``model``.

    OpenVINO goes by the content: it would read an ONNX file that is called model.xml, with its external data.
    """
    if model.suffix == ".onnx":
        return external_names(model)
    if model.suffix == ".xml":
        with open_plain(model) as file:
            if not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                raise ValueError(f"{model} is not the XML of an OpenVINO model")
    weights = model.with_suffix(".bin")
    return (weights.name,) if model.suffix == ".xml" and os.path.lexists(weights) else ()


def _bare(path: Path) -> Artifact:
    """Return the fp32 artifact of one model file, with the files of weights that it needs."""
    if path.suffix not in _BARE:
        raise ValueError(f"{path} is not a model file; known: {', '.join(_BARE)}, or a folder with {RECORD}")
    backend = _BARE[path.suffix]
    _check_sizes(path.parent, [path.name], {})
    names = (path.name, *_companions(path))
    check_files(dict.fromkeys(names, "0" * 64))
    _check_sizes(path.parent, names, {})
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
