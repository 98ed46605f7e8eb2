"""Quantise an ONNX file with quantise/dequantise pairs: ``quantise_onnx(source, target, samples, policy, program)``.

Each backend has its own policy, and a device profile may override the policy. `hnas.export.int8.ladder` fits weights to
the samples before this step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from hnas.export.device.records import JSON
from hnas.export.onnx.apart import float_nodes
from hnas.export.onnx.biases import EDIT, correct_biases
from hnas.export.onnx.ranges import file_ranges
from hnas.export.onnx.source import OnnxSource
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Sample, Samples
    from hnas.export.int8.ranges import Range
    from hnas.hw_profiles import Override


@dataclass(frozen=True)
class QDQ:
    """Define the int8 policy of a runtime that reads quantise/dequantise pairs. Weights are s8 per channel.

    operators: ONNX operators to quantise.
    activations: type of activations: "u8" or "s8".
    symmetric: True fixes the zero point of every activation at 0.
    bias: True quantises biases to int32.
    outputs: False quantises only the inputs of layers, and the shortcut of a residual addition where a layer reads it
        too. TensorRT's documentation asks for this: its fused layers write int8 only for a reader that wants int8.
    ranges: calibration method. ONNX Runtime's quantiser does minmax. `hnas.export.int8.calibration` does the others for
        a program, `hnas.export.onnx.ranges` for a file.
    """

    operators: tuple[str, ...]
    activations: Literal["u8", "s8"]
    symmetric: bool
    bias: bool
    ranges: str = "minmax"
    outputs: bool = True

    def on(self, override: Override | None) -> QDQ:
        """Return the policy with a device's override applied."""
        if override is None:
            return self
        left = tuple(name for name in self.operators if name not in override.leave_float)
        return replace(self, operators=left, ranges=override.ranges or self.ranges)

    def to_json(self) -> dict[str, JSON]:
        """Return the policy for an artifact's notes."""
        return {**asdict(self), "operators": list(self.operators), "weights": "s8 per channel"}


def quantise_onnx(
    source: Path,
    target: Path,
    samples: Samples,
    policy: QDQ,
    program: Program | OnnxSource,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    spare: Callable[[Path], Collection[str]] | None = None,
) -> list[JSON]:
    """Quantise the float file ``source`` under ``policy``, and write it to ``target``.

    Returns a record of each value of an ONNX file whose parts are kept apart, see `hnas.export.onnx.apart`.

    samples: calibration inputs.
    program: the program or the user's ONNX file that ``source`` was made from. An ONNX file has no float marks. Its
        biases are corrected if this is one of its edits.
    ranges: range of each value of ``program``, by name; None: those of the values of the file, by the method of the
        policy.
    spare: returns nodes that stay in float, by their names in the prepared file at the path that it is given.

    1. An operator of the policy with a constant weight, or without weights: quantised.
    2. MatMul of two activations: float. ONNX Runtime 1.31 fuses its quantised form into a kernel with wrong results
       (2 dB instead of 38 dB on a hybrid network). The kernel saves no time on small attention layers. MatMul with a
       constant of three or more axes: float. ONNX Runtime 1.31 does not run it with a scale per channel.
    3. Additions that only float operators read, such as residuals before a layer norm: float. This gains 5 dB on a
       small ViT.
    4. Nodes that the program marks to stay in float, those of ``spare``, and all other operators: float. In an ONNX
       file, nodes around a value with unlike parts.
    5. ``ranges`` has the value: used; otherwise the range by the method of the policy over ``samples``.
    """
    import numpy as np
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    types = {"u8": quantization.QuantType.QUInt8, "s8": quantization.QuantType.QInt8}
    options: dict[str, Any] = {"ActivationSymmetric": policy.symmetric, "WeightSymmetric": True}
    kept, overrides, apart = set[str](), dict[str, list[dict[str, Any]]](), list[JSON]()
    if not isinstance(program, OnnxSource):
        kept, overrides = _kept(source, program), _overrides(source, program, ranges)
    if not policy.outputs:
        options["OpTypesToExcludeOutputQuantization"] = list(policy.operators)
    # The mask of an attention holds infinities; the sum that reads it stays in float.
    with quiet(), np.errstate(invalid="ignore"), TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        _prepare(prepared)
        graph = onnx.load(prepared).graph
        constants = {value.name for value in graph.initializer if len(value.dims) < 3}
        free = [
            node.name
            for node in graph.node  # cases 2 and 4
            if (node.op_type == "MatMul" and not constants & set(node.input)) or node.name.partition("/")[0] in kept
        ]
        free += sorted(set(spare(prepared)) - set(free)) if spare is not None else []
        if isinstance(program, OnnxSource):
            spared, apart = float_nodes(prepared, samples)
            free += sorted(spared - set(free))
            _edit(prepared, samples, program, free, policy)
        overrides = overrides or _file_overrides(prepared, samples, policy.ranges)
        options |= {"QuantizeBias": policy.bias, "TensorQuantOverrides": overrides}
        stay = frozenset(free)
        free += _float_sums(graph, {*policy.operators, "Reshape", "Transpose"}, {*free})
        quantization.quantize_static(
            str(prepared),
            str(target),
            _reader([value.name for value in graph.input], _needed(samples, graph, policy, overrides)),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=types[policy.activations],
            weight_type=types["s8"],
            per_channel=True,
            op_types_to_quantize=list(policy.operators),  # case 1
            nodes_to_exclude=free,
            extra_options=options,
        )
    if not policy.outputs:
        _read_float(target, stay)
    return apart


