"""TensorRT: model.onnx in fp32, fp16 or explicit int8, and the engine that the device builds from it.

An engine fits one GPU architecture and one TensorRT version, so it is built where it runs. What travels is the ONNX
file: it is verified in ONNX Runtime, and its notes say how to build it and what it fits.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.artifact import Artifact, Tensor, digest_files
from export.errors import ExportError, Unavailable
from export.quantisation import QDQ, quantise_onnx, samples
from export.schema import JSON, read_json
from export.signature import describe, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.program import Program
    from hw_profiles import Device

precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
requires: tuple[str, ...] = ("tensorrt",)

MODEL, ENGINE, SIDECAR = "model.onnx", "model.engine", "model.engine.json"
OPSET = 17  # what TensorRT 8.5 to 10 parse; opset 20 needs TensorRT 10, that is JetPack 6.1
NEEDS = {"LayerNormalization": (8, 6)}  # operators of that opset which came later than TensorRT 8.5
FLAGS = {"fp32": "--noTF32", "fp16": "--fp16 --noTF32", "int8": "--int8 --fp16 --noTF32"}
RULE = "build the engine on the device that runs it; an engine of another SM or TensorRT version is refused"
# Symmetric s8 and no int32 biases: TensorRT has no other zero point than 0, and its parser takes no int32 dequantise.
POLICY = QDQ(operators=("Conv", "Gemm", "MatMul"), activations="s8", symmetric=True, bias=False)


def missing() -> str | None:
    """None where tensorrt is installed and can run here, else the line that says how to get it."""
    if find_spec("tensorrt") and find_spec("cuda"):
        return None
    if find_spec("tensorrt"):
        return "cuda-python is not installed; pip install cuda-python for the CUDA version of this device"
    return "tensorrt is not installed; on a Jetson it comes with JetPack; elsewhere hnas builds the ONNX that it reads"


def versions() -> dict[str, str]:
    """The version of tensorrt, where it is installed."""
    return {"tensorrt": _tensorrt().__version__} if missing() is None else {}


def compile(
    program: Program,
    path: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Sequence[tuple[NDArray[Any], ...]] | None,
) -> Artifact:
    """Write model.onnx in opset 17, float32 at its ends; needs no TensorRT. int8 takes ``calibration``.

    ExportError when the device's TensorRT is older than an operator of the graph.
    """
    if precision not in precisions:
        raise ValueError(f"tensorrt runs {', '.join(precisions)}, got {precision!r}")
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable("onnx and onnxscript are not installed; pip install 'hnas[tensorrt-convert]'")
    from export import onnx_file

    inputs, outputs = describe(program)
    notes: dict[str, JSON] = {"verify_with": "onnxruntime", "build": _build_note(precision, device)}
    if precision == "int8":
        data = samples(calibration, inputs)
        notes["quantisation"] = {**POLICY.to_json(), "samples": len(data)}
        onnx_file.write(program, path / "float.onnx", inputs, outputs, OPSET)
        quantise_onnx(path / "float.onnx", path / MODEL, data, POLICY)
        (path / "float.onnx").unlink()
    else:
        onnx_file.write(_half(program) if precision == "fp16" else program, path / MODEL, inputs, outputs, OPSET)
    _require(onnx_file.operators(path / MODEL), device.toolchain)
    artifact = Artifact(
        path=path,
        backend="tensorrt",
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(path, MODEL),
        versions={"torch": version("torch"), "onnx": version("onnx"), "onnxscript": version("onnxscript")},
        notes=notes,
    )
    artifact.write()
    return artifact


def build(artifact: Artifact, *, workspace_mb: int = 1024) -> Path:
    """Build the engine on the GPU at hand, with a sidecar of what it fits, in ``engine_folder``; the engine's path."""
    trt = _tensorrt()
    logger = _Logger.create(trt)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)  # gone in TensorRT 10: it is implied
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(artifact.model.read_bytes()):
        raise ExportError(
            f"TensorRT {trt.__version__} cannot parse {artifact.model.name}: {parser.get_error(0).desc()}"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb * 2**20)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    if artifact.precision in ("fp16", "int8"):
        config.set_flag(trt.BuilderFlag.FP16)
    if artifact.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"TensorRT {trt.__version__} cannot build {artifact.model.name}: {logger.last}")
    record = {"model": artifact.digest, "precision": artifact.precision, **_here(trt)}
    folder = engine_folder(artifact)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIDECAR).write_text(json.dumps(record, indent=1) + "\n")
    part = folder / f".{ENGINE}.{os.getpid()}"
    part.write_bytes(bytes(engine))
    return part.replace(folder / ENGINE)


def engine_folder(artifact: Artifact) -> Path:
    """Where this machine keeps the engine of ``artifact``: not beside it, as a bundle holds only what it lists."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hnas" / "engines" / artifact.digest


def load(artifact: Artifact) -> TensorRt:
    """Open the engine of ``artifact``, built now if there is none; ExportError for one that does not fit here."""
    trt = _tensorrt()
    path = engine_folder(artifact) / ENGINE
    if path.is_file():
        check_engine(read_json(path.with_name(SIDECAR)), {"model": artifact.digest, **_here(trt)})
    else:
        path = build(artifact)
    return TensorRt(artifact, path)


def check_engine(record: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """ExportError unless the engine's sidecar says that it is of this model, for this GPU and this TensorRT."""
    for key, name in (("sm", "SM"), ("tensorrt", "TensorRT"), ("model", "model")):
        if record.get(key) != here[key]:
            found, wanted = str(record.get(key))[:12], here[key][:12]
            raise ExportError(f"the engine is for {name} {found}, here is {wanted}; delete {ENGINE} and build it here")


