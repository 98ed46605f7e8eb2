"""Run model.xml in OpenVINO on the CPU, at exactly the precision of the artifact."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable

from hnas.export.device.errors import Unavailable
from hnas.export.device.signals import signal_stack_kept
from hnas.export.device.signature import NamedOutputs, name_outputs, read_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

# By default OpenVINO computes fp32 models in bfloat16 on CPUs that have it. So the hint is always set, even where it
# repeats the default. The operators of an int8 artifact that are not int8 are f32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "w8": "f32"}
# By default, OpenVINO also rounds the activations that meet int8 weights to int8, in groups of 32. 0 switches this off.
_EXACT: dict[str, dict[str, Any]] = {"w8": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}}


def missing() -> str | None:
    """Return None if openvino is installed, else a line that says how to install it."""
    if find_spec("openvino"):
        return None
    line = "openvino is not installed; pip install 'hnas[openvino]'"
    return line + " (on a device: openvino alone) or choose another backend"


def versions() -> dict[str, str]:
    """Return the version of openvino."""
    try:
        return {"openvino": version("openvino")}
    except PackageNotFoundError:  # installed from Intel's archive
        import openvino

        return {"openvino": str(openvino.get_version())}


def load(artifact: Artifact) -> _OpenVino:
    """Open ``artifact`` with exactly its precision and threads. Raise Unavailable for bf16 on a CPU without it."""
    require(artifact.precision)
    return _OpenVino(artifact)


class _OpenVino:
    """Implement `Runner` with a compiled OpenVINO model, one stream and one request."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        compiled = compiled_model(artifact)
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))

    def __call__(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> NamedOutputs:
        """Return the outputs for ``inputs``."""
        self.bind(*inputs, **named)()
        found = [self._request.get_output_tensor(index).data.copy() for index in self._outputs]
        return name_outputs(self.artifact, found)

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Return a function that runs ``inputs``, which are set once. The outputs stay in the request."""
        import openvino

        for index, value in enumerate(read_inputs(self.artifact, inputs, named)):
            self._request.set_input_tensor(index, openvino.Tensor(value))  # a copy: requests write into shared tensors
        infer = self._request.infer

        # infer() computes in this thread. start_async() and wait() would use another thread, which takes as long as a
        # small network. Without shared outputs, infer() would copy them.
        return lambda: infer(share_outputs=True)


def compiled_model(artifact: Artifact, **more: Any) -> Any:
    """Return OpenVINO's CompiledModel of ``artifact`` with the fixed properties and ``more``."""
    import openvino

    with signal_stack_kept():
        return openvino.Core().compile_model(artifact.model, "CPU", {**settings(artifact), **more})


def settings(artifact: Artifact) -> dict[str, Any]:
    """Return the fixed properties: precision of weights and activations, number of threads, one stream."""
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[artifact.precision],
        "INFERENCE_NUM_THREADS": artifact.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        **_EXACT.get(artifact.precision, {}),
    }


def require(precision: str) -> None:
    """Check that this CPU computes in ``precision``. OpenVINO would otherwise silently use another precision.

    Raises:
        ValueError: OpenVINO does not have the precision on any CPU.
        Unavailable: this CPU does not have the precision.
    """
    import openvino

    if precision not in _HINTS:
        raise ValueError(f"openvino runs {', '.join(_HINTS)} on a CPU, got {precision!r}")
    with signal_stack_kept():
        abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in abilities:
        raise Unavailable(f"this CPU has no bf16; it has {', '.join(abilities)}; choose fp32 or int8")
