"""Run a stored ATen graph in eager torch: the reference for every other runtime."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from hnas.export.device.notation import read_argument, read_operator
from hnas.export.device.records import check_version, read_json
from hnas.export.device.signature import NamedOutputs, name_outputs, read_inputs

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

SCHEMA = 1
GRAPH, WEIGHTS = "graph.json", "weights.safetensors"


def missing() -> str | None:
    """Return None if torch and safetensors are installed, else a line that says how to install them."""
    if find_spec("torch") and find_spec("safetensors"):
        return None
    return "torch and safetensors are not installed; pip install 'hnas[search]' or choose another backend"


def versions() -> dict[str, str]:
    """Return the version of torch."""
    return {"torch": version("torch")}


def load(artifact: Artifact) -> _Reference:
    """Open ``artifact``. Raise ValueError if its graph names anything but ATen operators."""
    return _Reference(artifact)


class _Reference:
    """Implement `Runner` with a torch graph. The number of threads is set for the whole process."""

    def __init__(self, artifact: Artifact) -> None:
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(artifact.threads)
        self.artifact = artifact
        self.module = _read_graph(artifact.path / GRAPH, load_file(artifact.path / WEIGHTS))

    def __call__(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> NamedOutputs:
        """Return the outputs for ``inputs``."""
        outputs = self._run(self._tensors(inputs, named))
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        return name_outputs(self.artifact, [value.numpy() for value in values])

    def bind(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> Callable[[], object]:
        """Return a function that runs ``inputs``, which are converted once."""
        tensors = self._tensors(inputs, named)
        return lambda: self._run(tensors)

    def _run(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        import torch

        with torch.inference_mode():
            return self.module(*tensors)

    def _tensors(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        import torch

        return tuple(torch.from_numpy(value.copy()) for value in read_inputs(self.artifact, inputs, named))


def _read_graph(path: Path, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    import torch
    from torch import fx

    record = read_json(path)
    check_version(record, str(path), SCHEMA)
    root, graph = torch.nn.Module(), fx.Graph()
    nodes: dict[str, fx.Node] = {}
    names: dict[str, str] = {}
    try:
        for entry in record["nodes"]:
            args = tuple(read_argument(value, nodes) for value in entry["args"])
            kwargs = {name: read_argument(value, nodes) for name, value in entry["kwargs"].items()}
            op, target = entry["op"], entry["target"]
            if op == "call_function":
                nodes[entry["name"]] = graph.call_function(read_operator(target, kwargs), args, kwargs)
            elif op == "placeholder":
                nodes[entry["name"]] = graph.placeholder(f"input_{len(nodes)}")
            elif op == "get_attr":
                if target not in names:
                    names[target] = f"weight_{len(names)}"
                    root.register_buffer(names[target], weights[target])
                nodes[entry["name"]] = graph.get_attr(names[target])
            elif op == "output":
                graph.output(tuple(args[0]) if isinstance(args[0], list) else args[0])
            else:
                raise ValueError(f"unknown kind of node {op!r}")
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: not a graph of ATen operators: {type(error).__name__} {error}") from None
    return fx.GraphModule(root, graph)
