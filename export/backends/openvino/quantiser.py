"""Quantise OpenVINO models with NNCF: ``quantise_model(model, samples, ...)``, ``compress_weights(model)``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, partialmethod
from typing import TYPE_CHECKING, Any

from hnas.export.device.errors import Unavailable
from hnas.export.device.machine import Machine
from hnas.export.device.records import JSON
from hnas.export.device.signals import signal_stack_kept
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    import openvino

    from hnas.export.graph.samples import Samples

_TAILED = frozenset({"HSwish", "Swish", "Gelu", "Elu", "Mish"})  # their negative values are small


def quantise_model(
    model: openvino.Model,
    samples: Samples,
    *,
    ranges: str,
    kept: Sequence[str] = (),
    float_types: Collection[str] = (),
    correction: str = "layer by layer",
) -> tuple[openvino.Model, dict[str, JSON]]:
    """Return NNCF's int8 model, and the policy for the artifact's notes.

    ranges: a method of `hnas.export.int8.ranges`.
    kept: names of operators that stay in float.
    float_types: types of operators that stay in float.
    correction: "layer by layer"; or "before" or "none", if the biases are fitted to int8 already, or need not be.

    Figures in dB are the SQNR of the outputs.

    1. Ranges are ours. NNCF's default averages the extremes of the samples and clips every input above the average:
       21 dB instead of 38 dB on a network with two inputs.
    2. A network with attention takes the transformer scheme without its smoothing. Smoothing moves the range of the
       activations into the weights: 18 dB instead of 43 dB on a hybrid network.
    3. Activations are symmetric, which is 3 % faster on small networks and on attention. Networks with hard swish, SiLU
       or GELU and no attention get asymmetric ones: with symmetric ones, half of the levels would be below the lowest
       value, about -0.4 (19 dB instead of 22 dB on a MobileNetV3).
    4. Biases are corrected layer by layer. NNCF's fast correction lost 1.3 points of accuracy on a trained network of
       fused convolutions. It is used only if the layer-by-layer correction raises a KeyError, as on some graphs.
    5. Biases that were corrected before are not changed, because NNCF would undo the edit (a loss of 3 dB on a hybrid
       network).
    6. Weights have 7 bits only on CPUs whose int8 sums overflow (12 dB instead of 80 dB on large sums). On other CPUs,
       7 bits would lose 2 dB.
       An embedding that shares its table with a layer stays in float there: NNCF gives a shared table 8 bits
       (7 dB in a slice of a GPT-2 instead of 36 dB).
    7. An activation has one scale. NNCF gives the input of a depthwise convolution a scale per channel, whose extremes
       a few samples do not show: 7.3 dB instead of 16.6 dB on EfficientNet-Lite0 and photographs of other things.
    """
    nncf = _nncf()
    from nncf.quantization.advanced_parameters import QuantizationParameters

    from hnas.export.backends.openvino.ranges import estimator

    transformer, narrow = _has_attention(model), weight_bits() < 8
    symmetric = transformer or not _has_tails(model)  # case 3
    spared = [*kept, *(_shared_tables(model) if narrow else [])]  # case 6
    types = sorted({op.get_type_name() for op in model.get_ops()} & set(float_types))
    with (
        quiet(),
        signal_stack_kept(),
        _without_progress(),
        estimator(ranges, symmetric=symmetric) as parameters,
    ):  # case 1
        advanced = nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=parameters,
            overflow_fix=nncf.OverflowFix.ENABLE if narrow else nncf.OverflowFix.DISABLE,  # case 6
            activations_quantization_params=QuantizationParameters(per_channel=False),  # case 7
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),  # case 2
            disable_bias_correction=correction != "layer by layer",  # case 5
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
        "weight_bits": weight_bits(),
        "ranges": ranges,
        "float": [*types],
        "samples": len(samples),
    }


def weight_bits() -> int:
    """Return the bits of a weight in the files that this machine makes: case 6 of `quantise_model`."""
    return 7 if Machine.here().sums_overflow else 8


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


def compress_weights(model: openvino.Model) -> tuple[openvino.Model, JSON]:
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
