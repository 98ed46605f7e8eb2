"""Run model.onnx, of any precision, in ONNX Runtime on the CPU.

A TensorRT file in fp16 or int8 is run with the rounding of fp16, see `half_values`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable

from hnas.export.device.engine_types import TYPES
from hnas.export.device.half_values import with_rounding
from hnas.export.device.machine import Machine
from hnas.export.device.onnx_session import SessionRunner
from hnas.export.device.signature import read_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact


def missing() -> str | None:
    """Return None if onnxruntime is installed, else a line that says how to install it."""
    if find_spec("onnxruntime"):
        return None
    line = "onnxruntime is not installed; pip install 'hnas[onnxruntime]'"
    return line + " (on a device: onnxruntime alone) or choose another backend"


def versions() -> dict[str, str]:
    """Return the version of onnxruntime."""
    try:
        return {"onnxruntime": version("onnxruntime")}
    except PackageNotFoundError:  # a build for a device has another package name
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}


def load(artifact: Artifact) -> _OnnxRuntime:
    """Open ``artifact`` with the CPU provider only, and exactly its number of threads."""
    return _OnnxRuntime(artifact)


class _OnnxRuntime(SessionRunner):
    """Implement `Runner` with an ONNX Runtime session. The nodes run one after another."""

    def __init__(self, artifact: Artifact) -> None:
        import onnxruntime as ort

        options = session_options(artifact.threads)
        model: Any = str(artifact.model)
        if TYPES in artifact.notes:  # a worker replaces the backend of the record by that of its runtime
            model = with_rounding(artifact.model)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        super().__init__(artifact, ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Return a function that runs ``inputs``, which are bound to the session once."""
        binding = self._session.io_binding()
        values = read_inputs(self.artifact, inputs, named)
        for name, value in zip(self._inputs, values):
            binding.bind_cpu_input(name, value)
        for name in self._outputs:
            binding.bind_output(name)
        run = self._session.run_with_iobinding
        return lambda _alive=values: run(binding)  # type: ignore[misc]


def session_options(threads: int) -> Any:
    """Return the fixed session options: ``threads`` threads, nodes one after another, no spinning, exact int8 sums."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # An idle thread pool that spins would use the CPU core that the other artifact of a comparison needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86 without VNNI, the fast kernel adds two products of u8 and s8 in 16 bits, which overflow. With VNNI its sums
    # are exact, and the kernel that this entry chooses takes twice as long.
    if Machine.here().sums_overflow:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options
