"""What int8 has in common between the runtimes: calibration data, and the ONNX quantiser that two of them share.

There is one recipe (post-training, min/max over all calibration inputs) and no algorithm of our own. Which operators
are quantised, and into which numbers, is a policy that each backend's one file owns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from export.artifact import Tensor
from export.quiet import quiet
from export.schema import JSON
from export.signature import fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.program import Program

Sample = tuple["NDArray[Any]", ...]


def samples(calibration: Sequence[Sample] | None, inputs: Sequence[Tensor]) -> list[Sample]:
    """The calibration inputs, each one a call of the artifact; ValueError when there are none or they do not fit."""
    if not calibration:
        raise ValueError("int8 needs calibration inputs; pass calibration=[(array, ...), ...], about 100 real ones")
    return [fit(sample, inputs) for sample in calibration]


def has_attention(program: Program) -> bool:
    """Whether two activations are multiplied as matrices behind a softmax, or by the fused operator."""
    nodes = [node for node in program.module.graph.nodes if node.op == "call_function"]
    names = [str(node.target).removeprefix("aten.").split(".")[0] for node in nodes]
    if "scaled_dot_product_attention" in names:
        return True
    products = (node for node, name in zip(nodes, names, strict=True) if name in ("matmul", "bmm"))
    return any("softmax" in name for name in names) and any(
        all(getattr(argument, "op", "") == "call_function" for argument in node.args[:2]) for node in products
    )


@dataclass(frozen=True)
class QDQ:
    """The policy of a runtime that reads ONNX with explicit quantise/dequantise pairs; weights are s8 per channel.

    ``symmetric`` fixes every zero point of an activation at 0; ``bias`` quantises biases to int32.
    """

    operators: tuple[str, ...]
    activations: Literal["u8", "s8"]
    symmetric: bool
    bias: bool

    def to_json(self) -> dict[str, JSON]:
        """The policy for an artifact's notes."""
        return {**asdict(self), "operators": list(self.operators), "weights": "s8 per channel", "ranges": "min/max"}


def quantise_onnx(source: Path, target: Path, calibration: Sequence[Sample], policy: QDQ) -> None:
    """Write ``source`` to ``target`` in explicit int8 under ``policy``.

    1. An operator of the policy with a constant weight, or without weights: quantised.
    2. MatMul of two activations: stays float. ONNX Runtime 1.31 fuses its quantised form into a kernel that computes
       something else (2 dB against 38 dB on a hybrid net), and gains nothing by it on attention of our sizes.
    3. Everything else: stays float.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    types = {"u8": quantization.QuantType.QUInt8, "s8": quantization.QuantType.QInt8}
    options = {"ActivationSymmetric": policy.symmetric, "WeightSymmetric": True, "QuantizeBias": policy.bias}
    with quiet(), TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        constants = {value.name for value in graph.initializer}
        free = [node.name for node in graph.node if node.op_type == "MatMul" and not constants & set(node.input)]
        quantization.quantize_static(
            str(prepared),
            str(target),
            _reader([value.name for value in graph.input], calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=types[policy.activations],
            weight_type=types["s8"],
            per_channel=True,
            op_types_to_quantize=list(policy.operators),
            nodes_to_exclude=free,
            extra_options=options,
        )


def _reader(names: Sequence[str], calibration: Sequence[Sample]) -> Any:
    """The calibration inputs in the shape that ONNX Runtime's quantiser reads: one dict a call, then None."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Sample] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            sample = next(self._left, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    return Reader()
