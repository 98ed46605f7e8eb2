"""Import the libraries that are installed, once for all jobs. `hnas.benchmarks.zoo.jobs` forks from this process.

A tiny network is exported too, because torch imports most of its exporters at the first call.
"""

from contextlib import suppress
from importlib import import_module

from hnas.export.device.errors import ExportError

for _name in ("torchvision", "timm", "transformers", "onnxscript", "openvino", "torch", "hnas.benchmarks.zoo.jobs"):
    with suppress(ImportError):
        import_module(_name)


def _warm() -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import torch

    from hnas.export.graph.fusion import fuse
    from hnas.export.graph.program import capture
    from hnas.export.onnx.file import write_program

    torch.set_num_threads(1)  # a process that has threads cannot be forked safely
    program = fuse(capture(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU()), torch.zeros(1, 3, 4, 4)))
    with TemporaryDirectory() as folder:
        write_program(program, Path(folder) / "warm.onnx", *program.signature)


with suppress(ImportError, ExportError):  # ExportError: onnx is missing
    _warm()
