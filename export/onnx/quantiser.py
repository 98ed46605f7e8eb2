"""Quantise an ONNX file with explicit quantise/dequantise pairs, by a policy that each backend owns.

A device's profile may override the policy. What is fitted to the calibration data before is in
`hnas.export.int8.ladder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from hnas.export.device.records import JSON
from hnas.export.onnx.source import OnnxSource
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Arrays
    from hnas.hw_profiles import Override


@dataclass(frozen=True)
class QDQ:
    """The policy of a runtime that reads ONNX with explicit quantise/dequantise pairs; weights are s8 per channel.

    ``symmetric`` fixes every zero point of an activation at 0; ``bias`` quantises biases to int32. ``ranges`` is how
    activations are calibrated: minmax by the quantiser itself, the rest as `hnas.export.int8.calibration` has it.
    """

    operators: tuple[str, ...]
    activations: Literal["u8", "s8"]
    symmetric: bool
    bias: bool
    ranges: str = "minmax"

    def on(self, override: Override | None) -> QDQ:
        """The policy under a device's override."""
        if override is None:
            return self
        left = tuple(name for name in self.operators if name not in override.leave_float)
        return replace(self, operators=left, ranges=override.ranges or self.ranges)

    def to_json(self) -> dict[str, JSON]:
        """The policy for an artifact's notes."""
        return {**asdict(self), "operators": list(self.operators), "weights": "s8 per channel"}


def quantise_onnx(
    source: Path,
    target: Path,
    calibration: Sequence[Arrays],
    policy: QDQ,
    program: Program | OnnxSource,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write ``source``, made from ``program``, to ``target`` in explicit int8 under ``policy``.

    A foreign file marks nothing and has ranges by its extremes alone.

    1. An operator of the policy with a constant weight, or without weights: quantised.
    2. MatMul of two activations: stays float. ONNX Runtime 1.31 fuses its quantised form into a kernel that computes
       something else (2 dB against 38 dB on a hybrid net), and gains nothing by it on attention of our sizes.
    3. Sums that only float operators read, as the residuals before a layer norm: stay float; 5 dB in a small ViT.
    4. What the program marks to stay in float, and everything else: stays float.
    5. ``ranges`` has a range for a value of the program: taken; else its extremes over ``calibration``.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    types = {"u8": quantization.QuantType.QUInt8, "s8": quantization.QuantType.QInt8}
    options: dict[str, Any] = {"ActivationSymmetric": policy.symmetric, "WeightSymmetric": True}
    kept, overrides = set[str](), dict[str, list[dict[str, Any]]]()
    if not isinstance(program, OnnxSource):
        kept, overrides = _kept(source, program), _overrides(source, program, ranges)
    options |= {"QuantizeBias": policy.bias, "TensorQuantOverrides": overrides}
    with quiet(), TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        _name_nodes(prepared)
        graph = onnx.load(prepared).graph
        constants = {value.name for value in graph.initializer}
        free = [
            node.name
            for node in graph.node
            if (node.op_type == "MatMul" and not constants & set(node.input)) or node.name.partition("/")[0] in kept
        ]
        free += _float_sums(graph, {*policy.operators, "Reshape", "Transpose"}, {*free})
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


def _name_nodes(path: Path) -> None:
    """Give every node of a file a name of its own, by which it can be left out: foreign files need not have any."""
    import onnx

    model, taken = onnx.load(path), {""}
    for index, node in enumerate(model.graph.node):  # those that have one keep it: the blocks to leave out go by it
        if node.name in taken:
            node.name = f"unnamed_{index}"
        taken.add(node.name)
    onnx.save(model, path)


def _float_sums(graph: onnx.GraphProto, integer: set[str], free: set[str]) -> list[str]:
    """The sums of the graph that no operator reads which may compute in int8; a sum of ``free`` is none."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[str] = []
    for node in reversed(graph.node):
        users = readers.get(node.output[0], [])
        in_float = [user.name in (*free, *found) or user.op_type not in integer for user in users]
        if node.op_type == "Add" and users and all(in_float):
            found.append(node.name)
    return found


def _kept(source: Path, program: Program) -> set[str]:
    """The nodes of the file that the program marks to stay in float; a rewrite of ORT's adds a suffix after a slash."""
    from hnas.export.graph.marks import kept_float

    names = kept_float(program)
    if not names:
        return set()
    import onnx

    from hnas.export.onnx.names import onnx_nodes

    return onnx_nodes(program, onnx.load(source).graph, names)


def _overrides(
    source: Path, program: Program, ranges: Mapping[str, tuple[float, float]] | None
) -> dict[str, list[dict[str, Any]]]:
    """The ranges by the names of the file's values, in the words of ONNX Runtime's quantiser."""
    if not ranges:
        return {}
    import numpy as np
    import onnx

    from hnas.export.onnx.names import onnx_values

    values = onnx_values(program, onnx.load(source).graph)
    found = {name: ranges[value] for name, value in values.items() if value in ranges}
    return {
        name: [{"rmin": np.float32(min(low, 0.0)), "rmax": np.float32(max(high, 0.0))}]
        for name, (low, high) in found.items()
    }


def _reader(names: Sequence[str], calibration: Sequence[Arrays]) -> Any:
    """The calibration inputs in the shape that ONNX Runtime's quantiser reads: one dict a call, then None."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Arrays] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            sample = next(self._left, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    return Reader()
