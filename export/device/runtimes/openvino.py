"""OpenVINO on the CPU: opens model.xml at exactly its precision."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable

from hnas.export.device.errors import Unavailable
from hnas.export.device.signals import signal_stack_kept
from hnas.export.device.signature import fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

# OpenVINO computes fp32 models in bfloat16 wherever the CPU can. Our artifacts mean what their precision says, so the
# hint is set even where it repeats the default; what is not int8 in an int8 artifact is f32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "w8": "f32"}
# Where weights alone are in int8, OpenVINO rounds the activations that meet them to int8, too, in groups of 32.
_EXACT: dict[str, dict[str, Any]] = {"w8": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}}


def missing() -> str | None:
    """None where openvino is installed, else the line that installs it."""
    if find_spec("openvino"):
        return None
    line = "openvino is not installed; pip install 'hnas[openvino]'"
    return line + " (on a device: openvino alone) or choose another backend"


def versions() -> dict[str, str]:
    """The version of openvino."""
    try:
        return {"openvino": version("openvino")}
    except PackageNotFoundError:  # from the maker's archive
        import openvino

        return {"openvino": str(openvino.get_version())}


def load(artifact: Artifact) -> _OpenVino:
    """Open ``artifact`` with exactly its precision and threads; Unavailable for bf16 on a CPU without it."""
    require(artifact.precision)
    return _OpenVino(artifact)


class _OpenVino:
    """A Runner: one compiled model, one stream, one request."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        compiled = compiled_model(artifact)
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The outputs for ``inputs``."""
        self.bind(*inputs)()
        return tuple(self._request.get_output_tensor(index).data.copy() for index in self._outputs)

    def bind(self, *inputs: NDArray[Any]) -> Callable[[], object]:
        """A call on ``inputs``, which are set once; the outputs stay in the request."""
        import openvino

        for index, value in enumerate(fit(inputs, self.artifact.inputs)):
            self._request.set_input_tensor(index, openvino.Tensor(value))  # a copy: a request writes into shared ones
        infer = self._request.infer

        # infer() computes in this thread; start_async() and wait() hand over to another, which costs as much as a small
        # net takes. Without shared outputs it would copy them.
        return lambda: infer(share_outputs=True)


def compiled_model(artifact: Artifact, **more: Any) -> Any:
    """OpenVINO's CompiledModel of ``artifact`` with what is pinned, and ``more`` properties."""
    import openvino

    with signal_stack_kept():
        return openvino.Core().compile_model(artifact.model, "CPU", {**settings(artifact), **more})


def settings(artifact: Artifact) -> dict[str, Any]:
    """Everything that is pinned: precision, that of activations too, threads, one stream."""
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[artifact.precision],
        "INFERENCE_NUM_THREADS": artifact.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        **_EXACT.get(artifact.precision, {}),
    }


def require(precision: str) -> None:
    """Unavailable when this CPU cannot compute in ``precision``: OpenVINO would silently use another one."""
    import openvino

    if precision not in _HINTS:
        raise ValueError(f"openvino runs {', '.join(_HINTS)} on a CPU, got {precision!r}")
    with signal_stack_kept():
        abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in abilities:
        raise Unavailable(f"this CPU has no bf16; it has {', '.join(abilities)}; choose fp32 or int8")
