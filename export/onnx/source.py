"""Open an ONNX file as the source and the reference of an artifact: ``with Original(path) as original``.

The file is not trusted. A child process (`hnas.export.onnx.reader`) reads, checks and runs it. Backends get the checked
copy that the child writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.disk import external_names
from hnas.export.device.dynamic import DynamicSize
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.records import JSON, decode
from hnas.export.device.signature import leaves
from hnas.export.graph.samples import PROBES, noise, to_sample
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.scratch import Scratch
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from hnas.export.graph.samples import Sample, SampleLike, Samples
    from hnas.export.graph.sizes import Asked

SUFFIX = ".onnx"
UNTOUCHED = "torch-level passes were not applied: an ONNX file goes straight to the backend"  # a note of artifacts
_SECONDS = 900.0  # timeout of reading, and of each run
_MEMORY_MB = 2048  # memory limit of the reader, besides eight times the bytes of the file and its weights


@dataclass(frozen=True)
class OnnxSource:
    """Describe a checked ONNX file, which backends compile. Its weights are in the file.

    path: the checked copy.
    name: the name of the original file.
    inputs, outputs: names, shapes and types.
    notes: origin of the file and changes in the copy, as JSON for an artifact's notes.
    dynamic: the size that may differ from that of the examples; None: all sizes are fixed.
    remarks: sentences on how the copy differs from the file, such as a float type that became float32.
    last: the type of the operator that makes the first output, such as "Softmax"; empty if there is none.
    edits: names of the edits by which int8 recovers accuracy; the converter applies them to its own copy.
    """

    path: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: Mapping[str, JSON]
    dynamic: DynamicSize | None = None
    remarks: tuple[str, ...] = ()
    last: str = ""
    edits: tuple[str, ...] = ()
    draft: ClassVar[bool] = False  # it is not only timed

    @property
    def signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and the outputs, like the property of a program."""
        return self.inputs, self.outputs

    @property
    def fired(self) -> tuple[tuple[str, int], ...]:
        """Return the edits, like the property of a program. An ONNX file has no passes."""
        return tuple((edit, 1) for edit in self.edits)


class Original(ChildProcess):
    """Open the ONNX file at ``path`` in a child process that runs it without optimisations. A context manager.

    path: the file.
    examples: example inputs, which fix dynamic sizes; None: seeded noise (integers are 0). A dict goes by name.
    shapes: shapes of that noise, which fix dynamic sizes; None: the shapes in the file.
    names: the name of the input of each of ``shapes``; None: they are in order.
    dynamic: the axis of each input whose size stays open, ``{"x": {0: "batch=1..32"}}``; None: all are fixed.

    The attribute ``source`` is the checked copy for backends; ``close`` deletes it. The attribute ``examples``
    holds the example inputs, given or random.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        Unavailable: onnx is not installed.
        ValueError: the file is not ONNX, truncated, has weights outside its folder, is quantised, draws random numbers,
            has dynamic sizes that nothing fixes, or holds NaN; or it does not run with another size of ``dynamic``.
        ExportError: the file does not run.

    Example: ``with Original(Path("net.onnx")) as original: outputs = original.outputs([original.examples])``.
    """

    def __init__(
        self,
        path: Path,
        examples: SampleLike | None = None,
        *,
        shapes: Sequence[tuple[int, ...]] | None = None,
        names: Sequence[str] | None = None,
        dynamic: Asked | None = None,
    ) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no ONNX file at {path}")
        if not find_spec("onnx"):
            raise Unavailable("onnx is not installed; pip install 'hnas[onnxruntime-convert]'")
        files = (path, *(path.parent / name for name in external_names(path)))
        memory = _MEMORY_MB + 8 * sum(file.stat().st_size for file in files if file.is_file()) // 2**20
        self._scratch = Scratch()
        super().__init__(
            f"the reader of {path.name}",
            "hnas.export.onnx.reader",
            environment={"TMPDIR": str(self._scratch.path)},
            timeout=_SECONDS,
            transport=local,
            memory_mb=memory,
        )
        request = {"path": str(path.absolute()), "copy": str(self._scratch.path / "model.onnx")}
        try:
            names = [name for name, _ in leaves(examples)] if isinstance(examples, Mapping) else names
            given = () if examples is None else to_sample(examples)
            opened = None if dynamic is None else [(str(name), _axes(axes)) for name, axes in dynamic.items()]
            more: dict[str, JSON] = {"shapes": shapes, "names": names, "dynamic": opened, "memory_mb": memory}
            reply, self.examples = self.ask({"do": "read", **request, **more}, given)
        except BaseException:
            self.close()
            raise
        self.source: OnnxSource = decode(OnnxSource, reply["source"], path.name)

    @property
    def name(self) -> str:
        """Return the name of the original file."""
        return self.source.name

    def close(self) -> None:
        """End the process and delete the copy; a second call does nothing."""
        super().close()
        self._scratch.close()

    def outputs(self, samples: Samples) -> list[Sample]:
        """Return the outputs of the file for each sample."""
        return [self.ask({"do": "run"}, sample)[1] for sample in samples]

    def suspicion(self, samples: Samples) -> str:
        """Return the end of an error message that names a NaN in the graph as the likely cause; empty if none."""
        with suppress(ExportError):  # the values of all nodes together may exceed the memory limit
            for sample in samples[:PROBES]:
                if found := self.ask({"do": "nan"}, sample)[0]["value"]:
                    return f"; {found} within {self.name} is NaN, which no quantiser can represent"
        return ""

    def probes(self) -> list[Sample]:
        """Return the examples, and up to PROBES random samples with the same mean and spread.

        A random sample is left out if the file fails on it, or returns an output that is not finite.
        """
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


def _axes(axes: Mapping[int, str]) -> list[tuple[JSON, str]]:
    """Return the axes of an input as JSON. An axis that is no integer becomes text, which the reader refuses."""
    return [(axis if type(axis) is int else repr(axis), str(text)) for axis, text in axes.items()]


def describe_origin(source: JSON) -> str:
    """Return the note "source" of an artifact as a phrase; empty if the artifact was not made from an ONNX file."""
    if not isinstance(source, dict) or source.get("format") != "onnx":
        return ""
    opsets = source.get("opset")
    opset = opsets.get("ai.onnx") if isinstance(opsets, dict) else None
    by = f", by {source['producer']}" if source.get("producer") else ""
    return f"made from {source.get('file')} (ONNX opset {opset}{by}); {UNTOUCHED}"
