"""Read the layers of a TensorRT engine, as the engine inspector and trtexec write them.

trtexec writes them with ``--exportLayerInfo`` and ``--exportProfile``. Formats and tactics are included only where the
engine was built with detailed profiling verbosity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hnas.export.device.engine_types import nodes_of_layer
from hnas.export.device.errors import ExportError
from hnas.export.proof.inspection import Layer, Role, role_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact
    from hnas.export.device.records import JSON

FUSES = "TensorRT fuses pointwise operators with each other, and with a convolution before them"
# Words in "Format/Datatype": "Row major linear FP32", "Thirty-two wide channel vectorized row major Int8 format".
_TYPES = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp32": "f32",
    "float": "f32",
    "fp16": "f16",
    "half": "f16",
    "int8": "i8",
    "fp8": "f8",
}


def layers(artifact: Artifact, inputs: Sequence[NDArray[Any]], runs: int) -> list[Layer]:
    """Return the layers of the engine on this machine, without times. The engine is built if there is none."""
    if find_spec("tensorrt") is None:
        raise ExportError("the layers of an engine need TensorRT's Python bindings, which are not installed here")
    import tensorrt

    from hnas.export.device import runtimes

    del inputs, runs
    runner: Any = runtimes.load("tensorrt").load(artifact)
    inspector = runner._engine.create_engine_inspector()
    said = inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)
    return from_json(json.loads(said))


def from_json(information: JSON, profile: JSON = None) -> list[Layer]:
    """Return the layers in a file of ``--exportLayerInfo``, with the times in a file of ``--exportProfile``.

    1. {"Layers": [{"Name", "LayerType", "Inputs", "Outputs", "TacticName", "Metadata"}, ...]}: detailed verbosity.
    2. {"Layers": ["name", ...]}: default verbosity; names only, and reformats are recognised by their names.
    3. Anything else: ExportError in one line.

    TensorRT 8 and 10 list the names of inputs and outputs in "Bindings", 11 describes them in "I/O Tensors". Neither is
    read. A tensor of a layer has "Format/Datatype" until TensorRT 10, and "Format" and "Datatype" since 11.
    """
    times = _times(profile)
    return [_layer(entry, times) for entry in _entries(information)]


def layers_above(information: JSON, precision: str, single: Collection[str], quantised: Collection[str]) -> list[str]:
    """Return a sentence on each layer of an engine that computes in a higher precision than the artifact states.

    information: as for ``from_json``. Layers without types are passed over.
    single: nodes of the file that are stated as fp32.
    quantised: nodes of the file that are stated as int8.

    1. A layer of ``quantised`` that reads no int8.
    2. In fp16 or int8, any other layer that reads and writes only fp32, and is none of ``single``. Reformats and casts
       are no layers that compute.
    """
    found: list[str] = []
    for entry in _entries(information):
        layer = _layer(entry, {})
        # Tensors of other types, such as Bool and Int32, tell nothing about the precision.
        reads, writes = (
            list(filter(None, (_precision(end) for end in _ends(entry, side)))) for side in ("Inputs", "Outputs")
        )
        if layer.role in ("layout", "quantise") or not reads:
            continue
        parts = set(layer.parts or (layer.name,))
        if parts & set(quantised):
            if "i8" not in reads:  # case 1
                found.append(f"{layer.name} runs in {reads[0]}, the artifact states int8")
        elif precision in ("fp16", "int8") and {*reads, *writes} == {"f32"} and not parts & set(single):  # case 2
            found.append(f"{layer.name} runs in f32, the artifact states fp16")
    return found


def _entries(information: JSON) -> list[dict[str, Any]]:
    listed = information.get("Layers") if isinstance(information, dict) else None
    if not isinstance(listed, list) or not all(isinstance(entry, dict | str) for entry in listed):  # case 3
        raise ExportError("layer information has no list 'Layers'; it is what trtexec --exportLayerInfo writes")
    return [entry if isinstance(entry, dict) else {"Name": entry} for entry in listed]  # cases 1, 2


def _times(profile: JSON) -> dict[str, float]:
    """Return microseconds by layer name; the first entry of a profile holds the number of runs."""
    if profile is None:
        return {}
    if not isinstance(profile, list) or not all(isinstance(entry, dict) for entry in profile):
        raise ExportError("the profile is not a list of layers; it is what trtexec --exportProfile writes")
    found = [(entry.get("name"), entry.get("medianMs", entry.get("averageMs"))) for entry in profile]
    return {name: float(ms) * 1e3 for name, ms in found if isinstance(name, str) and isinstance(ms, int | float)}


def _layer(entry: Mapping[str, Any], times: Mapping[str, float]) -> Layer:
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    types = [_precision(end) for side in ("Inputs", "Outputs") for end in _ends(entry, side)]
    tactic = str(entry.get("TacticName", entry.get("TacticValue", "")))
    parts = nodes_of_layer(entry.get("Metadata")) or _parts_of(name)  # names of fused kernels tell nothing
    precision = next(filter(None, types), "")
    return Layer(name, kind or "unknown", _role(name, kind), precision, times.get(name), tactic, tuple(parts))


def _parts_of(name: str) -> list[str]:
    """Return the layers of the file in the name of a fused one: "a + PWN(PWN(b), c)" or "a || b"; else nothing."""
    parts = []
    between = r" \+ | \|\| |, " if "PWN(" in name else r" \+ | \|\| "
    for part in re.split(between, name.replace("PWN(", "")):
        end = len(part)
        while part.count(")", 0, end) > part.count("(", 0, end) and part[:end].endswith(")"):
            end -= 1
        parts.append(part[:end].strip())
    return parts if parts != [name] else []


def _ends(entry: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    found = entry.get(side)
    return [end for end in found if isinstance(end, dict)] if isinstance(found, list) else []


def _precision(end: Mapping[str, Any]) -> str:
    """Return the precision of a tensor. The type is more exact than a format such as "Channel major FP16 format"."""
    for key in ("Datatype", "DataType", "Format/Datatype", "Format"):
        said = str(end.get(key, "")).lower()
        known = next((short for word, short in _TYPES.items() if word in said), "")
        if known:
            return known
    return ""


def _role(name: str, kind: str) -> Role:
    if kind.lower() in ("reformat", "noop") or name.startswith(("Reformatting CopyNode", "reformat", "Reformat")):
        return "layout"
    if kind in ("Scale", "PointWise", "PointWiseV2", "ElementWise"):
        return "arithmetic"
    return role_of(kind)