def _read_float(path: Path, stay: Collection[str]) -> None:
    """Let the nodes ``stay`` read each value before its quantiser. ONNX Runtime's quantiser changes it for all readers.

    Other nodes read the dequantised value, such as a residual addition whose shortcut a layer reads too. TensorRT fuses
    this addition with the layer that makes its other input then, and the result can be int8.
    """
    import onnx

    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for place, name in enumerate(node.input) if node.name in stay else ():
            after = makers.get(name)
            before = makers.get(after.input[0]) if after is not None and after.op_type == "DequantizeLinear" else None
            if before is not None and before.op_type == "QuantizeLinear":
                node.input[place] = before.input[0]
    onnx.save(model, path)


def quantised_nodes(path: Path) -> list[str]:
    """Return the layers of a quantised file that read int8."""
    import onnx

    nodes = onnx.load(path).graph.node
    made = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return [node.name for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul") and made & set(node.input[:1])]


def _prepare(path: Path) -> None:
    """Change a file so that it can be quantised.

    1. Every node has a unique name, by which it can be excluded. The file may have nodes without names.
    2. Every reader of a weight has its own copy. ONNX Runtime 1.31 does not open a file whose int8 weight is shared on
       an x86 CPU without VNNI (session.x64quantprecision).
    """
    import onnx

    model, taken = onnx.load(path), {""}
    _copy_shared_weights(model.graph)
    for index, node in enumerate(model.graph.node):  # excluded nodes are found by name, so existing names stay
        if node.name in taken:
            node.name = f"unnamed_{index}"
        taken.add(node.name)
    onnx.save(model, path)


def _copy_shared_weights(graph: onnx.GraphProto) -> None:
    """Case 2: copy each weight of two or more axes for its second and later readers."""
    weights = {value.name: value for value in graph.initializer if len(value.dims) > 1}
    seen = set[str]()
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if name in weights and name in seen:
                copy = graph.initializer.add()
                copy.CopyFrom(weights[name])
                copy.name = node.input[place] = f"{name}_{index}_{place}"
            seen.add(name)


def _float_sums(graph: onnx.GraphProto, integer: set[str], free: set[str]) -> list[str]:
    """Case 3: return the additions that only float operators read; ``free`` are float already."""
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
    """Return the nodes of the file that the program marks as float; ONNX Runtime may add a suffix after a slash."""
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
    """Case 5: return the ranges by names of the file, in the format of ONNX Runtime's quantiser."""
    if not ranges:
        return {}
    import onnx

    from hnas.export.onnx.names import onnx_values

    values = onnx_values(program, onnx.load(source).graph)
    return _as_overrides({name: ranges[value] for name, value in values.items() if value in ranges})


def _edit(prepared: Path, samples: Samples, source: OnnxSource, free: Collection[str], policy: QDQ) -> None:
    """Apply the edits of an ONNX file to the prepared file. ``free`` and operators outside the policy stay in float."""
    if EDIT in source.edits:
        import onnx

        nodes = onnx.load(prepared).graph.node
        others = [node.name for node in nodes if node.op_type not in policy.operators]
        correct_biases(prepared, samples, {*free, *others})


def _file_overrides(prepared: Path, samples: Samples, method: str) -> dict[str, list[dict[str, Any]]]:
    """Case 5: return the ranges of the values of the file; empty for minmax, which ONNX Runtime's quantiser does."""
    return {} if method == "minmax" else _as_overrides(file_ranges(prepared, samples, method))


def _as_overrides(ranges: Mapping[str, Range]) -> dict[str, list[dict[str, Any]]]:
    """Return ranges by the names of a file in the format of ONNX Runtime's quantiser."""
    import numpy as np

    return {
        name: [{"rmin": np.float32(min(low, 0.0)), "rmax": np.float32(max(high, 0.0))}]
        for name, (low, high) in ranges.items()
    }


def _needed(
    samples: Samples, graph: onnx.GraphProto, policy: QDQ, overrides: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Samples:
    """Return the samples that ONNX Runtime's quantiser has to run: one if the range of every value is known."""
    nodes = [node for node in graph.node if node.op_type in policy.operators]
    read = {name for node in nodes for name in (*node.input, *node.output) if name}
    return samples[:1] if read - {value.name for value in graph.initializer} <= overrides.keys() else samples


def _reader(names: Sequence[str], samples: Samples) -> Any:
    """Return the samples as ONNX Runtime's quantiser reads them: one dict per call, then None."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Sample] = iter(samples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            sample = next(self._left, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    return Reader()
