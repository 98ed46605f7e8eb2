"""Count the multiply-accumulates of an ONNX file: ``count_macs(artifact, inputs)``. Needs ONNX Runtime, and no onnx.

The file runs once in a process of its own, without any optimisation of the graph. The profiler states the shapes of
every node, so the count depends on the file alone and not on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, one_line
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve

if TYPE_CHECKING:
    from hnas.benchmarks.gate.session import Inputs

# Operator -> the position of the second factor among the inputs.
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
# Operators known to have no products, those of ONNX first; inner nodes of If, Loop and Scan are nodes of their own.
# Another operator may have products, such as the fused ones of ONNX Runtime.
_FREE = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Bernoulli BitCast
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip
    Col2Im Compress Concat ConcatFromSequence Constant ConstantOfShape Cos Cosh CumProd CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization
    IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool Max
    MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Multinomial Neg
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement OptionalHasElement Or
    PRelu Pad Pow QuantizeLinear RMSNormalization RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare RegexFullMatch Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round Scan
    Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
    SequenceLength SequenceMap Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss
    Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze StringConcat StringNormalizer StringSplit Sub
    Sum Swish Tan Tanh TensorScatter TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze
    Upsample Where Xor
    BiasAdd BiasGelu FastGelu QuickGelu SkipLayerNormalization SimplifiedLayerNormalization
    SkipSimplifiedLayerNormalization EmbedLayerNormalization QLinearAdd QLinearMul QLinearSigmoid QLinearLeakyRelu
    QLinearSoftmax QLinearAveragePool QLinearGlobalAveragePool QLinearConcat QLinearReduceMean QLinearWhere
"""
_TIMEOUT = 120.0


def count_macs(artifact: Artifact, inputs: Inputs) -> int:
    """Return the multiply-accumulates of convolutions and matrix products in one call.

    Raises:
        ValueError: the model is no ONNX file, or has an operator that is not known.
        Unavailable: ONNX Runtime is missing.
        ExportError: it cannot run the file.
    """
    from hnas.export.remote.process import ChildProcess
    from hnas.export.remote.transports import local

    if artifact.model.suffix != ".onnx":
        raise ValueError(f"max_macs counts in .onnx files, {artifact.model.name} is none")
    name = f"counter ({artifact.source.name})"
    with ChildProcess(name, __name__, environment={}, timeout=_TIMEOUT, transport=local) as process:
        reply, _ = process.ask({"do": "profile", "path": local.place(artifact.source)}, inputs)
    return sum_products(reply["nodes"])


def sum_products(nodes: Iterable[Mapping[str, Any]]) -> int:
    """Return the multiply-accumulates of nodes of a profile: ``op``, shapes of ``inputs`` and of ``outputs``.

    Raises:
        ValueError: an operator is not known, or its shapes are not those of the operator.
    """
    total, free = 0, set(_FREE.split())
    for node in nodes:
        op = node["op"]
        if op in free:
            continue
        try:
            products = _products(op, node["inputs"], node["outputs"])
        except (IndexError, ValueError):
            raise ValueError(f"max_macs does not understand the shapes of {op}") from None
        if products is None:
            raise ValueError(f"max_macs does not know how to count {op}")
        total += products
    return total


def _products(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> int | None:
    """Return the multiply-accumulates of one node; None for an operator that is not known."""
    if op in _CONVOLUTIONS:
        return prod(outputs[0]) * prod(inputs[_CONVOLUTIONS[op]][1:])
    if op == "ConvTranspose":
        return prod(inputs[0]) * prod(inputs[1][1:])
    if op in _RECURRENT:  # steps and batch, and the weights of the input and of the state
        return prod(inputs[0][:2]) * (prod(inputs[1]) + prod(inputs[2]))
    if op == "Gemm":  # A [M, K] or its transpose, B [K, N] or its transpose
        columns, depth = inputs[1]
        return outputs[0][0] * columns * depth
    if op in _PRODUCTS:
        return prod(outputs[0]) * inputs[0][-1]
    return None


class _Profiling:
    """Answer the request of the parent process."""

    def do_profile(self, header: Header, arrays: Arrays) -> Frame:
        """Return operator and shapes of every node that ran."""
        from hnas.export.device import runtimes
        from hnas.export.device.errors import Unavailable

        missing = runtimes.load("onnxruntime").missing()
        if missing is not None:
            raise Unavailable(missing)
        try:
            return {"nodes": _nodes(Artifact.read(header["path"]), arrays)}, ()
        except ValueError:
            raise
        except Exception as error:  # a runtime may raise anything; the parent gets one line
            raise ExportError(f"onnxruntime does not report its nodes: {one_line(error)}") from error


def _nodes(artifact: Artifact, arrays: Sequence[Any]) -> list[dict[str, Any]]:
    import onnxruntime as ort

    from hnas.export.device.runtimes.onnxruntime import session_options

    with TemporaryDirectory() as folder:
        options = session_options(1)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        # The profile leaves out weights that a kernel has packed.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(artifact.model), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        session.run(None, dict(zip(names, arrays, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return [
        {
            "op": event["args"]["op_name"],
            **{
                side: [next(iter(each.values()), []) for each in event["args"].get(f"{side[:-1]}_type_shape", [])]
                for side in ("inputs", "outputs")
            },
        }
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


if __name__ == "__main__":
    serve(dispatch(_Profiling()))
