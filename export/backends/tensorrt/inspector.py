"""Read the layers of a TensorRT engine, as the engine inspector and trtexec write them.

trtexec writes them with ``--exportLayerInfo`` and ``--exportProfile``. Formats and tactics are included only where the
engine was built with detailed profiling verbosity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hnas.export.device.errors import ExportError
from hnas.export.proof.inspection import Layer, Role, role_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact
    from hnas.export.device.records import JSON

FUSES = "TensorRT fuses pointwise operators with each other, and with a convolution before them"
# Words in "Format/Datatype": "Row major linear FP32", "Thirty-two wide channel vectorized row major Int8 format".
_TYPES = {"fp32": "f32", "float": "f32", "fp16": "f16", "half": "f16", "bf16": "bf16", "int8": "i8", "fp8": "f8"}


def layers(artifact: Artifact, inputs: Sequence[NDArray[Any]], runs: int) -> list[Layer]:
    """Return the layers of the engine on this machine, without times. The engine is built if there is none."""
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
    """
    listed = information.get("Layers") if isinstance(information, dict) else None
    if not isinstance(listed, list) or not all(isinstance(entry, dict | str) for entry in listed):  # case 3
        raise ExportError("layer information has no list 'Layers'; it is what trtexec --exportLayerInfo writes")
    times = _times(profile)
    return [_layer(entry if isinstance(entry, dict) else {"Name": entry}, times) for entry in listed]  # cases 1, 2


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
    parts = [part.strip() for part in name.split(" + ")] if " + " in name else []
    precision = next(filter(None, types), "")
    return Layer(name, kind or "unknown", _role(name, kind), precision, times.get(name), tactic, tuple(parts))


def _ends(entry: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    found = entry.get(side)
    return [end for end in found if isinstance(end, dict)] if isinstance(found, list) else []


def _precision(end: Mapping[str, Any]) -> str:
    """Return the precision of a tensor: from "Format/Datatype" in TensorRT 8 and 9, else from "Datatype"."""
    said = " ".join(str(end.get(key, "")) for key in ("Format/Datatype", "Datatype", "Format")).lower()
    return next((short for word, short in _TYPES.items() if word in said), "")


def _role(name: str, kind: str) -> Role:
    if kind.lower() in ("reformat", "noop") or name.startswith(("Reformatting CopyNode", "reformat", "Reformat")):
        return "layout"
    if kind in ("Scale", "PointWise", "PointWiseV2", "ElementWise"):
        return "arithmetic"
    return role_of(kind)
