"""Eager torch: slow, obvious, and therefore the definition of right for every other backend.

On disk a program is its graph as JSON and its weights as safetensors. torch.export's own archive would need pickle for
parts of it; here a file can name ATen operators and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact, digest_files
from export.notation import read, read_operator, write_node
from export.schema import check_version, read_json, write_json
from export.signature import describe, fit

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from export.program import Program
    from hw_profiles import Device

precisions: tuple[str, ...] = ("fp32",)
requires: tuple[str, ...] = ("search",)
no_onnx = "it is the torch graph itself"

SCHEMA = 1
GRAPH, WEIGHTS = "graph.json", "weights.safetensors"


def missing() -> str | None:
    """None where torch and safetensors are installed, else the line that installs them."""
    if find_spec("torch") and find_spec("safetensors"):
        return None
    return "torch and safetensors are not installed; pip install 'hnas[search]' or choose another backend"


def versions() -> dict[str, str]:
    """The version of torch."""
    return {"torch": version("torch")}


def compile(
    program: Program,
    path: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Sequence[tuple[NDArray[Any], ...]] | None,
) -> Artifact:
    """Write graph and weights; ValueError for a precision other than fp32."""
    from safetensors.torch import save_file

    if precision not in precisions:
        raise ValueError(f"reference runs {', '.join(precisions)}, got {precision!r}")
    del calibration
    graph = program.module.graph
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    state = program.module.state_dict(keep_vars=True)
    # Contiguous clones: safetensors refuses views, and tied weights keep both names.
    save_file({name: state[name].detach().clone().contiguous() for name in sorted(set(names))}, path / WEIGHTS)
    write_json(path / GRAPH, {"schema": SCHEMA, "nodes": [write_node(node) for node in graph.nodes]})
    inputs, outputs = describe(program)
    artifact = Artifact(
        path=path,
        backend="reference",
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(path, GRAPH, WEIGHTS),
        versions=versions(),
    )
    artifact.write()
    return artifact


def load(artifact: Artifact) -> Reference:
    """Read the graph back; ValueError for one that names anything but ATen operators."""
    return Reference(artifact)


class Reference:
    """A Runner. It sets torch's thread count for the whole process, which is why workers have one runtime each."""

    def __init__(self, artifact: Artifact) -> None:
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(artifact.threads)
        self.artifact = artifact
        self.module = _read_graph(artifact.path / GRAPH, load_file(artifact.path / WEIGHTS))

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The outputs for ``inputs``."""
        outputs = self._run(self._tensors(inputs))
        return tuple(value.numpy() for value in ((outputs,) if not isinstance(outputs, tuple) else outputs))

    def bind(self, *inputs: NDArray[Any]) -> Callable[[], object]:
        """A call on ``inputs``, converted once."""
        tensors = self._tensors(inputs)
        return lambda: self._run(tensors)

    def _run(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        import torch

        with torch.inference_mode():
            return self.module(*tensors)

    def _tensors(self, inputs: Sequence[NDArray[Any]]) -> tuple[torch.Tensor, ...]:
        import torch

        return tuple(torch.from_numpy(value.copy()) for value in fit(inputs, self.artifact.inputs))


def _read_graph(path: Path, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    import torch
    from torch import fx

    record = read_json(path)
    check_version(record, str(path), SCHEMA)
    root, graph, nodes = torch.nn.Module(), fx.Graph(), dict[str, fx.Node]()
    names: dict[str, str] = {}
    try:
        for entry in record["nodes"]:
            args = tuple(read(value, nodes) for value in entry["args"])
            kwargs = {name: read(value, nodes) for name, value in entry["kwargs"].items()}
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
