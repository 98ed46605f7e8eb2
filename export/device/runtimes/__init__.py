"""Open artifacts: one file a runtime, found by its name. Plain Python 3.8 and numpy.

``runtimes.load("openvino").load(artifact)`` returns a Runner.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Protocol, Tuple, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact


class Runner(Protocol):
    """An opened artifact: numpy in, numpy out, both in the layout of the module that was exported."""

    artifact: "Artifact"

    def __call__(self, *inputs: "NDArray[Any]") -> "Tuple[NDArray[Any], ...]":
        """The outputs for ``inputs``; ValueError when their number, shapes or types are not the artifact's."""

    def bind(self, *inputs: "NDArray[Any]") -> Callable[[], object]:
        """A call that runs the runtime on ``inputs``, already converted and set: what a measurement times."""


class Runtime(Protocol):
    """A module of this folder. Importing it needs nothing but numpy; loading needs what it is named after."""

    def missing(self) -> Optional[str]:
        """None where it is installed, else one line that says how to install it."""

    def versions(self) -> Mapping[str, str]:
        """The versions of everything that shapes the speed of an artifact here."""

    def load(self, artifact: "Artifact") -> Runner:
        """Open an artifact in this process, at exactly its precision and threads."""


def names() -> Tuple[str, ...]:
    """The runtimes with a half of their own, by file name."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Runtime:
    """Return what runs artifacts of the backend ``name``, imported only now. Raise ValueError for an unknown one."""
    if name not in names():
        raise ValueError(f"no runtime {name!r}; known: {', '.join(names())}")
    return cast("Runtime", import_module(__name__ + "." + name))
