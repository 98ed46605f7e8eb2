"""Run model.tflite in LiteRT (TensorFlow Lite) with XNNPACK on the CPU."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, Tuple

import numpy as np

from hnas.export.device.signature import NamedOutputs, name_outputs, read_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact
    from hnas.export.device.records import JSON

Sample = Tuple["NDArray[Any]", ...]


def missing() -> str | None:
    """Return None if a LiteRT runtime is installed, else a line that says how to install one."""
    if find_spec("ai_edge_litert") or find_spec("tflite_runtime"):
        return None
    line = "ai-edge-litert is not installed; pip install 'hnas[tflite]'"
    return line + " (on a device: ai-edge-litert or tflite-runtime alone) or choose another backend"


def versions() -> dict[str, str]:
    """Return the version of the installed runtime. ai-edge-litert takes precedence."""
    name = "ai-edge-litert" if find_spec("ai_edge_litert") else "tflite-runtime"
    return {name: version(name)}


def load(artifact: Artifact) -> TfLite:
    """Open ``artifact`` with XNNPACK and exactly its number of threads."""
    return TfLite(artifact)


class TfLite:
    """Implement `Runner` with a LiteRT interpreter. Inputs and outputs have the layout of the module."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._layout = artifact.notes.get("layout")
        self._interpreter = interpreter(artifact.model, artifact.threads)
        self._inputs = indices(self._interpreter.get_input_details())
        self._types = {each["index"]: each["dtype"] for each in self._interpreter.get_input_details()}
        self._outputs = indices(self._interpreter.get_output_details())

    def __call__(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> NamedOutputs:
        """Return the outputs for ``inputs``."""
        self.bind(*inputs, **named)()
        return name_outputs(self.artifact, [self._interpreter.get_tensor(index) for index in self._outputs])

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Return a function that runs ``inputs``, which are transposed and set once."""
        values = to_runtime(read_inputs(self.artifact, inputs, named), self._layout)
        if len(values) != len(self._inputs):
            raise ValueError(f"the model takes {len(self._inputs)} inputs, got {len(values)}")
        for index, value in zip(self._inputs, values):
            self._interpreter.set_tensor(index, value.astype(self._types[index], copy=False))
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke


def interpreter(model: Path, threads: int) -> Any:
    """Return the interpreter of ``model`` with allocated tensors. XNNPACK is its default delegate."""
    if find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    with _quiet_stderr("INFO: Created TensorFlow Lite XNNPACK delegate for CPU."):  # no option turns this line off
        opened = Interpreter(str(model), num_threads=threads)
        opened.allocate_tensors()
    return opened


def indices(details: Sequence[dict[str, Any]]) -> list[int]:
    """Return the tensor indices in the order of the module's arguments.

    Converters number the tensor names. Tensors of files without such numbers keep their order.
    """
    numbers = [re.search(r"_(\d+)(_output)?(:0)?$", detail["name"]) for detail in details]
    order = {detail["index"]: int(found[1]) for detail, found in zip(details, numbers) if found}
    indices = [int(detail["index"]) for detail in details]
    return sorted(indices, key=order.__getitem__) if len(order) == len(details) else indices


def to_runtime(sample: Sample, layout: JSON) -> Sample:
    """Return the sample in the layout of the flatbuffer.

    ``layout``: the artifact's note "layout": the permutation of each input, or None for an unchanged input.
    """
    permutations = layout if isinstance(layout, list) else [None] * len(sample)
    pairs = zip(sample, permutations)
    return tuple(np.ascontiguousarray(value.transpose(order)) if order else value for value, order in pairs)


@contextmanager
def _quiet_stderr(*lines: str) -> Iterator[None]:
    """Drop the given ``lines`` from stderr during the block. Other lines are written at the end of the block.

    Use it only for calls of milliseconds, because all output to stderr is delayed.
    """
    kept = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            buffer.seek(0)
            for line in buffer:
                if line.decode(errors="replace").strip() not in lines:
                    os.write(2, line)
