"""Compile a static torch module or an ONNX file to an artifact, verify the artifact, run it and measure it.

``from hnas import export; export.compile(net, example_inputs, device="openvino-cpu", path="net")``. A name is imported
when it is first used: reading, checking and measuring an artifact do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnas.export.compiling.assignment import compile_mixed
    from hnas.export.compiling.compiler import Compiler
    from hnas.export.compiling.options import CompileOptions, MixedOptions
    from hnas.export.compiling.pipeline import compile, load
    from hnas.export.device.artifact import Artifact
    from hnas.export.device.errors import ExportError, Unavailable
    from hnas.export.diagnosis.profiling import layers
    from hnas.export.proof.inspection import Inspection
    from hnas.export.proof.measurement import Comparison, Measurement
    from hnas.export.proof.slowdown import slower_layers
    from hnas.export.proof.timing import compare, compare_many, measure
    from hnas.export.proof.verification import LIMITS, Check, Limits, check
    from hnas.export.remote.worker import Worker

__all__ = [
    "LIMITS",
    "Artifact",
    "Check",
    "Comparison",
    "CompileOptions",
    "Compiler",
    "ExportError",
    "Inspection",
    "Limits",
    "Measurement",
    "MixedOptions",
    "Unavailable",
    "Worker",
    "check",
    "compare",
    "compare_many",
    "compile",
    "compile_mixed",
    "layers",
    "load",
    "measure",
    "slower_layers",
]

_HOME = {
    "device.artifact": ("Artifact",),
    "compiling.assignment": ("compile_mixed",),
    "compiling.compiler": ("Compiler",),
    "device.errors": ("ExportError", "Unavailable"),
    "proof.inspection": ("Inspection",),
    "proof.measurement": ("Comparison", "Measurement"),
    "proof.timing": ("compare", "compare_many", "measure"),
    "compiling.options": ("CompileOptions", "MixedOptions"),
    "compiling.pipeline": ("compile", "load"),
    "diagnosis.profiling": ("layers",),
    "proof.slowdown": ("slower_layers",),
    "proof.verification": ("LIMITS", "Check", "Limits", "check"),
    "remote.worker": ("Worker",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"hnas.export.{module}"), name)
    raise AttributeError(f"module 'hnas.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
