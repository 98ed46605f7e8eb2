"""What runs an artifact: one file a runtime, found by its name, imported only when asked for."""

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.artifact import Artifact
    from export.onnx_source import OnnxSource
    from export.program import Program
    from export.runtimes import Runner
    from hw_profiles import Device


class Backend(Protocol):
    """A module of this folder. Importing it needs no runtime; compiling and loading do.

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


def names() -> tuple[str, ...]:
    """The backends, by file name."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Backend:
    """The backend ``name``, imported only now; ValueError for an unknown one."""
    if name not in names():
        raise ValueError(f"no backend {name!r}; known: {', '.join(names())}")
    return cast("Backend", import_module(f"{__name__}.{name}"))
