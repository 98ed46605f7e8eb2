"""Compile for OpenVINO on the CPU: model.xml and model.bin, in fp32, bf16, int8, or with int8 weights only (w8)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial, partialmethod
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hnas.export.device.artifact import TensorSpec, Written
from hnas.export.device.errors import ExportError, Unavailable, one_line, printable
from hnas.export.device.machine import Machine
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.openvino import load, missing, require, versions
from hnas.export.device.signals import signal_stack_kept
from hnas.export.graph.marks import kept_float
from hnas.export.onnx.apart import float_nodes
from hnas.export.onnx.names import openvino_nodes
from hnas.export.onnx.source import OnnxSource
from hnas.export.onnx.walk import nodes, shown
from hnas.export.remote.quiet import quiet
from hnas.hw_profiles import Override

if TYPE_CHECKING:
    import openvino

    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "bf16", "int8", "w8")
requires: tuple[str, ...] = ("openvino",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch",), "int8": ("nncf",), "w8": ("nncf",)}
no_onnx = ""

MODEL = "model.xml"
_TAILED = frozenset({"HSwish", "Swish", "Gelu", "Elu", "Mish"})  # their negative values are small
_FITTED = frozenset({"correct_biases", "round_weights", "finetune"})  # edits that fit the biases to int8


def compile(
    program: Program | OnnxSource, path: Path, *, precision: str, device: Device, calibration: Samples
) -> Written:
    """Write model.xml and model.bin. Raise Unavailable for bf16 on a CPU that does not have it."""
    import openvino

    require(precision)
    notes: dict[str, JSON] = {}
    apart: list[JSON] = []
    found = dict(versions())
    if isinstance(program, OnnxSource):
        model, kept = _read(program), list[str]()
        if precision == "int8" and find_spec("onnxruntime"):
            spared, apart = float_nodes(Path(program.path), calibration, at_ends=False)
            kept = sorted(spared & {op.get_friendly_name() for op in model.get_ops()})
    else:
        from hnas.export.backends.openvino.fixes import apply_fixes
        from hnas.export.backends.openvino.fixes_int8 import apply_int8_fixes
        from hnas.export.graph.dynamic import has_open_sizes, keeps_size

        inputs, outputs = program.signature
        if precision == "int8":
            from hnas.export.int8.apart import keep_apart

            program, apart = keep_apart(program, calibration, at_ends=False)
        program = keeps_size(apply_fixes, program)
        if precision == "int8":
            program = keeps_size(lambda each: apply_int8_fixes(each, calibration), program)
        open_sizes = program.dynamic is not None and has_open_sizes(program.module)
        model = (_convert_by_onnx if open_sizes else _convert)(program, inputs, outputs)
        kept = openvino_nodes(program, [op.get_friendly_name() for op in model.get_ops()], kept_float(program))
        found["torch"] = version("torch")
    if precision == "int8":
        override = device.quantisation.get("openvino", Override())
        model, policy = _quantise(model, calibration, override, kept, fitted=_is_fitted(program))
        notes["quantisation"] = {**policy, "apart": apart}
        found["nncf"] = version("nncf")
    if precision == "w8":
        model, notes["quantisation"] = _compress(model)
        found["nncf"] = version("nncf")
    openvino.save_model(model, path / MODEL, compress_to_fp16=False)
    return Written((MODEL, "model.bin"), found, notes)


def _is_fitted(program: Program | OnnxSource) -> bool:
    """Return whether the biases need no correction: they are fitted to int8, or the artifact is only timed."""
    return program.draft or bool(_FITTED & {name for name, count in program.fired if count})


def _convert(program: Program, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> openvino.Model:
    """Return the OpenVINO model of ``program`` with static shapes and the names of ``inputs`` and ``outputs``.

    ``openvino.convert_model`` traces twice, visits every submodule and sends telemetry for each call. With a flat
    trace, the same front end makes the same graph about ten times faster, which shortens a search.
    """
    import openvino
    import torch
    from openvino import _offline_transformations as offline
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = program.dynamic
    with quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(_flat(program), program.inputs, check_trace=False)  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced.eval(), optimize_numerics=False)
            decoder = TorchScriptPythonDecoder(frozen, example_input=program.inputs, skip_freeze=True)
            front = FrontEndManager().load_by_framework("pytorch")
            model = front.convert(front.load(decoder))
        except Exception as error:  # its errors have no common type
            raise ExportError(f"openvino cannot convert this graph: {_cause(error)}") from error
    for parameter, tensor in zip(model.get_parameters(), inputs, strict=True):
        parameter.set_element_type(openvino.Type(tensor.dtype))  # the front end may leave it open
        shape = openvino.PartialShape(list(tensor.shape))
        if size is not None and (axis := size.inputs[inputs.index(tensor)]) is not None:
            shape[axis] = openvino.Dimension(size.low, -1 if size.high is None else size.high)
        parameter.set_partial_shape(shape)
        parameter.output(0).get_tensor().set_names({tensor.name})
    model.validate_nodes_and_infer_types()
    for result, tensor in zip(model.get_results(), outputs, strict=True):
        result.output(0).get_tensor().set_names({tensor.name})
    offline.apply_moc_transformations(model, cf=False)
    return model


def _convert_by_onnx(program: Program, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> openvino.Model:
    """Return the OpenVINO model of a program that computes sizes, which a trace would make constant."""
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable(
            "this graph computes sizes, for which onnx is needed; pip install 'hnas[onnxruntime-convert]'"
        )
    from hnas.export.onnx.file import write_program

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_program(program, path, inputs, outputs)
        return _read(OnnxSource(str(path), "the graph", tuple(inputs), tuple(outputs), {}))


def _cause(error: Exception) -> str:
    """Return the line of a front end's error that names an operator and a reason; it is not the first."""
    text = str(error)
    for pattern in (r"-- aten::\S+ with a message:\n(.+)", r"(No conversion rule found for operations: .+)"):
        if found := re.search(pattern, text):
            return printable(found[1])[:200]
    return one_line(error)


