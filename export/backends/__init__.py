"""Find what compiles for a runtime: one folder a runtime, found by its name, imported only when asked for.

``backends.load("openvino").compile(...)``; ``backends.inspector("openvino").layers(...)``.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact
    from hnas.export.device.runtimes import Runner
    from hnas.export.graph.program import Program
    from hnas.export.onnx.source import OnnxSource
    from hnas.export.proof.inspection import Layer
    from hnas.hw_profiles import Device


class Backend(Protocol):
    """The module ``convert`` of a folder here. Importing it needs no runtime; compiling and loading do.

    ``precisions`` are those it can compile to, fp32 first; ``requires`` are the extras that install its runtime;
    ``no_onnx`` is why it cannot start from an ONNX file, empty where it can.
    """

    precisions: tuple[str, ...]
    requires: tuple[str, ...]
    no_onnx: str

    def missing(self) -> str | None:
        """None where the runtime is installed, else one line that says how to install it."""

    def versions(self) -> Mapping[str, str]:
        """The versions of everything that shapes an artifact or its speed."""

    def compile(
        self,
        program: "Program | OnnxSource",
        path: Path,
        *,
        precision: str,
        device: "Device",
        threads: int,
        calibration: "Sequence[tuple[NDArray[Any], ...]] | None",
    ) -> "Artifact":
        """Write the artifact of ``program`` into the empty folder ``path``; int8 takes ``calibration``.

        An ONNX file comes only where ``no_onnx`` is empty.
        """

    def load(self, artifact: "Artifact") -> "Runner":
        """Open an artifact in this process, at exactly its precision and threads."""


class Inspector(Protocol):
    """The module ``inspector`` of a folder here: a runtime's own view of an artifact.

    ``FUSES`` says in words what the runtime can join to a kernel.
    """

    FUSES: str

    def layers(self, artifact: "Artifact", inputs: "Sequence[NDArray[Any]]", runs: int) -> "list[Layer]":
        """Return the layers of ``artifact`` in the order they run, timed over ``runs`` calls on ``inputs``."""


def names() -> tuple[str, ...]:
    """Return the name of every backend, which is the name of its folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def load(name: str) -> Backend:
    """Return the backend ``name``, imported only now. Raise ValueError for an unknown one."""
    if name not in names():
        raise ValueError(f"no backend {name!r}; known: {', '.join(names())}")
    return cast("Backend", import_module(f"{__name__}.{name}.convert"))


def inspectable() -> tuple[str, ...]:
    """Return the backends whose runtime reports its layers."""
    return tuple(name for name in names() if find_spec(f"{__name__}.{name}.inspector"))


def inspector(name: str) -> Inspector:
    """Return the inspector of the backend ``name``, imported only now. Raise ValueError where there is none."""
    if name not in inspectable():
        raise ValueError(f"{name} does not report its layers; known: {', '.join(inspectable())}")
    return cast("Inspector", import_module(f"{__name__}.{name}.inspector"))