class TensorRt:
    """A Runner: one execution context on one CUDA stream; ``bind`` times the kernels, not the copies."""

    def __init__(self, artifact: Artifact, engine: Path) -> None:
        from cuda.bindings import runtime as cuda

        trt = _tensorrt()
        self.artifact = artifact
        self._cuda = cuda
        self._logger = _Logger.create(trt)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise ExportError(f"TensorRT cannot open {engine.name}: {self._logger.last}")
        self._context = self._engine.create_execution_context()
        self._stream = _cuda(cuda.cudaStreamCreate())
        self._places = {t.name: self._allocate(t) for t in (*artifact.inputs, *artifact.outputs)}
        for name, (place, _) in self._places.items():
            self._context.set_tensor_address(name, int(place))

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The outputs for ``inputs``."""
        self.bind(*inputs)()
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        outputs = []
        for tensor in self.artifact.outputs:
            value = np.empty(tensor.shape, tensor.dtype)
            place, size = self._places[tensor.name]
            _cuda(self._cuda.cudaMemcpy(value.ctypes.data, place, size, kind))
            outputs.append(value)
        return tuple(outputs)

    def bind(self, *inputs: NDArray[Any]) -> Callable[[], object]:
        """A call on ``inputs``, which are copied to the device once; it returns when the GPU is done."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        for tensor, value in zip(self.artifact.inputs, fit(inputs, self.artifact.inputs), strict=True):
            place, size = self._places[tensor.name]
            _cuda(self._cuda.cudaMemcpy(place, value.ctypes.data, size, kind))

        def call() -> None:
            if not self._context.execute_async_v3(self._stream):
                raise ExportError(f"TensorRT failed: {self._logger.last}")
            _cuda(self._cuda.cudaStreamSynchronize(self._stream))

        return call

    def _allocate(self, tensor: Tensor) -> tuple[int, int]:
        size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        return _cuda(self._cuda.cudaMalloc(size)), size


class _Logger:
    """TensorRT's logger, which keeps the last error for our one line instead of printing pages."""

    @staticmethod
    def create(trt: Any) -> Any:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.last = "no reason given"

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.last = message.splitlines()[0]

        return Logger()


def _cuda(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call; ExportError when it failed."""
    code, *values = result
    if int(code) != 0:
        raise ExportError(f"CUDA failed: {code}")
    return values[0] if values else None


def _tensorrt() -> Any:
    message = missing()
    if message is not None:
        raise Unavailable(message)
    import tensorrt

    return tensorrt


def _here(trt: Any) -> dict[str, str]:
    """The GPU architecture and TensorRT version of this machine: what an engine is tied to."""
    from cuda.bindings import runtime as cuda

    kinds = cuda.cudaDeviceAttr
    major = _cuda(cuda.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMajor, 0))
    minor = _cuda(cuda.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMinor, 0))
    return {"sm": f"{major}{minor}", "tensorrt": str(trt.__version__)}


def _build_note(precision: str, device: Device) -> dict[str, JSON]:
    """How the device builds its engine, and the versions it fits, from the device's profile."""
    known = {name: str(device.toolchain[name]) for name in ("JetPack", "TensorRT") if name in device.toolchain}
    return {
        "command": f"trtexec --onnx={MODEL} --saveEngine={ENGINE} {FLAGS[precision]}",
        "opset": OPSET,
        "compute_capability": device.compute_capability,
        "rule": RULE,
        **known,
    }


def _require(operators: Mapping[str, int], toolchain: Mapping[str, str]) -> None:
    """ExportError when the newest TensorRT of the device is older than one of ``operators``."""
    versions = [tuple(map(int, found)) for found in re.findall(r"(\d+)\.(\d+)", str(toolchain.get("TensorRT", "")))]
    for name, since in NEEDS.items():
        if versions and name in operators and max(versions) < since:
            wanted, newest = ".".join(map(str, since)), ".".join(map(str, max(versions)))
            raise ExportError(f"{name} needs TensorRT {wanted}, the device has {newest}; choose a net without it")


def _half(program: Program) -> Program:
    """The program in fp16 between its ends; ExportError when a weight is out of fp16's range."""
    import torch
    from torch import fx
    from torch.fx.node import map_aggregate

    from export.program import rebuild

    aten, half, single = torch.ops.aten, torch.float16, torch.float32
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in program.module.graph.nodes:
        if node.op == "output":
            (found,) = node.args
            values = [nodes[value] for value in (found if isinstance(found, tuple | list) else [found])]
            ends = [graph.call_function(aten.to.dtype, (value, single)) for value in values]
            graph.output(tuple(ends) if isinstance(found, tuple | list) else ends[0])
            continue
        nodes[node] = copy = graph.node_copy(node, lambda value: nodes[value])
        copy.args = map_aggregate(copy.args, lambda value: half if value is single else value)
        copy.kwargs = map_aggregate(copy.kwargs, lambda value: half if value is single else value)
        if node.op == "placeholder" and node.meta["val"].dtype == single:
            nodes[node] = graph.call_function(aten.to.dtype, (copy, half))
    module = fx.GraphModule(dict(program.module.state_dict()), graph)
    module = rebuild(module, graph).half()
    for name, value in module.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ExportError(f"weight {name} is out of the range of fp16; choose fp32 or int8")
    return replace(program, module=module)
