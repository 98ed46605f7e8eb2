"""Find the runtimes that run artifacts: one file per runtime, found by its name.

``runtimes.load("openvino").load(artifact)`` returns a `Runner`.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Protocol, Tuple, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact
    from hnas.export.device.signature import NamedOutputs


class Runner(Protocol):
    """Describe an opened artifact: a function from numpy arrays to numpy arrays, in the layout of the exported module.

    Example: ``(logits,) = runner(image)``.
    """

    artifact: "Artifact"

    def __call__(self, *inputs: "NDArray[Any]", **named: "NDArray[Any]") -> "NamedOutputs":
        """Return the outputs, as a tuple that also takes a name. The inputs are given in order or by name.

        Raise ValueError unless shapes and types are those of the artifact.
        """

    def bind(self, *inputs: "NDArray[Any]", **named: "NDArray[Any]") -> Callable[[], object]:
        """Return a function that runs the network on ``inputs``. A measurement times this function.

        The inputs are converted and set before it is called, so that the time is that of the network alone.
        """


class Runtime(Protocol):
    """Describe a module of this folder. Importing it needs numpy only; ``load`` needs the runtime."""

    def missing(self) -> Optional[str]:
        """Return None if the runtime is installed, else one line that says how to install it."""

    def versions(self) -> Mapping[str, str]:
        """Return the version of each package that affects the speed of an artifact on this machine."""

    def load(self, artifact: "Artifact") -> Runner:
        """Open an artifact in this process, at exactly its precision and number of threads."""


def names() -> Tuple[str, ...]:
    """Return the names of the runtimes, which are file names."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Runtime:
    """Return the runtime of the backend ``name``, imported only now. Raise ValueError for an unknown one."""
    if name not in names():
        raise ValueError(f"no runtime {name!r}; known: {', '.join(names())}")
    return cast("Runtime", import_module(__name__ + "." + name))
