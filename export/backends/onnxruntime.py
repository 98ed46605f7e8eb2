"""ONNX Runtime on the CPU: model.onnx, in fp32 or in explicit int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact, digest_files
from export.errors import Unavailable
from export.quantisation import QDQ, quantise_onnx, samples
from export.schema import JSON
from export.signature import describe, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.program import Program
    from hw_profiles import Device

precisions: tuple[str, ...] = ("fp32", "int8")
requires: tuple[str, ...] = ("onnxruntime",)

MODEL = "model.onnx"
# u8 activations, or convolutions are not fused (two to three times slower). The cheap operators between convolutions
# are on the list because a float one costs a dequantise and a quantise; LayerNorm, Softmax and GELU gain nothing.
POLICY = QDQ(
    operators=(
        "Conv",
        "Gemm",
        "MatMul",
        "Add",
        "Relu",
        "Clip",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Concat",
    ),
    activations="u8",
    symmetric=False,
    bias=True,
)


def missing() -> str | None:
    """None where onnxruntime is installed, else the line that installs it."""
    if find_spec("onnxruntime"):
        return None
    return "onnxruntime is not installed; pip install 'hnas[onnxruntime]' or choose another backend"


def versions() -> dict[str, str]:
    """The version of onnxruntime."""
    return {"onnxruntime": version("onnxruntime")}


def compile(
    program: Program,
    path: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Sequence[tuple[NDArray[Any], ...]] | None,
) -> Artifact:
    """Write model.onnx (opset 20); int8 takes ``calibration``."""
    if precision not in precisions:
        raise ValueError(f"onnxruntime runs {', '.join(precisions)} on a CPU, got {precision!r}")
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable("onnx and onnxscript are not installed; pip install 'hnas[onnxruntime-convert]'")
    from export import onnx_file

    inputs, outputs = describe(program)
    notes: dict[str, JSON] = {}
    if precision == "int8":
        data = samples(calibration, inputs)
        notes["quantisation"] = {**POLICY.to_json(), "samples": len(data)}
        onnx_file.write(program, path / "float.onnx", inputs, outputs)
        quantise_onnx(path / "float.onnx", path / MODEL, data, POLICY)
        (path / "float.onnx").unlink()
    else:
        onnx_file.write(program, path / MODEL, inputs, outputs)
    artifact = Artifact(
        path=path,
        backend="onnxruntime",
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(path, MODEL),
        versions={
            **versions(),
            "torch": version("torch"),
            "onnx": version("onnx"),
            "onnxscript": version("onnxscript"),
        },
        notes=notes,
    )
    artifact.write()
    return artifact


def load(artifact: Artifact) -> OnnxRuntime:
    """Open ``artifact`` on the CPU provider alone, with exactly its threads."""
    return OnnxRuntime(artifact)


class OnnxRuntime:
    """A Runner: one session that runs its nodes one after the other."""

    def __init__(self, artifact: Artifact) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = artifact.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # An idle pool that spins takes the core from whatever it is compared with.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.artifact = artifact
        self._session = ort.InferenceSession(str(artifact.model), options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The outputs for ``inputs``."""
        values = fit(inputs, self.artifact.inputs)
        return tuple(self._session.run(self._outputs, dict(zip(self._inputs, values, strict=True))))

    def bind(self, *inputs: NDArray[Any]) -> Callable[[], object]:
        """A call on ``inputs``, which are bound to the session once."""
        binding = self._session.io_binding()
        values = fit(inputs, self.artifact.inputs)
        for name, value in zip(self._inputs, values, strict=True):
            binding.bind_cpu_input(name, value)
        for name in self._outputs:
            binding.bind_output(name)
        run = self._session.run_with_iobinding
        return lambda _alive=values: run(binding)  # type: ignore[misc]
