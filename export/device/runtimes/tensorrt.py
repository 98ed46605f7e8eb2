"""Build the TensorRT engine of model.onnx on the GPU of this machine, cache the engine, and run it.

An engine fits one GPU architecture and one TensorRT version, so it is built where it runs. TensorRT chooses tactics by
measurements, so several engines are built. The fastest is kept, and the spread is reported. The Python bindings come
with JetPack. Without the bindings, trtexec builds and runs the engine, but more slowly.
"""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import replace
from importlib.util import find_spec
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Callable, Mapping

import numpy as np

from hnas.export.device import cudart, gpu_providers, trtexec
from hnas.export.device.dynamic import DynamicSize, resized
from hnas.export.device.engine_types import (
    TYPES,
    is_typed,
    kept_single,
    model_for,
    nodes_of_layer,
    parse_version,
    type_flags,
)
from hnas.export.device.errors import ExportError, Unavailable, printable
from hnas.export.device.records import read_json
from hnas.export.device.serve_files import cache_folder
from hnas.export.device.signature import NamedOutputs, expected_outputs, name_outputs, read_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact, TensorSpec

ENGINE, SIDECAR, LAYERS = "model.engine", "model.engine.json", "layers.json"
BUILDS = 3
_ENOUGH = 180.0  # seconds of building after which no further engine is started
_WORKSPACE_MB = 1024
_CALLS = 30  # timed calls of each new engine


def missing() -> str | None:
    """Return None if TensorRT can run here, or ONNX Runtime on a GPU, else a line that says how to install it."""
    lacking = _lacking()
    return None if lacking is None or gpu_providers.gpu_provider() is not None else lacking


def _lacking() -> str | None:
    if not (find_spec("tensorrt") or trtexec.find_trtexec()):
        return "tensorrt is not installed; on a Jetson it comes with JetPack, or deploy with --host ssh://USER@DEVICE"
    if cudart.library() is None:
        return "libcudart is not installed; on a Jetson it comes with JetPack's CUDA"
    return None


def versions() -> dict[str, str]:
    """Return the version of tensorrt, if it is installed."""
    if _lacking() is None:
        return {"tensorrt": _here()["tensorrt"]}
    return {} if missing() is not None else gpu_providers.provider_versions()


def engine_folder(artifact: Artifact) -> Path:
    """Return the cache folder of the engine. A bundle cannot hold the engine, because it contains only listed files."""
    return cache_folder() / "engines" / artifact.digest


def load(artifact: Artifact) -> Any:
    """Open the engine of ``artifact``. Build the engine first if there is none.

    Without TensorRT, ONNX Runtime runs the file on the GPU, if it was built for one.

    Raises:
        Unavailable: TensorRT or libcudart is not installed.
        ExportError: the cached engine is for another model, GPU or TensorRT version, or cannot be built.
    """
    message = missing()
    if message is not None:
        raise Unavailable(message)
    if _lacking() is not None:
        return gpu_providers.ProviderRunner(artifact, engine_folder(artifact))
    folder, here = engine_folder(artifact), _here()
    if (folder / ENGINE).is_file():
        check_engine(read_json(folder / SIDECAR), {"model": artifact.digest, **here})
    else:
        _build_engines(artifact, here)
    report = {**read_json(folder / SIDECAR), "layers": json.loads((folder / LAYERS).read_text("utf-8"))}
    report[TYPES] = artifact.notes.get(TYPES, {})
    opened = _TensorRt if find_spec("tensorrt") else trtexec.TrtExec
    return opened(artifact, folder / ENGINE, report)