def _read(source: OnnxSource) -> openvino.Model:
    """Return the OpenVINO model of an ONNX file. Raise ExportError if its inputs or outputs differ from the file's."""
    from openvino import _offline_transformations as offline
    from openvino.frontend import FrontEndManager

    try:
        front = FrontEndManager().load_by_framework("onnx")
        model = front.convert(front.load(source.path))
    except Exception as error:  # its errors have no common type
        if lacking := re.search(r"No conversion rule found for operations: (.+)", str(error)):
            raise ExportError(_lacking(source, lacking[1])) from error
        raise ExportError(f"openvino cannot convert {source.name}: {one_line(error)}") from error
    ends = [*zip(model.inputs, source.inputs, strict=False), *zip(model.outputs, source.outputs, strict=False)]
    if len(ends) != len(source.inputs + source.outputs) or any(t.name not in end.get_names() for end, t in ends):
        raise ExportError(f"openvino reads other inputs or outputs from {source.name} than it states")
    offline.apply_moc_transformations(model, cf=False)
    return model


def _lacking(source: OnnxSource, operators: str) -> str:
    """Return a line on operators of an ONNX file, such as "Det-17, Foo-1": their nodes, and who runs them."""
    import onnx

    kinds = re.findall(r"(\w+)-\d+", operators)
    found = [node.name or node.output[0] for node in nodes(onnx.load(source.path)) if node.op_type in kinds]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    where = f" in node {shown(found[0])}{more}" if found else ""
    runs = str(source.notes.get("held_against", "")).startswith("onnxruntime")
    who = "supported by onnxruntime, which ran the file" if runs else "no other backend was tried"
    return f"openvino refuses {operators}{where} of {source.name}: it has no such operator; {who}"


def _flat(program: Program) -> Any:
    """Return the graph with all tensors in the top module, because tracing takes a millisecond per submodule."""
    from torch import fx

    graph = fx.Graph()
    graph.output(graph.graph_copy(program.module.graph, {}))
    state = dict(program.module.state_dict(keep_vars=True))
    names = {name: f"tensor_{index}" for index, name in enumerate(state)}
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    return fx.GraphModule({names[name]: value.detach() for name, value in state.items()}, graph).eval()


def _quantise(
    model: openvino.Model, samples: Samples, override: Override, kept: Sequence[str], *, fitted: bool
) -> tuple[openvino.Model, dict[str, JSON]]:
    """Return NNCF's int8 model with the operators ``kept`` in float, and the policy for the artifact's notes.

    Figures in dB are the SQNR of the outputs.

    1. Ranges are minmax over all samples. NNCF's default averages the extremes of the samples and clips every input
       above the average: 21 dB instead of 38 dB on a network with two inputs.
    2. A network with attention takes the transformer scheme without its smoothing. Smoothing moves the range of the
       activations into the weights: 18 dB instead of 43 dB on a hybrid network.
    3. Activations are symmetric, which is 3 % faster on small networks and on attention. Networks with hard swish, SiLU
       or GELU and no attention get asymmetric ones: with symmetric ones, half of the levels would be below the lowest
       value, about -0.4 (19 dB instead of 22 dB on a MobileNetV3).
    4. Biases are corrected layer by layer. NNCF's fast correction lost 1.3 points of accuracy on a trained network of
       fused convolutions. It is used only if the layer-by-layer correction raises a KeyError, as on some graphs.
    5. Biases that an edit has ``fitted`` for int8 are not corrected, because NNCF would undo the edit (a loss of 3 dB
       on a hybrid network).
    6. Weights have 7 bits only on CPUs whose int8 sums overflow (12 dB instead of 80 dB on large sums). On other CPUs,
       7 bits would lose 2 dB.
       An embedding that shares its table with a layer stays in float there: NNCF gives a shared table 8 bits
       (7 dB in a slice of a GPT-2 instead of 36 dB).
    7. An activation has one scale. NNCF gives the input of a depthwise convolution a scale per channel, whose extremes
       a few samples do not show: 7.3 dB instead of 16.6 dB on EfficientNet-Lite0 and photographs of other things.
    """
    nncf = _nncf()
    from nncf.quantization.advanced_parameters import QuantizationParameters

    transformer, narrow = _has_attention(model), _overflows()
    symmetric = transformer or not _has_tails(model)  # case 3
    spared = [*kept, *(_shared_tables(model) if narrow else [])]  # case 6
    types = sorted({op.get_type_name() for op in model.get_ops()} & set(override.leave_float))
    advanced = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=_ranges(override.ranges or "minmax"),  # case 1
        overflow_fix=nncf.OverflowFix.ENABLE if narrow else nncf.OverflowFix.DISABLE,  # case 6
        activations_quantization_params=QuantizationParameters(per_channel=False),  # case 7
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),  # case 2
        disable_bias_correction=fitted,
    )
    quantise = partial(
        nncf.quantize,
        model,
        nncf.Dataset(samples, list),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=spared, types=types),
        advanced_parameters=advanced,
    )
    correction = "before" if fitted else "layer by layer"  # cases 4 and 5
    with quiet(), signal_stack_kept(), _without_progress():
        try:
            quantised = quantise(fast_bias_correction=False)
        except KeyError:
            correction = "fast"
            quantised = quantise(fast_bias_correction=True)
    return quantised, {
        "quantiser": "nncf",
        "model_type": "transformer" if transformer else "default",
        "smoothing": False,
        "activations": "symmetric" if symmetric else "asymmetric",
        "bias_correction": correction,
        "weight_bits": 7 if narrow else 8,
        "ranges": override.ranges or "minmax",
        "float": [*types],
        "samples": len(samples),
    }


