"""Suppress known warnings and log lines of converters that need no action by the user. All others are shown."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # torch copies its own tree specs
    # OpenVINO's front end reads TorchScript.
    (DeprecationWarning, r"`torch\.jit\.(trace|freeze|trace_method)` is deprecated"),
    (FutureWarning, r"`torch\.jit\.(trace|freeze|trace_method)` is deprecated"),
    (UserWarning, r"Warning: Enabling `experimental_preserve_all_tensors`"),  # ai-edge-quantizer calibrates this way
)
_LOGGERS: tuple[str, ...] = (
    "torch.onnx._internal.exporter._registration",  # torchvision is not installed
    "torch.utils._pytree",  # torchao registers an enum twice
    "torchao",  # kernels for absent GPUs
    "nncf",  # progress
)
_ROOT: tuple[str, ...] = (  # texts of the root logger
    "Please consider to run pre-processing before quantization",
    "is out-of-range for weight",
    "Failed to load",
    "already exists in the folder",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the known warnings and log lines during the block. Errors are always shown."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        root.addFilter(_passes)
        with warnings.catch_warnings():
            for category, message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        root.removeFilter(_passes)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _passes(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not any(text in record.getMessage() for text in _ROOT)
