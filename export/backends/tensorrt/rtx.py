"""Check an ONNX file with TensorRT-RTX: parse it, and build engines for several GPUs without running them.

Call ``check_with_rtx(model)``, or on the command line:

    python -m hnas.export.backends.tensorrt.rtx ARTIFACT|MODEL.onnx ... [--sm 86 ...]

No GPU is needed. TensorRT-RTX has TensorRT's parser and builder for PCs, and a Jetson's TensorRT is likely to refuse
the same files. A file that passes may still fail on a Jetson, because SM87 is not among the targets of TensorRT-RTX.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from hnas.export.device.artifact import Artifact
from hnas.export.device.engine_types import nodes_of_layer
from hnas.export.device.errors import ExportError, Unavailable, printable
from hnas.export.device.records import JSON, decode, encode

TARGETS = ("80", "86", "89", "120", "121")  # without SM75: it has no FP32 GEMM, so most fp32 files are refused
_MOVING = ("CAST", "CONSTANT", "SHUFFLE", "QUANTIZE", "DEQUANTIZE", "IDENTITY", "SLICE", "CONCATENATION", "GATHER")
_NEAREST = ("86", "121")  # to the GPUs of Orin and Thor; they check every export, the command checks all targets
_TIMEOUT = 600.0  # seconds for all targets of one file
_MODULE = "tensorrt_rtx_bindings"
_ROOT = str(Path(__file__).absolute().parents[4])  # the folder that hnas was imported from


@dataclass(frozen=True)
class RtxVerdict:
    """Hold the result for one file.

    parse: why the parser refused the file; empty if it accepted the file.
    built: duration of each build in seconds, by SM.
    refused: why the build failed, by SM.
    precisions: node -> precision in which the typed network computes it: f32, f16 or i8. Nodes that only move,
        quantise or cast data are left out.
    """

    version: str
    parse: str = ""
    built: Mapping[str, float] = field(default_factory=dict)  # seconds
    refused: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Return True if the file was parsed, and built for every target."""
        return not self.parse and not self.refused

    def line(self) -> str:
        """Return the verdict in one line."""
        name = f"TensorRT-RTX {self.version}"
        if self.parse:
            return f"refused by the parser of {name}: {self.parse}"
        built = f"parsed and built for {name} ({', '.join(f'SM{sm}' for sm in self.built)})" if self.built else ""
        refused = "; ".join(f"SM{sm} refused: {reason}" for sm, reason in self.refused.items())
        return "; ".join(filter(None, [built or f"parsed by {name}", refused]))


def missing() -> str | None:
    """Return None if TensorRT-RTX is installed, else one line that says how to install it."""
    return None if find_spec(_MODULE) else "TensorRT-RTX is not installed; pip install 'hnas[tensorrt-rtx]'"


def check_with_rtx(model: Path, targets: Sequence[str] = TARGETS) -> RtxVerdict:
    """Parse ``model`` and build it for each SM of ``targets``, in a process of its own.

    Raises:
        Unavailable: TensorRT-RTX is missing.
        ExportError: TensorRT-RTX failed, crashed, or did not end within 600 s.
        ValueError: a target is unknown.
    """
    lacking = missing()
    if lacking is not None:
        raise Unavailable(lacking)
    search = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": search}
    command = [sys.executable, "-P", "-m", "hnas.export.backends.tensorrt.rtx", "--child", str(model.resolve())]
    try:
        done = subprocess.run(
            [*command, "--sm", *targets], capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=environment
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"TensorRT-RTX did not build {model.name} in {_TIMEOUT:g} s") from None
    if done.returncode < 0:
        raise ExportError(f"TensorRT-RTX died with {signal.Signals(-done.returncode).name} on {model.name}")
    said = (done.stderr.strip() or "no reason given").splitlines()[-1][:200]
    if done.returncode == 2:
        raise ValueError(said)
    if done.returncode:
        raise ExportError(f"TensorRT-RTX failed on {model.name}: {said}")
    return decode(RtxVerdict, json.loads(done.stdout.splitlines()[-1]), "TensorRT-RTX's verdict")


def rtx_note(model: Path) -> dict[str, JSON]:
    """Return the entry for an artifact's build note: the verdict in one line, or {} without TensorRT-RTX."""
    if missing() is not None:
        return {}
    try:
        return {"tensorrt_rtx": check_with_rtx(model, _NEAREST).line()}
    except ExportError as error:  # a second opinion: a failure here does not fail the export
        return {"tensorrt_rtx": str(error)}


