"""Compare the outputs of an artifact with its module's, slice by slice. ``slice_levels``; needs numpy only.

A slice is one index of one axis of an output, over all samples: a channel, a class, a row of boxes. The SQNR of a whole
output does not show a slice that is lost beside larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputSlice:
    """Name one slice of an output, and hold its SQNR.

    output: the name of the output.
    axis, index: the place of the slice; None for the whole output.
    sqnr_db: the SQNR of the slice in dB, between -200 and 200.
    """

    output: str
    axis: int | None
    index: int | None
    sqnr_db: float

    def __str__(self) -> str:
        if self.axis is None:
            return self.output
        return f"{self.output}[{':, ' * self.axis}{self.index}]"
