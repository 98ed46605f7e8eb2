"""Import the libraries that are installed, once for all jobs. `hnas.benchmarks.zoo.jobs` forks from this process."""

from contextlib import suppress
from importlib import import_module

for _name in ("torch", "torchvision", "timm", "transformers", "onnxscript", "openvino", "hnas.benchmarks.zoo.jobs"):
    with suppress(ImportError):
        import_module(_name)