def _shared_tables(model: openvino.Model) -> list[str]:
    """Return the names of the embeddings whose table another operator reads too."""
    gathers = [op for op in model.get_ops() if op.get_type_name() == "Gather"]
    return [op.get_friendly_name() for op in gathers if len(op.input_value(0).get_target_inputs()) > 1]


def _has_attention(model: openvino.Model) -> bool:
    """Return whether the model has attention: the fused operator, or a softmax and a matrix product of activations."""
    ops = model.get_ops()
    types = {op.get_type_name() for op in ops}
    sources = [[value.get_node() for value in op.input_values()] for op in ops if op.get_type_name() == "MatMul"]
    products = [pair for pair in sources if not any(source.get_type_name() == "Constant" for source in pair)]
    return "ScaledDotProductAttention" in types or ("Softmax" in types and bool(products))


def _has_tails(model: openvino.Model) -> bool:
    """Return whether the model has an activation with large positive and small negative values."""
    return not _TAILED.isdisjoint(op.get_type_name() for op in model.get_ops())


def _overflows() -> bool:
    """Return whether this CPU sums products of u8 and s8 in 16 bits, as x86 does without VNNI instructions."""
    known = Machine.here().instructions
    return "avx2" in known and not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(known)


def _ranges(method: str) -> Any:
    """Return NNCF's range estimator for a method. Raise ValueError for a method that NNCF does not have."""
    from nncf.quantization import range_estimator as nncf_ranges

    if method == "minmax":
        return nncf_ranges.RangeEstimatorParametersSet.MINMAX
    if method != "percentile":
        raise ValueError(f"openvino calibrates by minmax or percentile, got {method!r}; see the device's profile")
    kinds, means = nncf_ranges.StatisticsType, nncf_ranges.AggregatorType
    one = nncf_ranges.StatisticsCollectorParameters(
        statistics_type=kinds.QUANTILE, aggregator_type=means.MEAN, quantile_outlier_prob=1e-4
    )
    return nncf_ranges.RangeEstimatorParameters(min=one, max=one)


def _compress(model: openvino.Model) -> tuple[openvino.Model, JSON]:
    """Return the model with only its weights in int8, per output channel, and the policy for the artifact's notes.

    The runtime keeps the weights of matrix products in int8, and converts those of convolutions to float when it opens
    the file. Zero points bring no gain: small transformers reach 44 dB with and without them.
    """
    nncf = _nncf()
    with quiet(), signal_stack_kept(), _without_progress():
        compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    return compressed, {"quantiser": "nncf", "weights": "s8 per channel", "activations": "f32"}


def _nncf() -> Any:
    """Import NNCF without its telemetry. Raise Unavailable if NNCF is not installed."""
    os.environ.setdefault("NNCF_CI", "1")  # read when nncf is imported
    try:
        import nncf
    except ImportError:
        raise Unavailable("nncf is not installed; pip install 'hnas[openvino-convert]'") from None
    return nncf


@contextmanager
def _without_progress() -> Iterator[None]:
    """Disable the progress bars of NNCF during the block; NNCF has no option for that."""
    from nncf.common.logging.track_progress import track

    draw = track.__init__
    track.__init__ = partialmethod(draw, disable=True)
    try:
        yield
    finally:
        track.__init__ = draw
