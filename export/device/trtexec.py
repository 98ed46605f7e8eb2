"""Build, run and time a TensorRT engine with trtexec, for a device whose Python has no bindings.

Each run starts the tool again, which takes seconds: acceptable for verification and timing only. The files that it
exports are described in the TensorRT repository (samples/common/sampleReporting.cpp).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence, Tuple

import numpy as np

from hnas.export.device.dynamic import DynamicSize, resized
from hnas.export.device.engine_types import parse_version
from hnas.export.device.errors import ExportError, printable
from hnas.export.device.signature import NamedOutputs, expected_outputs, name_outputs, read_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact, TensorSpec

_USUAL = "/usr/src/tensorrt/bin"  # of JetPack and the Debian packages


def find_trtexec() -> str | None:
    """Return the path of trtexec, or None."""
    return shutil.which("trtexec") or shutil.which("trtexec", path=_USUAL)


def read_version(banner: str) -> str:
    """Return the version in the banner of trtexec: "8.5.2" for ``[TensorRT v8502]``, "10.3.0" for ``v100300``.

    Raises:
        ExportError: the banner states no version.
    """
    found = re.search(r"TensorRT v(\d{4,6})\b", banner) or re.search(r"TensorRT version: (\d+\.\d+\.\d+)", banner)
    if found is None:
        raise ExportError("trtexec does not say its version; expected a line with [TensorRT v...]")
    digits = found[1]
    if "." in digits:
        return digits
    parts = (digits[:-4], digits[-4:-2], digits[-2:]) if len(digits) > 4 else (digits[0], digits[1], digits[2:])
    return ".".join(str(int(part)) for part in parts)


def run_trtexec(*arguments: str) -> str:
    """Run trtexec and return its output. Raise ExportError with its first error line if it fails."""
    tool = find_trtexec()
    assert tool is not None
    done = subprocess.run([tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0 or "&&&& FAILED" in text:
        raise ExportError(f"trtexec failed: {printable(_first_error(text))[:240]}")
    return text


def _first_error(text: str) -> str:
    """Return the error of a log.

    1. The parser refuses a node: the operator, the name of the node and the reason, which stand in several lines:
       ``[E] [TRT] ...: While parsing node number 3 [Det -> "y"]:``, the node with its ``name:``, and
       ``[E] [TRT] ...: ERROR: ... In function ...:`` with the reason below.
    2. Any other error: the first line, ``[11/22/2026-10:00:00] [E] Error[4]: ...``.
    """
    node = re.search(r"While parsing node number \d+ \[([^\s\]]+)", text)
    rest = text[node.end() :] if node else ""
    reason = re.search(r"In function .*:\n\[\d+\] (.*(?:\n(?!\[\d\d/).*)*)", rest)
    if node and reason:  # case 1
        name = re.search(r'^name: "(.*)"', rest[: max(0, rest.find("--- End node ---"))], re.MULTILINE)
        where = f"{node[1]} {name[1]}" if name else node[1]
        return f"{where}: " + re.sub(r"^Invalid Node - \S+ (?=\S)", "", " ".join(reason[1].split()))
    found = re.search(r"^\[[^\]]*\] \[[EF]\] (.*)", text, re.MULTILINE)  # case 2
    return found[1].strip() if found else "no reason given"


def profile_shapes(inputs: Sequence[TensorSpec], size: DynamicSize | None) -> dict[str, list[Tuple[int, ...]]]:
    """Return the smallest, the usual and the largest shape of each input, by name; nothing without a dynamic size.

    The usual shape is that of the examples.
    """
    if size is None or size.high is None:
        return {}
    shapes = [tensor.shape for tensor in inputs]
    columns = zip(resized(shapes, size.inputs, size.low), shapes, resized(shapes, size.inputs, size.high))
    return {tensor.name: list(three) for tensor, three in zip(inputs, columns)}


def shape_flags(inputs: Sequence[TensorSpec], size: DynamicSize | None) -> list[str]:
    """Return the flags that describe the optimisation profile of an engine with a dynamic size."""
    shapes = profile_shapes(inputs, size)
    flags = [
        f"--{kind}Shapes=" + ",".join(f"{name}:{_by_x(three[index])}" for name, three in shapes.items())
        for index, kind in enumerate(("min", "opt", "max"))
    ]
    return flags if shapes else []


def _by_x(shape: Tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def build_engine(
    artifact: Artifact, model: Path, engine: Path, timing: Path, layers: Path, arguments: Sequence[str]
) -> None:
    """Build ``engine`` from the ONNX file ``model`` of ``artifact``.

    ``timing``: the timing cache, read and written.
    ``layers``: the file for the layer information.
    ``arguments``: more options of the tool.
    """
    files = [f"--onnx={model}", f"--saveEngine={engine}", f"--timingCacheFile={timing}", f"--exportLayerInfo={layers}"]
    shapes = shape_flags(artifact.inputs, DynamicSize.of(artifact))
    run_trtexec(*files, "--profilingVerbosity=detailed", *arguments, *shapes)


def read_gpu_times(text: str) -> list[float]:
    """Return the seconds of GPU time of each run in the text of ``--exportTimes``. Raise ExportError for other text."""
    return _spans(text, "compute")


def _read_copy_times(text: str) -> list[float]:
    """Return the seconds of the copies to the GPU and back of each run in the text of ``--exportTimes``.

    Raises:
        ExportError: the text is no such file.
    """
    return [there + back for there, back in zip(_spans(text, "h2d"), _spans(text, "d2h"))]


def _spans(text: str, name: str) -> list[float]:
    try:
        # The stamps of start and end have six digits too: after 10 s they are in steps of 0.1 ms.
        return [float(each[f"{name}Ms"]) * 1e-3 for each in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"these are not times of trtexec: {type(error).__name__} {error}") from None


def read_outputs(text: str, tensors: Sequence[TensorSpec]) -> tuple[NDArray[Any], ...]:
    """Return the outputs in the text of ``--exportOutput``, in the order of ``tensors``. Raise ExportError if none."""
    try:
        found = {each["name"]: each for each in json.loads(_finite(text))}
        return tuple(np.array(found[tensor.name]["values"], tensor.dtype).reshape(tensor.shape) for tensor in tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"these are not outputs of trtexec: {type(error).__name__} {error}") from None


def _finite(text: str) -> str:
    """Return ``text`` with nan and inf, as C++ writes them, replaced by NaN and Infinity, which json reads."""
    text = re.sub(r"(?<=[\s,\[])(-?)nan\b", "NaN", text)
    return re.sub(r"(?<=[\s,\[])(-?)inf\b", r"\1Infinity", text)


class TrtExec:
    """Implement `Runner` with trtexec: each call starts the tool. ``times`` measures by the tool's own clock."""

    def __init__(self, artifact: Artifact, engine: Path, report: dict[str, Any]) -> None:
        self.artifact, self.report, self._engine = artifact, report, engine

    def __call__(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> NamedOutputs:
        """Return the outputs for ``inputs``."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.json")
            values = read_inputs(self.artifact, inputs, named)
            self._run(Path(folder), values, f"--exportOutput={out}", "--iterations=1", "--duration=0", "--warmUp=0")
            return name_outputs(self.artifact, read_outputs(out.read_text(), expected_outputs(self.artifact, values)))

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Return a function that runs the tool once. Most of its wall time is the start; ``times`` measures the GPU."""
        return lambda: self(*inputs, **named)

    def times(self, inputs: Sequence[NDArray[Any]], runs: int) -> list[float]:
        """Return the seconds on the GPU of ``runs`` calls, by the tool's clock, after its warm-up of 200 ms."""
        return read_gpu_times(self._trace(inputs, runs))[-runs:]

    def part_times(self, inputs: Sequence[NDArray[Any]], runs: int) -> list[Tuple[float, float]]:
        """Return the seconds of the copies and on the GPU of ``runs`` calls, as ``times`` measures them."""
        # TensorRT 11 leaves the copies out unless it is asked for them.
        moving = parse_version(self.report["tensorrt"]) >= (11, 0)
        trace = self._trace(inputs, runs, *(["--includeDataTransfers"] if moving else []))
        return list(zip(_read_copy_times(trace), read_gpu_times(trace)))[-runs:]

    def _trace(self, inputs: Sequence[NDArray[Any]], runs: int, *more: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "times.json")
            values = read_inputs(self.artifact, inputs)
            self._run(Path(folder), values, f"--exportTimes={out}", f"--iterations={runs}", "--duration=0", *more)
            return out.read_text()

    def _run(self, folder: Path, inputs: Sequence[NDArray[Any]], *arguments: str) -> None:
        names, shapes = [], []
        for index, (tensor, value) in enumerate(zip(self.artifact.inputs, inputs)):
            (folder / f"{index}.bin").write_bytes(value.tobytes())
            names.append(f"{tensor.name}:{folder / f'{index}.bin'}")
            shapes.append(f"{tensor.name}:{_by_x(value.shape)}")
        if DynamicSize.of(self.artifact) is not None:
            arguments = (f"--shapes={','.join(shapes)}", *arguments)
        run_trtexec(f"--loadEngine={self._engine}", f"--loadInputs={','.join(names)}", *arguments)
