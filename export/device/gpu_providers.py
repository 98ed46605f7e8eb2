"""Run model.onnx on an NVIDIA GPU through ONNX Runtime's providers, where TensorRT itself is not installed.

``ProviderRunner(artifact, cache_folder)`` takes TensorRT's provider, or CUDA's if there is none. Nothing falls back to
the CPU.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable, Tuple

from hnas.export.device.errors import ExportError, one_line
from hnas.export.device.onnx_session import SessionRunner
from hnas.export.device.signature import read_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

TENSORRT, CUDA = "TensorrtExecutionProvider", "CUDAExecutionProvider"
_RELU = bytes.fromhex(  # an ONNX file of one Relu in opset 14, from x [1] to y [1]
    "08073a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100e"
)


def gpu_provider() -> str | None:
    """Return the best provider for a GPU that starts here, or None.

    ONNX Runtime lists the providers that it was built with, also where their libraries are missing: libnvinfer for
    TensorRT, CUDA and cuDNN for both.
    """
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    there = onnxruntime.get_available_providers()
    return next((name for name in (TENSORRT, CUDA) if name in there and _starts(name)), None)


@lru_cache(maxsize=None)
def _starts(name: str) -> bool:
    """Return whether a session of one node opens with a provider. ONNX Runtime only warns, and takes the next one."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        given = ort.InferenceSession(_RELU, options, providers=[name]).get_providers()
    except Exception:  # noqa: BLE001 - ONNX Runtime's errors have no common type
        return False
    return bool(given) and given[0] == name


def provider_versions() -> dict[str, str]:
    """Return the version of ONNX Runtime and the name of its provider."""
    import onnxruntime

    return {"onnxruntime": str(onnxruntime.__version__), "provider": str(gpu_provider())}


class ProviderRunner(SessionRunner):
    """Implement `Runner` with a session on the GPU. ``bind`` keeps inputs and outputs in the GPU's memory.

    Raises:
        ExportError: the provider does not take the whole network, or does not compute int8.
    """

    def __init__(self, artifact: Artifact, cache: Path) -> None:
        import onnxruntime as ort

        name = gpu_provider()
        assert name is not None
        if artifact.precision == "int8" and name != TENSORRT:
            raise ExportError(f"{name} computes quantised layers in float; int8 needs TensorRT: pip install tensorrt")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        cache.mkdir(parents=True, exist_ok=True)
        try:
            session = ort.InferenceSession(
                str(artifact.model), options, providers=[_provider_options(name, artifact.precision, cache)]
            )
        except Exception as error:  # providers raise errors of many types
            raise ExportError(f"{name} does not take the whole network: {one_line(error)}") from error
        given = session.get_providers()
        if not given or given[0] != name:  # ONNX Runtime only warns where CUDA's libraries are missing
            raise ExportError(f"{name} does not start here, ONNX Runtime would use {given[0] if given else 'nothing'}")
        super().__init__(artifact, session)
        self.report = {"by": f"onnxruntime {name}"}

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Copy ``inputs`` to the GPU. Return a function that runs the network on them and waits for the GPU."""
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, value in zip(self._inputs, read_inputs(self.artifact, inputs, named)):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
        for name in self._outputs:
            binding.bind_output(name, "cuda", 0)

        def call() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call


def _provider_options(name: str, precision: str, cache: Path) -> Tuple[str, dict[str, str]]:
    """Return the options of a provider: no TF32, and engines that are kept in ``cache``."""
    if name == CUDA:
        return name, {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    kept = {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
    places = {"trt_engine_cache_path": str(cache), "trt_timing_cache_path": str(cache)}
    allowed = {"trt_fp16_enable": str(int(precision != "fp32")), "trt_int8_enable": str(int(precision == "int8"))}
    return name, {**kept, **places, **allowed}
