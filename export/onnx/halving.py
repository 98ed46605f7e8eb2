"""Choose the nodes of an ONNX file that stay in fp32 when the rest computes in fp16.

``choose_kept(model, samples, least_db=40)`` runs the file on the samples, in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.device.errors import ExportError
from hnas.export.onnx.casts import LARGEST, float_values, in_half, prepare, write_types
from hnas.export.onnx.walk import LAYERS
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from hnas.export.device.records import JSON
    from hnas.export.graph.samples import Sample, Samples

_ROOM = 2.0  # values of other inputs may be this many times larger than those of the samples
_SEEN = 64  # samples on which values are observed
_JUDGED = 8  # samples on which the loss is judged
_MARGIN_DB = 3.0
_LARGEST_DB = 200.0
_SUMS = {  # operator -> power of the terms that it sums
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum", "ReduceL1"), 1),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "ReduceL2"), 2),
    **dict.fromkeys(("ReduceSumSquare", "LpNormalization"), 2),
}
OVERFLOW, SUM, VANISHED, LOSS = (
    "its values overflow fp16",
    "its sum overflows fp16",
    "its constant is 0 in fp16",
    "loss",
)


@dataclass(frozen=True)
class HalfPlan:
    """Describe which nodes compute in fp32.

    kept: node -> the reason.
    layers, kept_layers: the number of convolutions and matrix products, and of those in ``kept``.
    sqnr_db: SQNR of the worst output where every other value is rounded to fp16.
    """

    kept: Mapping[str, str]
    layers: int
    kept_layers: int
    sqnr_db: float

    def to_json(self) -> dict[str, JSON]:
        """Return the plan for an artifact's notes."""
        counts = {"layers": self.layers, "kept_layers": self.kept_layers}
        return {"fp32": dict(self.kept), **counts, "sqnr_db": round(self.sqnr_db, 1)}


def choose_kept(model: onnx.ModelProto, samples: Samples, least_db: float) -> HalfPlan:
    """Return the nodes that must stay in fp32 so that the outputs keep ``least_db`` on the samples.

    samples: inputs, at least one. Values are observed on the first 64, the loss is judged on the first 8.

    1. A value that a node reads or makes is above half of the range of fp16: the node stays.
    2. The terms that a norm, pool or reduction sums are above half of the range together: the node stays.
    3. A constant of one element, such as an epsilon, becomes 0 in fp16: its readers stay.
    4. The outputs lose more than ``least_db``: the nodes that lose most stay, with the nodes before them. Twice as many
       in each round. Of an output of integers, such as that of ArgMax, the nearest float values before it are judged.

    Raises:
        ExportError: every convolution and matrix product would have to stay.
    """
    model = prepare(model)
    names = sorted(float_values(model) - {value.name for value in model.graph.input})
    kept = _beyond_range(model, samples[:_SEEN], names)
    expected = _Values(model, samples[:_JUDGED], _judged(model, {*names}))
    level = _output_level(model, kept, samples, expected)
    count = 1
    while level < least_db + _MARGIN_DB:
        worst = _losing(model, kept, samples[:_JUDGED], names, count)
        if not worst:
            break
        kept |= worst
        level = _output_level(model, kept, samples, expected)
        count *= 2
    layers = [node.name for node in model.graph.node if node.op_type in LAYERS]
    held = [name for name in layers if name in kept]
    if layers and len(held) == len(layers):
        raise ExportError(
            f"fp16 cannot hold this network: all {len(layers)} layers overflow, or lose more than {least_db:g} dB "
            f"({held[0]}: {kept[held[0]]}); choose fp32"
        )
    return HalfPlan(kept, len(layers), len(held), level)


