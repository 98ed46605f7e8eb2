"""Eager torch: slow, obvious, and therefore the definition of right for every other backend.

On disk a program is its graph as JSON and its weights as safetensors. torch.export's own archive would need pickle for
parts of it; here a file can name ATen operators and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export.device.artifact import Artifact, digest_files
from hnas.export.device.notation import write_node
from hnas.export.device.records import write_json
from hnas.export.device.runtimes.reference import GRAPH, SCHEMA, WEIGHTS, load, missing, versions
from hnas.export.device.signature import describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.graph.program import Program
    from hnas.hw_profiles import Device

__all__ = ("compile", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32",)
requires: tuple[str, ...] = ("search",)
no_onnx = "it is the torch graph itself"


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
