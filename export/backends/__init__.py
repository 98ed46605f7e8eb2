"""Find the backends that compile for a runtime: one folder per runtime, found by its name, imported when asked for.

``backends.load("openvino")``; ``backends.inspector("openvino")``. `hnas.export.backends.artifacts` calls ``compile``.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact, Written
    from hnas.export.device.runtimes import Runner
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.export.onnx.source import OnnxSource
    from hnas.export.proof.inspection import Layer
    from hnas.hw_profiles import Device


class Backend(Protocol):
    """Describe the module ``convert`` of a folder here. Importing it needs no runtime; compiling and loading do.

    ``precisions``: the precisions that it can compile to, fp32 first.
    ``requires``: the extras of hnas that install its runtime.
    ``no_onnx``: why it cannot compile an ONNX file; empty if it can.
    """

    precisions: tuple[str, ...]
    requires: tuple[str, ...]
    no_onnx: str

    def missing(self) -> str | None:
        """Return None if the runtime is installed, else one line that says how to install it."""

    def versions(self) -> Mapping[str, str]:
        """Return the version of each package that affects an artifact or its speed."""

    def compile(
        self,
        program: "Program | OnnxSource",
        path: Path,
        *,
        precision: str,
        device: "Device",
        calibration: "Samples",
    ) -> "Written":
        """Write the model files of ``program`` into the empty folder ``path`` and return what was written.

        ``program``: an ONNX file only if ``no_onnx`` is empty.
        ``precision``: one of ``precisions``.
        ``calibration``: samples in the shapes and types of the program's inputs; at least one for int8, else empty.
        """

    def load(self, artifact: "Artifact") -> "Runner":
        """Open an artifact in this process, at exactly its precision and number of threads."""


class Inspector(Protocol):
    """Describe the module ``inspector`` of a folder here. It reads how the runtime executes an artifact.

    ``FUSES``: a sentence on the operators that the runtime can fuse into one kernel.
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
