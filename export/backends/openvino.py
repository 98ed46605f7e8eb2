"""OpenVINO on the CPU: model.xml and model.bin, in fp32, bf16 or int8."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact, Tensor, digest_files
from export.errors import ExportError, Unavailable, one_line
from export.quantisation import Sample, has_attention, samples
from export.quiet import quiet
from export.schema import JSON
from export.signature import describe, fit

if TYPE_CHECKING:
    import openvino
    from numpy.typing import NDArray

    from export.program import Program
    from hw_profiles import Device

precisions: tuple[str, ...] = ("fp32", "bf16", "int8")
requires: tuple[str, ...] = ("openvino",)

MODEL = "model.xml"
# OpenVINO computes fp32 models in bfloat16 wherever the CPU can. Our artifacts mean what their precision says, so the
# hint is set even where it repeats the default; what is not int8 in an int8 artifact is f32.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def missing() -> str | None:
    """None where openvino is installed, else the line that installs it."""
    if find_spec("openvino"):
        return None
    return "openvino is not installed; pip install 'hnas[openvino]' or choose another backend"


def versions() -> dict[str, str]:
    """The version of openvino."""
    return {"openvino": version("openvino")}


def compile(
    program: Program,
    path: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Sequence[tuple[NDArray[Any], ...]] | None,
) -> Artifact:
    """Write model.xml and model.bin; int8 takes ``calibration``, bf16 a CPU that has it."""
    import openvino

    _require(precision)
    inputs, outputs = describe(program)
    notes: dict[str, JSON] = {}
    found = {**versions(), "torch": version("torch")}
    model = _convert(program, inputs, outputs)
    if precision == "int8":
        data = samples(calibration, inputs)
        model, notes["quantisation"] = _quantise(model, data, transformer=has_attention(program))
        found["nncf"] = version("nncf")
    openvino.save_model(model, path / MODEL, compress_to_fp16=False)
    artifact = Artifact(
        path=path,
        backend="openvino",
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(path, MODEL, "model.bin"),
        versions=found,
        notes=notes,
    )
    artifact.write()
    return artifact


def load(artifact: Artifact) -> OpenVino:
    """Open ``artifact`` with exactly its precision and threads; Unavailable for bf16 on a CPU without it."""
    _require(artifact.precision)
    return OpenVino(artifact)


class OpenVino:
    """A Runner: one compiled model, one stream, one request."""

    def __init__(self, artifact: Artifact) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[artifact.precision],
            "INFERENCE_NUM_THREADS": artifact.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.artifact = artifact
        compiled = openvino.Core().compile_model(artifact.model, "CPU", settings)
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


def _require(precision: str) -> None:
    """Unavailable when this CPU cannot compute in ``precision``: OpenVINO would silently use another one."""
    import openvino

    if precision not in precisions:
        raise ValueError(f"openvino runs {', '.join(precisions)} on a CPU, got {precision!r}")
    abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in abilities:
        raise Unavailable(f"this CPU has no bf16; it has {', '.join(abilities)}; choose fp32 or int8")


def _convert(program: Program, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> openvino.Model:
    """The OpenVINO model of ``program`` with static shapes and our names.

    ``openvino.convert_model`` traces twice, walks every submodule and reports each call over the network; a flat trace
    handed to the same front end gives the same graph about ten times sooner, which is what a search waits for.
    """
    import openvino
    import torch
    from openvino import _offline_transformations as offline
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(_flat(program), program.inputs, check_trace=False)  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced.eval(), optimize_numerics=False)
            decoder = TorchScriptPythonDecoder(frozen, example_input=program.inputs, skip_freeze=True)
            front = FrontEndManager().load_by_framework("pytorch")
            model = front.convert(front.load(decoder))
        except RuntimeError as error:
            raise ExportError(f"openvino cannot convert this graph: {one_line(error)}") from error
    for parameter, tensor in zip(model.get_parameters(), inputs, strict=True):
        parameter.set_element_type(openvino.Type(tensor.dtype))  # left open where an operator takes any type
        parameter.set_partial_shape(openvino.PartialShape(list(tensor.shape)))
        parameter.output(0).get_tensor().set_names({tensor.name})
    model.validate_nodes_and_infer_types()
    for result, tensor in zip(model.get_results(), outputs, strict=True):
        result.output(0).get_tensor().set_names({tensor.name})
    offline.apply_moc_transformations(model, cf=False)
    return model


def _flat(program: Program) -> Any:
    """The program's graph with all tensors at the top: tracing costs a millisecond for every submodule."""
    from torch import fx

    graph = fx.Graph()
    graph.output(graph.graph_copy(program.module.graph, {}))
    state = dict(program.module.state_dict(keep_vars=True))
    names = {name: f"tensor_{index}" for index, name in enumerate(state)}
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    return fx.GraphModule({names[name]: value.detach() for name, value in state.items()}, graph).eval()


def _quantise(model: openvino.Model, data: Sequence[Sample], *, transformer: bool) -> tuple[openvino.Model, JSON]:
    """The int8 model by NNCF, and the policy under which it was made.

    Ranges are min/max over all samples: NNCF's default averages the extremes of the samples and clips every input that
    is more than average (21 dB against 38 dB on a net with two inputs). Attention needs the transformer scheme, but
    without its smoothing, which moves the range of the activations into the weights: 18 dB against 43 dB on a hybrid.
    Biases are corrected layer by layer: the fast correction left a trained net of fused convolutions 1.3 points short.
    """
    os.environ.setdefault("NNCF_CI", "1")  # read when nncf is imported: no report over the network
    try:
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError:
        raise Unavailable("nncf is not installed; pip install 'hnas[openvino-convert]'") from None
    advanced = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )
    with quiet(), _without_progress():
        quantised = nncf.quantize(
            model,
            nncf.Dataset(data, list),
            subset_size=len(data),
            fast_bias_correction=False,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_parameters=advanced,
        )
    kind = "transformer" if transformer else "default"
    return quantised, {
        "quantiser": "nncf",
        "model_type": kind,
        "smoothing": False,
        "bias_correction": "layer by layer",
        "ranges": "min/max",
        "samples": len(data),
    }


@contextmanager
def _without_progress() -> Iterator[None]:
    """NNCF draws a bar for each of its steps and has no setting for it."""
    from nncf.common.logging.track_progress import track

    draw = track.__init__
    track.__init__ = partialmethod(draw, disable=True)
    try:
        yield
    finally:
        track.__init__ = draw
