"""How a runtime is asked for its own view of an artifact: one file a runtime, found by its name."""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.artifact import Artifact
    from export.inspection import Layer


class Inspector(Protocol):
    """A module of this folder. ``FUSES`` says in words what the runtime can join to a kernel."""

    FUSES: str

    def layers(self, artifact: "Artifact", inputs: "Sequence[NDArray[Any]]", runs: int) -> "list[Layer]":
        """The layers of ``artifact`` in the order they run, timed over ``runs`` calls on ``inputs``."""


def names() -> tuple[str, ...]:
    """The runtimes that can be asked, by file name."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Inspector:
    """The inspector of the backend ``name``, imported only now; ValueError for one without."""
    if name not in names():
        raise ValueError(f"{name} tells nothing of its layers; known: {', '.join(names())}")
    return cast("Inspector", import_module(f"{__name__}.{name}"))
