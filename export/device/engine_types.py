"""Decide how a TensorRT engine gets its types, ``type_flags(artifact, (10, 3))``, and name the nodes of its layers.

A network is strongly typed on TensorRT 10 and 11: the ONNX file states the type of every value. TensorRT 8 is told
which precisions it may use. The version on the device decides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, List, Mapping, Sequence, Tuple

from hnas.export.device.errors import ExportError, printable

if TYPE_CHECKING:
    from pathlib import Path

    from hnas.export.device.artifact import Artifact

    Version = Tuple[int, ...]

OLD_MODEL = "model-trt8.onnx"  # int8 for TensorRT 8, whose networks have no types
TYPES = "types"  # the note of an artifact whose file states the type of every value
NO_HALF = "its operator or branch has no fp16"  # why a layer computes in fp32 by itself
TYPED = (10, 0)  # the first version that builds strongly typed; 11 knows nothing else
_FLAGS = {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}


def parse_version(text: str) -> Version:
    """Return major and minor of a version: (10, 3) for "10.3.0"."""
    return tuple(int(part) for part in text.split(".")[:2])


def nodes_of_layer(metadata: Any) -> List[str]:
    """Return the ONNX nodes that a layer of an engine or network was made from; empty before TensorRT 8.6.

    metadata: the layer's metadata as TensorRT writes it; None if the layer has none.

    Example: ``nodes_of_layer("[ONNX Layer: conv][ONNX Layer: relu]")`` is ``["conv", "relu"]``.
    """
    return re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(metadata or ""))


def model_for(artifact: Artifact, version: Version) -> Path:
    """Return the file of ``artifact`` that a TensorRT ``version`` builds."""
    old = OLD_MODEL in artifact.files and version < TYPED
    return artifact.path / OLD_MODEL if old else artifact.model


def kept_single(artifact: Artifact) -> list[str]:
    """Return the layers that compute in fp32 although the artifact is fp16 or int8."""
    types = artifact.notes.get(TYPES)
    return held_names(types) if isinstance(types, dict) else []


def held_names(types: Mapping[str, Any]) -> list[str]:
    """Return the layers that a note on types holds in fp32, without those that any version computes in fp32."""
    kept = types.get("fp32", {})
    return [name for name in kept if not isinstance(kept, dict) or kept[name] != NO_HALF]


def is_typed(artifact: Artifact, version: Version) -> bool:
    """Return whether to build strongly typed: TensorRT 11 always, TensorRT 10 if the file states its types."""
    stated = artifact.precision == "fp32" or TYPES in artifact.notes
    return version >= (11, 0) or (version >= TYPED and stated)


def type_flags(artifact: Artifact, version: Version) -> list[str]:
    """Return the flags of trtexec for the types of an engine of ``artifact``."""
    return precision_flags(artifact.precision, version, kept_single(artifact), typed=is_typed(artifact, version))


def precision_flags(precision: str, version: Version, single: Sequence[str] = (), *, typed: bool = True) -> list[str]:
    """Return the flags of trtexec for the types of an engine.

    ``single``: layers that must compute in fp32. A strongly typed network states them itself.

    1. TensorRT 11: none, the file states the types.
    2. TensorRT 10: ``--stronglyTyped``.
    3. Older versions, and files without types: the precisions that TensorRT may choose from.

    Raises:
        ExportError: case 3 has no form for the name of a layer.
    """
    if typed and version >= TYPED:  # cases 1 and 2
        return ["--noTF32"] if version >= (11, 0) else ["--stronglyTyped", "--noTF32"]
    for name in single:
        if set(":,") & set(name):
            raise ExportError(
                f"{printable(name)[:60]} must compute in fp32, and trtexec takes no name with ':' or ','; "
                "rename the node, or use a device with TensorRT's Python bindings"
            )
    spec = ",".join(f"{name}:fp32" for name in single)
    obeyed = ["--precisionConstraints=obey", f"--layerPrecisions={spec}"] if single else []
    return [*_FLAGS[precision], "--noTF32", *obeyed]  # case 3