def check_engine(record: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """Raise ExportError unless the engine's sidecar names this model, this GPU and this version of TensorRT."""
    for key, name in (("sm", "SM"), ("tensorrt", "TensorRT"), ("model", "model")):
        if record.get(key) != here[key]:
            found, wanted = str(record.get(key))[:12], here[key][:12]
            raise ExportError(f"the engine is for {name} {found}, here is {wanted}; delete {ENGINE} and build it here")


def _build_engines(artifact: Artifact, here: Mapping[str, str]) -> None:
    """Build up to BUILDS engines and keep the fastest in ``engine_folder``, with a sidecar.

    The first build uses the timing cache of this GPU and TensorRT version; the others measure every tactic again. The
    sidecar records the model, the GPU architecture, the TensorRT version, and for each build its duration and median
    latency. TensorRT's layer information is written to the same folder.
    """
    folder = engine_folder(artifact)
    folder.mkdir(parents=True, exist_ok=True)
    kept = cache_folder() / "engines" / f"timing-{here['sm']}-{here['tensorrt']}.cache"
    with_bindings = find_spec("tensorrt") is not None
    begun, builds, best = monotonic(), [], float("inf")
    for index in range(BUILDS):
        if index and monotonic() - begun > _ENOUGH:
            break
        part, timing = folder / f".{ENGINE}.{os.getpid()}", kept if index == 0 else folder / f".timing.{os.getpid()}"
        timing.unlink() if index and timing.is_file() else None
        start = monotonic()
        layers = (_build if with_bindings else _build_by_tool)(artifact, part, timing, here)
        took = monotonic() - start
        median = _median(artifact, part)
        builds.append({"seconds": round(took, 2), "median_ms": median * 1e3})
        if median < best:
            best = median
            part.replace(folder / ENGINE)
            (folder / LAYERS).write_text(layers)
    record = {"model": artifact.digest, "precision": artifact.precision, **here, "builds": builds}
    record["by"] = "python" if with_bindings else "trtexec"
    (folder / SIDECAR).write_text(json.dumps(record, indent=1) + "\n")
    for left in folder.glob(".*"):
        left.unlink()


def _build(artifact: Artifact, engine: Path, timing: Path, here: Mapping[str, str]) -> str:
    """Build one engine with the Python bindings, and return TensorRT's layer information as JSON."""
    import tensorrt as trt

    logger, version = _Logger.create(trt), parse_version(here["tensorrt"])
    builder, model = trt.Builder(logger), model_for(artifact, version)
    typed = is_typed(artifact, version)
    network = builder.create_network(_creation_flags(trt, typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        raise ExportError(f"TensorRT {here['tensorrt']} refuses {model.name}: {_refusal(parser.get_error(0))}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_MB * 2**20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 would round the inputs of fp32 products
    if not typed:
        _set_precisions(trt, config, network, artifact)
    if shapes := trtexec.profile_shapes(artifact.inputs, DynamicSize.of(artifact)):
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():
            profile.set_shape(name, *three)
        config.add_optimization_profile(profile)
    config.set_timing_cache(config.create_timing_cache(timing.read_bytes() if timing.is_file() else b""), False)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise ExportError(f"TensorRT {here['tensorrt']} cannot build {model.name}: {logger.last}")
    engine.write_bytes(bytes(made))
    timing.write_bytes(bytes(config.get_timing_cache().serialize()))
    inspector = trt.Runtime(logger).deserialize_cuda_engine(engine.read_bytes()).create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _creation_flags(trt: Any, typed: bool) -> int:
    """Return the flags of a network: explicit batch, which TensorRT 10 implies, and strong typing, which 11 implies."""
    names = ("EXPLICIT_BATCH", *(("STRONGLY_TYPED",) if typed else ()))
    found = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in names]
    return sum(1 << int(flag) for flag in found if flag is not None)


def _set_precisions(trt: Any, config: Any, network: Any, artifact: Artifact) -> None:
    """Allow the precisions of the artifact, and hold the layers that it keeps in fp32: weak typing, TensorRT 8."""
    if artifact.precision == "fp32":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if artifact.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    single = set(kept_single(artifact))
    if single:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers if single else 0):
        layer = network.get_layer(index)
        # The parser makes several layers of some nodes; since 8.6 their metadata names the node.
        if not single.isdisjoint([layer.name, *nodes_of_layer(getattr(layer, "metadata", None))[:1]]):
            layer.precision = trt.float32


def _refusal(error: Any) -> str:
    """Return a parser's error in one line, with the operator and the name of its node where TensorRT tells them."""
    parts = [getattr(error, name, str)() for name in ("node_operator", "node_name")]
    where = " ".join(part for part in parts if isinstance(part, str) and part)
    return printable(" ".join((f"{where}: {error.desc()}" if where else str(error.desc())).split()))


def _build_by_tool(artifact: Artifact, engine: Path, timing: Path, here: Mapping[str, str]) -> str:
    layers, version = engine.with_name(f".{LAYERS}"), parse_version(here["tensorrt"])
    without_run = "--buildOnly" if version < (8, 6) else "--skipInference"
    how = [f"--memPoolSize=workspace:{_WORKSPACE_MB}", *type_flags(artifact, version), without_run]
    trtexec.build_engine(artifact, model_for(artifact, version), engine, timing, layers, how)
    return layers.read_text()


def _median(artifact: Artifact, engine: Path) -> float:
    """Return the median seconds of a call on zeros, to compare engines of one network."""
    inputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in artifact.inputs]
    if not find_spec("tensorrt"):
        return float(np.median(trtexec.TrtExec(artifact, engine, {}).times(inputs, _CALLS)))
    call, times = _TensorRt(artifact, engine, {}).bind(*inputs), []
    for _ in range(2 * _CALLS):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return float(np.median(times[_CALLS:]))


class _TensorRt:
    """Implement `Runner` with one execution context on one CUDA stream.

    ``report``: the engine's sidecar.
    ``copied``: the seconds that the last call spent on the copies to the GPU and back.
    """

    copied = 0.0

    def __init__(self, artifact: Artifact, engine: Path, report: Mapping[str, Any]) -> None:
        import tensorrt as trt

        self.artifact, self.report = artifact, report
        self._logger = _Logger.create(trt)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise ExportError(f"TensorRT cannot open {engine.name}: {self._logger.last}")
        self._context = self._engine.create_execution_context()
        self._stream, self._wait = cudart.stream()
        self._places: dict[str, int] = {}
        self._finalizer = weakref.finalize(self, _free, self._places)
        self._size = DynamicSize.of(artifact)
        for tensor in _largest(artifact, self._size):
            self._places[tensor.name] = cudart.allocate(_bytes(tensor))
            self._context.set_tensor_address(tensor.name, self._places[tensor.name])

    def __call__(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> NamedOutputs:
        """Return the outputs for ``inputs``."""
        values = read_inputs(self.artifact, inputs, named)
        self.copied = 0.0
        self.bind(*values)()
        outputs = []
        for tensor in expected_outputs(self.artifact, values):
            value = np.empty(tensor.shape, tensor.dtype)
            self._copy(value.ctypes.data, self._places[tensor.name], value.nbytes, cudart.TO_HOST)
            outputs.append(value)
        return name_outputs(self.artifact, outputs)

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Copy ``inputs`` to the GPU. Return a function that runs the engine on them and waits for the GPU."""
        for tensor, value in zip(self.artifact.inputs, read_inputs(self.artifact, inputs, named)):
            if self._size is not None:
                self._context.set_input_shape(tensor.name, value.shape)
            self._copy(self._places[tensor.name], value.ctypes.data, value.nbytes, cudart.TO_DEVICE)

        def call() -> None:
            if not self._context.execute_async_v3(self._stream):
                raise ExportError(f"TensorRT failed: {self._logger.last}")
            self._wait()

        return call

    def _copy(self, to: int, source: int, size: int, way: int) -> None:
        """Copy between this machine and the GPU, and add the time to ``copied``."""
        start = perf_counter()
        cudart.copy(to, source, size, way)
        self.copied += perf_counter() - start


class _Logger:
    """Make a logger for TensorRT that keeps the last error instead of printing."""

    @staticmethod
    def create(trt: Any) -> Any:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.last = "no reason given"

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.last = (message.splitlines() or [self.last])[0]

        return Logger()


def _largest(artifact: Artifact, size: DynamicSize | None) -> list[TensorSpec]:
    """Return the specs of the inputs and outputs at their largest size."""
    tensors = [*artifact.inputs, *artifact.outputs]
    if size is None or size.high is None:
        return tensors
    shapes = resized([tensor.shape for tensor in tensors], (*size.inputs, *size.outputs), size.high)
    return [replace(tensor, shape=shape) for tensor, shape in zip(tensors, shapes)]


def _bytes(tensor: TensorSpec) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize


def _free(places: dict[str, int]) -> None:
    for place in places.values():
        cudart.free(place)


def _here() -> dict[str, str]:
    """Return the GPU architecture and the TensorRT version of this machine. An engine needs the same two."""
    if find_spec("tensorrt"):
        import tensorrt

        version = str(tensorrt.__version__)
    else:
        version = trtexec.read_version(trtexec.run_trtexec("--help"))
    return {"sm": cudart.architecture(), "tensorrt": version}
