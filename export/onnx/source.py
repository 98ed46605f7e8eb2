"""An ONNX file as what an artifact is made from and held against; a process of its own reads, checks and runs it.

The file may be hostile: this process sees of it what `hnas.export.onnx.reader` says, and gives backends the checked
copy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hnas.export.device.artifact import Tensor
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.records import JSON, decode
from hnas.export.graph.samples import PROBES, noise
from hnas.export.remote.process import Process
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = tuple[NDArray[Any], ...]

SUFFIX = ".onnx"
UNTOUCHED = "torch-level passes were not applied: an ONNX file goes straight to the backend"
SECONDS = 900.0  # for reading, and for each run
_MEMORY_MB = 2048  # at the least; else half of the machine's


@dataclass(frozen=True)
class OnnxSource:
    """A checked ONNX file: inputs of fixed sizes, weights within it, no NaN among them.

    ``path`` is that of the checked copy, ``name`` that of the original. ``notes`` say where it came from and what was
    changed in the copy: plain JSON for an artifact's notes.
    """

    path: str
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    notes: Mapping[str, JSON]
    fired: ClassVar[tuple[tuple[str, int], ...]] = ()  # passes, as a program has them

    @property
    def signature(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The inputs and the outputs, as a program has them."""
        return self.inputs, self.outputs


class Original(Process):
    """The ONNX file at ``path``, open in a process that runs it as it was written; a context manager.

    ``examples`` are inputs that fit it: those given (they fix sizes that the file leaves open), else seeded noise of
    ``shapes``, else of the file's own (integers are 0). ``source`` is what backends take; it goes with the process.

    ValueError in one line for a file that is absent, no ONNX, truncated, not of one piece (weights outside of its
    folder), quantised already, random, of open sizes, or that holds NaN; ExportError where it does not run.
    """

    def __init__(
        self, path: Path, examples: Arrays | None = None, *, shapes: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no ONNX file at {path}")
        if not find_spec("onnx"):
            raise Unavailable("onnx is not installed; pip install 'hnas[onnxruntime-convert]'")
        self._folder = TemporaryDirectory(prefix="hnas-onnx-")
        memory = max(_MEMORY_MB, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**21)
        super().__init__(
            f"the reader of {path.name}",
            "hnas.export.onnx.reader",
            environment={},
            timeout=SECONDS,
            transport=local,
            memory_mb=memory,
        )
        request = {"path": str(path.absolute()), "copy": str(Path(self._folder.name) / "model.onnx")}
        try:
            reply, drawn = self.ask(
                {"do": "read", **request, "shapes": shapes, "memory_mb": memory}, () if examples is None else examples
            )
        except BaseException:
            self.close()
            raise
        self.source: OnnxSource = decode(OnnxSource, reply["source"], path.name)
        self.examples: Arrays = drawn if examples is None else examples

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.source.name

    def close(self) -> None:
        """End the process and remove the copy; calling twice is fine."""
        super().close()
        self._folder.cleanup()

    def outputs(self, samples: Sequence[Arrays]) -> list[Arrays]:
        """What the file itself says to each sample."""
        return [self.ask({"do": "run"}, sample)[1] for sample in samples]

    def suspicion(self, samples: Sequence[Arrays]) -> str:
        """Why an artifact may differ, as the end of a sentence: a value within the file is NaN; empty where none is."""
        with suppress(ExportError):  # all values at once may be more than fits
            for sample in samples[:PROBES]:
                if found := self.ask({"do": "nan"}, sample)[0]["value"]:
                    return f"; {found} within {self.name} is NaN, which no quantiser covers"
        return ""

    def probes(self) -> list[Arrays]:
        """The examples and random inputs like them, as far as the file runs and is finite on those."""
        probes = [self.examples]
        for seed in range(1, PROBES + 1):
            probe = noise(self.examples, seed)
            try:
                (outputs,) = self.outputs([probe])
            except ExportError:
                if not self.alive:
                    raise
                continue
            if all(np.isfinite(value).all() for value in outputs if value.dtype.kind == "f"):
                probes.append(probe)
        return probes


def made_from(source: JSON) -> str:
    """What an artifact's note "source" says, in a sentence; empty where there is none: it was made from torch."""
    if not isinstance(source, dict) or source.get("format") != "onnx":
        return ""
    opsets = source.get("opset")
    opset = opsets.get("ai.onnx") if isinstance(opsets, dict) else None
    by = f", by {source['producer']}" if source.get("producer") else ""
    return f"made from {source.get('file')} (ONNX opset {opset}{by}); {UNTOUCHED}"