def _build_targets(model: Path, targets: Sequence[str]) -> RtxVerdict:
    """Run in the child process: parse the file, build it for every target, and drop the engines."""
    import tensorrt_rtx_bindings as trt

    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        return RtxVerdict(trt.__version__, "; ".join(dict.fromkeys(map(_parser_error, found))) or "no reason given")
    layers = [network.get_layer(index).name for index in range(network.num_layers)]
    built, refused = {}, {}
    for sm in targets:
        errors.clear()
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
        start = perf_counter()
        if builder.build_serialized_network(network, config) is None:
            refused[sm] = _reason(_telling(errors, layers))
        else:
            built[sm] = round(perf_counter() - start, 3)
    return RtxVerdict(trt.__version__, "", built, refused, _typed_layers(trt, network))


def _telling(errors: Sequence[str], layers: Collection[str]) -> str:
    """Return the first error that names a layer of the network, else the first error."""
    telling = (error for error in errors if named_in(error, layers))
    return next(telling, errors[0] if errors else "no reason given")


def named_in(text: str, names: Collection[str]) -> str:
    """Return the longest of ``names`` that occurs in ``text`` as a whole word, else ""."""
    inside = (name for name in names if name and name in text)
    return max((n for n in inside if re.search(rf"(?<![\w/]){re.escape(n)}(?![\w/])", text)), key=len, default="")


def _typed_layers(trt: Any, network: Any) -> dict[str, str]:
    """Return the precision of each node of the file that computes. A network of RTX is strongly typed.

    A layer that reads the output of a dequantiser computes in int8: the builder fuses the two, or quantises nothing.
    The parser makes several layers of some nodes, such as HardSwish. The metadata of a layer names its node. One layer
    in fp32 counts, and one in int8 counts more than an addition of a bias in fp16.
    """
    kinds = {trt.float32: "f32", trt.float16: "f16", trt.bfloat16: "bf16"}
    every = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised = {layer.get_output(0).name for layer in every if layer.type.name == "DEQUANTIZE"}
    found: dict[str, str] = {}
    for layer in every:
        ends = [layer.get_input(index) for index in range(layer.num_inputs)]
        first = next((end for end in ends if end is not None and end.dtype in kinds), None)
        if layer.type.name in _MOVING or first is None or layer.get_output(0).dtype not in kinds:
            continue
        layers = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
        own = "i8" if layer.type.name in layers and first.name in dequantised else kinds[first.dtype]
        node = _node_of(layer)
        found[node] = _joined(found.get(node, own), own)
    return found


def _joined(one: str, other: str) -> str:
    """Return the precision of a node that two layers compute."""
    return next((kind for kind in ("f32", "i8") if kind in (one, other)), other)


def _node_of(layer: Any) -> str:
    """Return the name of the node that the parser made a layer of."""
    return next(iter(nodes_of_layer(getattr(layer, "metadata", None))), str(layer.name))


def _parser_error(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}: " if error.node_name() else ""
    return where + _reason(error.desc())


def _reason(text: str) -> str:
    """Return NVIDIA's message without the positions in its source files."""
    text = re.sub(r"\[[\w./]+\.\w+:[^\]]*\]\s*|\s*In \w+ at \S+|\bI?\w+::\w+: ", "", " ".join(text.split()))
    return text.strip()[:240]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; print one line a file.

    Return 0 if all passed, 1 if one was refused, 2 for wrong use, 3 if TensorRT-RTX is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hnas.export.backends.tensorrt.rtx", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a folder with artifact.json, or an ONNX file"
    )
    parser.add_argument("--sm", nargs="+", default=TARGETS, metavar="SM", help=f"default: {' '.join(TARGETS)}")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    lacking = missing()
    if lacking is not None:
        _say(lacking, sys.stderr)
        return 3
    if options.child:
        import tensorrt_rtx_bindings as trt

        known = [name[2:] for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
        unknown = [sm for sm in options.sm if sm not in known]
        if unknown:
            parser.error(f"no target SM{unknown[0]}; TensorRT-RTX knows {', '.join(sorted(known, key=int))}")
        _say(json.dumps(encode(_build_targets(options.paths[0], options.sm))), sys.stdout)  # read by the parent
        return 0
    passed = True
    for path in options.paths:
        try:
            verdict = check_with_rtx(_model(path), options.sm)
        except (OSError, ValueError) as error:
            _say(f"{path}: {error}", sys.stderr)
            return 2
        except ExportError as error:
            verdict = RtxVerdict("", str(error))
        _say(f"{path}: {verdict.line()}", sys.stdout)
        passed = passed and verdict.passed
    return 0 if passed else 1


def _say(line: str, file: TextIO) -> None:
    """Print a line of the command. It may repeat names of nodes from untrusted files."""
    print(printable(line), file=file)


def _model(path: Path) -> Path:
    model = Artifact.read(path).model
    if model.suffix != ".onnx":
        raise ValueError("this is not an ONNX file; TensorRT's artifacts have one")
    return model


if __name__ == "__main__":
    sys.exit(main())
