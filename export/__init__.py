"""A static torch module or an ONNX file in, a verified and measured artifact out.

Names load when first used: reading, checking and measuring an artifact must not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.assignment import compile_mixed
    from export.compiler import Compiler
    from export.errors import ExportError, Unavailable
    from export.inspection import Inspection
    from export.measurement import Comparison, Measurement, compare, compare_many, measure
    from export.pipeline import compile, load
    from export.profiling import layers
    from export.slowdown import slower_layers
    from export.verification import LIMITS, Check, Limits, check
    from export.worker import Worker

__all__ = [
    "LIMITS",
    "Artifact",
    "Check",
    "Comparison",
    "Compiler",
    "ExportError",
    "Inspection",
    "Limits",
    "Measurement",
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
    "artifact": ("Artifact",),
    "assignment": ("compile_mixed",),
    "compiler": ("Compiler",),
    "errors": ("ExportError", "Unavailable"),
    "inspection": ("Inspection",),
    "measurement": ("Comparison", "Measurement", "compare", "compare_many", "measure"),
    "pipeline": ("compile", "load"),
    "profiling": ("layers",),
    "slowdown": ("slower_layers",),
    "verification": ("LIMITS", "Check", "Limits", "check"),
    "worker": ("Worker",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"export.{module}"), name)
    raise AttributeError(f"module 'export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
