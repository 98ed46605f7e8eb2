"""Read what ``--input``, ``--calibration`` and ``--dynamic`` of the command give: ``parse_inputs(["ids.npz"])``.

Text is checked without torch and numpy, which are imported where values are made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, is_zipfile

from hnas.files import check_plain
from hnas.units import parse_shape

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 2**32  # bytes of real inputs
_FILES = (".npz", ".npy", ".pt", ".pth")
_DYNAMIC = re.compile(r"(.+):(\d+)=(\w+(?:=\d+\.\.\d+)?)")


@dataclass(frozen=True)
class GivenInputs:
    """Hold the example inputs that a user gives: a file, values, or shapes of seeded noise.

    file: the file that holds them; None where it is not a file.
    values: nested tensors and arrays; None where the values are in the file, or shapes are given.
    shapes: the shapes in order, each with the name of its input; the name is empty where the order decides.
    """

    file: Path | None = None
    values: Any = None
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def load(self) -> Any:
        """Return the values, read from the file if there is one; None where shapes are given."""
        return self.values if self.file is None else read_file(self.file, "example inputs")

    def noise(self) -> Any:
        """Return seeded noise of the shapes: a tuple, or a nested dict where they have names.

        Raises:
            ValueError: the memory does not hold it.
        """
        drawn = [_noise(shape) for _, shape in self.shapes]
        names = [name for name, _ in self.shapes]
        return nest(dict(zip(names, drawn, strict=True))) if any(names) else tuple(drawn)


def parse_inputs(given: Sequence[str] | None) -> GivenInputs | None:
    """Return the inputs that ``--input`` gives; None without the flag. No file is read.

    1. A file: .npz or .pt with named arrays, .npy with one. Dotted names are nested: ``past.0.key``.
    2. Shapes in order: ``1x3x224x224``.
    3. Shapes by name: ``image=1x3x224x224``.

    Raises:
        ValueError: the text is none of these, or the forms are mixed.
        FileNotFoundError: there is no such file.
    """
    if not given:
        return None
    if len(given) == 1 and given[0].lower().endswith(_FILES):
        return GivenInputs(file=_existing(Path(given[0]), "example inputs"))
    pairs = [(name, parse_shape(shape)) for name, _, shape in (text.rpartition("=") for text in given)]
    names = [name for name, _ in pairs if name]
    if names and (len(names) < len(pairs) or len(set(names)) < len(names)):
        raise ValueError(f"--input {' '.join(given)!r} is not understood; give a name to every shape, or to none")
    return GivenInputs(shapes=tuple(pairs))


def parse_dynamic(given: Sequence[str] | None) -> dict[str, dict[int, str]] | None:
    """Return the option ``dynamic`` of `hnas.export.compile` that ``input:0=batch=1..32`` means; None without any.

    Raises:
        ValueError: the text is not understood.
    """
    if not given:
        return None
    found: dict[str, dict[int, str]] = {}
    for text in given:
        parts = _DYNAMIC.fullmatch(text)
        if parts is None:
            raise ValueError(f"--dynamic {text!r} is not understood; write INPUT:AXIS=SIZE or INPUT:AXIS=SIZE=1..32")
        found.setdefault(parts[1], {})[int(parts[2])] = parts[3]
    return found


def read_file(file: Path, purpose: str) -> Any:
    """Return the value in a file: an array, a nested dict of arrays, or what torch.save wrote.

    1. .npy: an array.
    2. .npz: a dict by name; a tuple in order where numpy.savez gave the names (arr_0, arr_1).
    3. .pt: tensors, and dicts, lists and tuples of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has pickled objects, is damaged, or is too large.
    """
    check_plain(_existing(file, purpose), _LARGEST)
    import numpy as np
    import torch

    try:
        if file.suffix.lower() in (".pt", ".pth"):
            if is_zipfile(file):  # a file of before torch 1.6 is no archive
                with ZipFile(file) as archive:
                    _require_room(archive)
            return torch.load(file, map_location="cpu", weights_only=True)
        with file.open("rb") as stream:
            return _arrays(np.load(stream, allow_pickle=False))
    except Exception as error:  # the decoder of a broken archive may raise any error
        # numpy's own message would advise to unpickle the file.
        mend = "write it with numpy.save, numpy.savez or torch.save, no objects"
        raise ValueError(f"{file} holds no plain arrays; {mend}") from error


def _existing(file: Path, purpose: str) -> Path:
    if not file.exists():
        raise FileNotFoundError(f"no {purpose} file {file}")
    return file


def _arrays(read: Any) -> Any:
    if not hasattr(read, "files"):
        return read
    _require_room(read.zip)
    names = list(read.files)
    if names == [f"arr_{index}" for index in range(len(names))]:
        return tuple(read[name] for name in names)
    return {name: read[name] for name in names}


def _require_room(archive: ZipFile) -> None:
    """Raise ValueError if the files of an archive are too large when they are unpacked."""
    if sum(each.file_size for each in archive.infolist()) > _LARGEST:
        raise ValueError("the arrays are too large")


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict of dotted names as nested dicts and lists: ``past.0.key`` is ``past[0]["key"]``."""
    found: dict[str, Any] = {}
    for name, value in named.items():
        *path, last = name.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"the inputs have both {part!r} and {name!r}")
        inner[last] = value
    return {name: _listed(value) for name, value in found.items()}


def _listed(value: Any) -> Any:
    """Return a dict whose keys are 0, 1, 2 as a list, at every level."""
    if not isinstance(value, dict):
        return value
    parts = [_listed(part) for part in value.values()]
    return parts if list(value) == [str(index) for index in range(len(parts))] else dict(zip(value, parts, strict=True))


def _noise(shape: tuple[int, ...]) -> Tensor:
    import torch

    try:
        return torch.randn(shape)
    except (RuntimeError, TypeError):  # TypeError: a size that is no 64-bit integer
        text = "x".join(map(str, shape))
        raise ValueError(f"--input {text!r} does not fit in memory; write a smaller shape") from None
