"""Read the layers of an ONNX Runtime session: the nodes of the optimised graph, timed by its profiler."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hnas.export.device.signature import check_inputs
from hnas.export.proof.inspection import Layer, role_of, typical_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

FUSES = "ONNX Runtime fuses relu, clip, leaky relu, sigmoid, tanh and hard sigmoid with a convolution, and nothing else"
_TYPES = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "uint8": "u8", "int8": "i8", "double": "f64"}
_EVENT = "_kernel_time"


def layers(artifact: Artifact, inputs: Sequence[NDArray[Any]], runs: int) -> list[Layer]:
    """Return the nodes that ran, with the session options of the runner.

    ``parts`` is empty, because ONNX Runtime gives a fused node only the name of its first part.
    """
    import onnxruntime as ort

    from hnas.export.device.runtimes.onnxruntime import session_options

    with TemporaryDirectory() as folder:
        options = session_options(artifact.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(artifact.model), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        feed = dict(zip(names, check_inputs(inputs, artifact.inputs), strict=True))
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return from_events(events)


def from_events(events: Iterable[Mapping[str, Any]]) -> list[Layer]:
    """Return the layers in a profile, in the order of the first run.

    events: the profile as read from JSON; events of one node become one layer.
    """
    times: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
            times[event["name"]].append(float(event["dur"]))
            seen.setdefault(event["name"], event["args"])
    return [_layer(name.removesuffix(_EVENT), args, typical_time(times[name])) for name, args in seen.items()]


def _layer(name: str, args: Mapping[str, Any], microseconds: float) -> Layer:
    kind = args["op_name"]
    types = [next(iter(value)) for value in args.get("input_type_shape", []) if value]
    precision = next((_TYPES[given] for given in types if given in _TYPES), "")
    provider = args.get("provider", "").removesuffix("ExecutionProvider")
    return Layer(name, kind, role_of(kind), precision, microseconds, provider)
