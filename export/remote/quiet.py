"""What third parties say while they compile and nobody can act on, silenced by name; everything else passes."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # torch's own copies of its own tree specs
    # OpenVINO's front end reads TorchScript.
    (DeprecationWarning, r"`torch\.jit\.(trace|freeze|trace_method)` is deprecated"),
    (FutureWarning, r"`torch\.jit\.(trace|freeze|trace_method)` is deprecated"),
    (UserWarning, r"Warning: Enabling `experimental_preserve_all_tensors`"),  # how ai-edge-quantizer calibrates
)
_LOGGERS: tuple[str, ...] = (
    "torch.onnx._internal.exporter._registration",  # torchvision is not installed
    "torch.utils._pytree",  # torchao registers an enum twice
    "torchao",  # kernels for GPUs that are not here
    "nncf",  # progress in words
)
_ROOT: tuple[str, ...] = (  # said through the root logger: silenced by text
    "Please consider to run pre-processing before quantization",
    "is out-of-range for weight",
    "Failed to load",
    "already exists in the folder",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, the known noise of converters and quantisers is dropped; errors never are."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        root.addFilter(_telling)
        with warnings.catch_warnings():
            for category, message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        root.removeFilter(_telling)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _telling(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not any(text in record.getMessage() for text in _ROOT)
