"""List common operators, each as a tiny network with seeded inputs: ``OPERATORS["gelu"].program()``.

The table says what the TFLite writer has. Add a line to a file of this folder for an operator that a user misses.
"""

from tests.export.backends.operators import axes, elementwise, layers
from tests.export.backends.operators.table import OPERATORS, Operator

__all__ = ["OPERATORS", "Operator", "axes", "elementwise", "layers"]