def _beyond_range(model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> dict[str, str]:
    """Return the nodes of cases 1 to 3, with the reasons."""
    peaks, sums = _observe(model, samples, names)
    constants = {value.name: value for value in model.graph.initializer}
    kept: dict[str, str] = {}
    for node in model.graph.node:
        read = [constants[name] for name in node.input if name in constants]
        largest = max((peaks.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if largest * _ROOM > LARGEST or (node.op_type != "Clip" and any(map(_too_large, read))):
            kept[node.name] = OVERFLOW  # case 1
        elif sums.get(node.name, 0.0) * _ROOM > LARGEST:
            kept[node.name] = SUM  # case 2
        elif any(map(_vanishes, read)):
            kept[node.name] = VANISHED  # case 3
    return kept


def _observe(
    model: onnx.ModelProto, samples: Samples, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the largest absolute number of each value, and the largest sum of terms of each node that sums."""
    summing = [node for node in model.graph.node if node.op_type in _SUMS]
    inputs, floats = [value.name for value in model.graph.input], float_values(model)
    constants = {value.name: value for value in model.graph.initializer}
    peaks: dict[str, float] = {}
    sums: dict[str, float] = {}
    for sample, made in zip(samples, _run(model, samples, names), strict=True):
        fed = {name: value for name, value in _feed(inputs, sample).items() if name in floats}
        values = {**fed, **made}
        for name, value in values.items():
            peaks[name] = max(peaks.get(name, 0.0), _peak(value))
        for node in summing:
            if node.input[0] in values:
                found = _terms(node, values[node.input[0]], constants)
                sums[node.name] = max(sums.get(node.name, 0.0), found)
    return peaks, sums


def _peak(value: NDArray[Any]) -> float:
    """Return the largest absolute number; infinity counts, NaN does not."""
    return float(np.nanmax(np.abs(value))) if value.size and not np.isnan(value).all() else 0.0


def _terms(node: onnx.NodeProto, value: NDArray[Any], constants: Mapping[str, onnx.TensorProto]) -> float:
    """Return the largest sum of absolute terms of a node, over the axes that it reduces or normalises."""
    terms = np.abs(value.astype(np.float64)) ** _SUMS[node.op_type]
    if not terms.size:
        return 0.0
    if node.op_type == "AveragePool":
        return float(terms.max()) * math.prod(_window(node))
    return float(terms.sum(axis=_axes(node, value.ndim, constants)).max())


def _axes(node: onnx.NodeProto, ndim: int, constants: Mapping[str, onnx.TensorProto]) -> tuple[int, ...]:
    """Return the axes of a sum. A reduction whose axes are computed counts as one over all axes."""
    told = {each.name: each for each in node.attribute}
    if node.op_type in ("LayerNormalization", "LpNormalization"):
        first = (told["axis"].i if "axis" in told else -1) % ndim
        return tuple(range(first, ndim)) if node.op_type == "LayerNormalization" else (first,)
    if not node.op_type.startswith("Reduce"):
        return tuple(range(2, ndim))
    asked = _asked_axes(node, told, constants)
    if not asked and "noop_with_empty_axes" in told and told["noop_with_empty_axes"].i:
        return ()
    return tuple(axis % ndim for axis in asked) or tuple(range(ndim))


def _asked_axes(
    node: onnx.NodeProto, told: Mapping[str, onnx.AttributeProto], constants: Mapping[str, onnx.TensorProto]
) -> Sequence[int]:
    """Return the axes that a reduction states, in an attribute or as a constant; none if it states none."""
    import onnx

    if "axes" in told:
        return list(told["axes"].ints)
    given = [constants[name] for name in node.input[1:2] if name in constants]
    return onnx.numpy_helper.to_array(given[0]).tolist() if given else []


def _window(node: onnx.NodeProto) -> Sequence[int]:
    return next((list(each.ints) for each in node.attribute if each.name == "kernel_shape"), [1])


def _too_large(constant: onnx.TensorProto) -> bool:
    values = _floats(constant)
    return values is not None and bool((np.abs(values) > LARGEST).any())


def _vanishes(constant: onnx.TensorProto) -> bool:
    values = _floats(constant)
    return values is not None and values.size == 1 and bool((values != 0).all() and (in_half(values) == 0).all())


def _floats(constant: onnx.TensorProto) -> NDArray[Any] | None:
    import onnx

    return onnx.numpy_helper.to_array(constant) if constant.data_type == onnx.TensorProto.FLOAT else None


def _losing(
    model: onnx.ModelProto, kept: Collection[str], samples: Samples, names: Sequence[str], count: int
) -> dict[str, str]:
    """Case 4: return ``count`` nodes that lose most from their inputs to their outputs, and the nodes before them."""
    rounded = write_types(model, kept, simulate=True)
    noise = _Noise()
    for want, got in zip(_run(model, samples, names), _run(rounded, samples, names), strict=True):
        noise.add(want, got)
    levels = noise.levels()
    makers = {name: node for node in model.graph.node for name in node.output}

    def before(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [makers[name] for name in node.input if name in makers]

    def lost(node: onnx.NodeProto) -> float:
        ends = [[levels.get(name, _LARGEST_DB) for name in side] for side in (node.input, node.output)]
        return min(ends[0], default=_LARGEST_DB) - min(ends[1], default=_LARGEST_DB)

    left = [node for node in model.graph.node if any(each.name not in kept for each in (node, *before(node)))]
    worst = sorted(left, key=lost, reverse=True)[:count]
    found = {each.name for node in worst for each in (node, *before(node))}
    return dict.fromkeys(sorted(found - set(kept)), LOSS)


@dataclass
class _Noise:
    """Sum the power of values and of their errors over samples."""

    signal: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)

    def add(self, want: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> None:
        """Add the values of one sample."""
        for name, value in want.items():
            exact = np.nan_to_num(value.astype(np.float64), posinf=0.0, neginf=0.0)
            wrong = np.where(np.isfinite(value), got[name].astype(np.float64) - exact, 0.0)
            self.signal[name] = self.signal.get(name, 0.0) + float(np.square(exact).sum())
            self.error[name] = self.error.get(name, 0.0) + float(np.square(wrong).sum())

    def levels(self) -> dict[str, float]:
        """Return the SQNR of each value in dB, between -200 and 200."""
        return {name: _decibel(self.signal[name], self.error[name]) for name in self.signal}


def _decibel(signal: float, error: float) -> float:
    if error == 0.0:
        return _LARGEST_DB
    if signal == 0.0 or not math.isfinite(error):
        return -_LARGEST_DB
    return max(-_LARGEST_DB, min(_LARGEST_DB, 10.0 * math.log10(signal / error)))


class _Values(list[dict[str, "NDArray[Any]"]]):
    """Hold the values ``names`` of a model, one entry for each sample."""

    def __init__(self, model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> None:
        super().__init__(_run(model, samples, names))


def _judged(model: onnx.ModelProto, floats: Collection[str]) -> list[str]:
    """Return the float outputs, and for each other output the nearest float values before it, such as class scores."""
    makers = {name: node for node in model.graph.node for name in node.output}
    left, found = [value.name for value in model.graph.output], dict[str, None]()
    seen = set[str]()
    while left:
        name = left.pop(0)
        if name in floats:
            found[name] = None
        elif name in makers and name not in seen:
            left += makers[name].input
        seen.add(name)
    return list(found)


def _output_level(model: onnx.ModelProto, kept: Collection[str], samples: Samples, expected: _Values) -> float:
    """Return the SQNR of the worst value of ``expected`` where the nodes that are not ``kept`` round to fp16."""
    noise, names = _Noise(), list(expected[0])
    rounded = write_types(model, kept, simulate=True)
    for want, got in zip(expected, _run(rounded, samples[: len(expected)], names), strict=True):
        noise.add(want, got)
    return min(noise.levels().values(), default=_LARGEST_DB)


def _run(model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the values ``names`` of a model for each sample. Nothing is fused, so every value exists."""
    import onnx
    import onnxruntime as ort

    if not names:
        yield from ({} for _ in samples)
        return
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    with quiet():
        session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    for sample in samples:
        yield dict(zip(names, session.run(list(names), _feed(inputs, sample)), strict=True))


def _feed(names: Sequence[str], sample: Sample) -> dict[str, NDArray[Any]]:
    return dict(zip(names, sample, strict=True))
