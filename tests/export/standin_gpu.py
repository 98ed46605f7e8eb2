"""A stand-in for ONNX Runtime on a GPU: it names CUDA's provider, and computes on the CPU.

``install(folder)`` writes a module ``onnxruntime`` that child processes import from PYTHONPATH before the real one.
``replacements(onnxruntime)`` are the attributes that it changes, for this process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_SHIM = """
import importlib, runpy, sys
sys.path.remove({folder!r})
del sys.modules["onnxruntime"]
real = importlib.import_module("onnxruntime")  # takes the place of this module
vars(real).update(runpy.run_path({here!r})["replacements"](real))
"""


def install(folder: Path) -> None:
    (folder / "onnxruntime.py").write_text(_SHIM.format(folder=str(folder), here=__file__))


def replacements(ort: Any) -> dict[str, Any]:
    class Session(ort.InferenceSession):
        def __init__(self, path: Any, options: Any = None, providers: Any = None, **rest: Any) -> None:
            self.on_gpu = [each if isinstance(each, str) else each[0] for each in providers or ()] == [CUDA]
            if self.on_gpu:  # the options refuse a session on the CPU, as they should
                options, providers = None, [CPU]
            super().__init__(path, options, providers, **rest)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU] if self.on_gpu else super().get_providers()

        def io_binding(self) -> Any:
            binding = super().io_binding()
            there = binding.bind_output
            binding.bind_output = lambda name, device, index: there(name)
            return binding

    class OrtValue:
        @staticmethod
        def ortvalue_from_numpy(value: Any, device: str, index: int) -> Any:
            assert (device, index) == ("cuda", 0)
            return real(value)

    real = ort.OrtValue.ortvalue_from_numpy
    return {"InferenceSession": Session, "OrtValue": OrtValue, "get_available_providers": lambda: [CUDA, CPU]}
