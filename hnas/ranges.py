"""Types of options that have a range. msgspec checks the range of an option in a recipe.

Where msgspec is not installed (on a device, or to deploy a user's network), nothing is checked: recipes need msgspec.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

if TYPE_CHECKING or find_spec("msgspec"):
    from msgspec import Meta
else:
    Meta = dict

LARGEST = 1e9  # no rate, weight or number of an option is larger

Count = Annotated[int, Meta(ge=0, le=10**9)]
PositiveInt = Annotated[int, Meta(ge=1, le=10**9)]
Paths = Annotated[int, Meta(ge=0, le=1024)]  # of one step
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
Share = Annotated[float, Meta(ge=0, le=1)]
Channels = Annotated[Literal[1, 3], Meta(description="1 (grey) or 3 (RGB)")]
# A pair as tuple[float, float] beside a number with a range ends the process in msgspec 0.23; this form does not.
_Window = Annotated[tuple[NonNegative, ...], Meta(min_length=2, max_length=2, description="[low, high], from 0 on")]
Limit = Positive | _Window
Falling = Annotated[tuple[Positive, Positive], Meta(description="[first, last], numbers above 0")]
RandAugmentPair = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=15)], Annotated[int, Meta(ge=1, le=29)]],
    Meta(description="[operations to 15, magnitude to 29]"),
]
