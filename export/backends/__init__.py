"""Find the backends that compile for a runtime: one folder per runtime, found by its name, imported when asked for.

``backends.load("openvino")``; ``backends.inspector("openvino")``. `hnas.export.backends.artifacts` calls ``compile``.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

_SEARCH = ("safetensors", "pymoo", "scipy", "msgspec")

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
    ``converters``: precision -> modules that compiling imports in addition to the runtime. Those of fp32 serve all.
    ``no_onnx``: why it cannot compile an ONNX file; empty if it can.
    """

    precisions: tuple[str, ...]
    requires: tuple[str, ...]
    converters: dict[str, tuple[str, ...]]
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
        ``calibration``: samples in the shapes and types of the program's inputs; at least one for
            int8, some or none for fp16, else empty.
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


def cannot_build(name: str, precisions: Sequence[str] = (), *, search: bool = False) -> str | None:
    """Return None if everything that compiles for the backend ``name`` is installed, else one line with the command.

    The extra that builds also installs the runtime, so one command is enough.

    precisions: the precisions to build; fp32 is always among them.
    search: whether the packages of the search are needed too.
    """
    backend = load(name)
    wanted = dict.fromkeys(module for each in ("fp32", *precisions) for module in backend.converters.get(each, ()))
    lacking = [module for module in (*wanted, *(_SEARCH if search else ())) if not _is_installed(module)]
    runtime = None if name in ("tensorrt", "reference") else backend.missing()  # TensorRT runs on the device
    if runtime is not None:
        lacking.insert(0, runtime.partition(" ")[0])
    if not lacking:
        return None
    extras = ",".join(dict.fromkeys([*(["search"] if search else []), _build_extra(name)]))
    verb = "is" if len(lacking) == 1 else "are"
    return f"{', '.join(lacking)} {verb} not installed; pip install 'hnas[{extras}]'"


def _build_extra(name: str) -> str:
    """Return the extra of hnas that installs what compiles for the backend ``name``."""
    return "search" if name == "reference" else f"{name}-convert"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a module that is None in sys.modules, or without a specification
        return False


def inspectable() -> tuple[str, ...]:
    """Return the backends whose runtime reports its layers."""
    return tuple(name for name in names() if find_spec(f"{__name__}.{name}.inspector"))


def inspector(name: str) -> Inspector:
    """Return the inspector of the backend ``name``, imported only now. Raise ValueError where there is none."""
    if name not in inspectable():
        raise ValueError(f"{name} does not report its layers; known: {', '.join(inspectable())}")
    return cast("Inspector", import_module(f"{__name__}.{name}.inspector"))
