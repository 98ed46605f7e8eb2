"""Define formulas of operators that the writer has no operator for. ``find(node)`` returns that of a call."""

from hnas.export.backends.tflite.writer.formulas import (
    activations,
    norms,
    picking,
    pooling,
    products,
    recurrent,
    sampling,
)
from hnas.export.backends.tflite.writer.formulas.registry import find

__all__ = ["activations", "find", "norms", "picking", "pooling", "products", "recurrent", "sampling"]
