"""Write a program unchanged, for eager torch. Every other backend is compared with this reference.

The graph is stored as JSON and the weights as safetensors. torch.export's own archive uses pickle, which can run code.
This format can only name ATen operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.device.artifact import Written
from hnas.export.device.notation import write_node
from hnas.export.device.records import write_json
from hnas.export.device.runtimes.reference import GRAPH, SCHEMA, WEIGHTS, load, missing, versions

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32",)
requires: tuple[str, ...] = ("search",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch", "safetensors")}
no_onnx = "it is the torch graph itself"


def compile(program: Program, path: Path, *, precision: str, device: Device, calibration: Samples) -> Written:
    """Write the graph as JSON and the weights as safetensors."""
    from safetensors.torch import save_file

    del precision, device, calibration  # always fp32, on any device
    graph = program.module.graph
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    state = program.module.state_dict(keep_vars=True)
    # Contiguous clones: safetensors refuses views, and tied weights keep both names.
    save_file({name: state[name].detach().clone().contiguous() for name in sorted(set(names))}, path / WEIGHTS)
    write_json(path / GRAPH, {"schema": SCHEMA, "nodes": [write_node(node) for node in graph.nodes]})
    return Written((GRAPH, WEIGHTS), versions())
