"""Read the layers of a compiled OpenVINO model: its execution graph, timed by its performance counters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hnas.export.device.signature import check_inputs
from hnas.export.proof.inspection import Layer, role_of, typical_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

FUSES = "OpenVINO fuses arithmetic and activations with a convolution or matrix product that nothing else reads"
_NOT_EXECUTED = ("Const", "Constant", "Parameter", "Input", "Result", "Output")


def layers(artifact: Artifact, inputs: Sequence[NDArray[Any]], runs: int) -> list[Layer]:
    """Return the executed steps of the execution graph, with the properties of the runner.

    ``parts`` are the layers of the model file that a step fuses.
    """
    import openvino

    from hnas.export.device.runtimes.openvino import compiled_model, require

    require(artifact.precision)
    compiled = compiled_model(artifact, PERF_COUNT=True)
    request = compiled.create_infer_request()
    for index, value in enumerate(check_inputs(inputs, artifact.inputs)):
        request.set_input_tensor(index, openvino.Tensor(value))
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        request.infer()
        for counter in request.get_profiling_info():
            if counter.status == openvino.ProfilingInfo.Status.EXECUTED:
                times[counter.node_name].append(counter.real_time.total_seconds() * 1e6)
    steps = compiled.get_runtime_model().get_ordered_ops()
    said = {step.get_friendly_name(): {k: v.astype(str) for k, v in step.get_rt_info().items()} for step in steps}
    return [
        _layer(name, info, typical_time(times[name]))
        for name, info in said.items()
        if name in times and info.get("layerType") not in _NOT_EXECUTED
    ]


def _layer(name: str, info: dict[str, str], microseconds: float) -> Layer:
    kind, parts = info.get("layerType", ""), [part for part in info.get("originalLayersNames", "").split(",") if part]
    precision = _arithmetic(info)
    implementation = info.get("primitiveType", "").removesuffix(f"_{precision.upper()}").removesuffix(f"_{precision}")
    product = any(word in part for part in parts for word in ("MatMul", "Convolution"))  # also in a subgraph
    what = "kernel" if product else role_of(kind)
    return Layer(name, kind, what, precision, microseconds, implementation, tuple(parts))


def _arithmetic(info: dict[str, str]) -> str:
    """Return the precision in which a layer computes.

    A FullyConnected with int8 weights may compute in float. Then primitiveType names the precision, not
    runtimePrecision.
    """
    floating = info.get("layerType") == "FullyConnected" and info.get("primitiveType", "").endswith("_f32")
    return "f32" if floating else info.get("runtimePrecision", "")
