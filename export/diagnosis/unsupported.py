"""Name the operators of a program that a backend lacks, and other backends that have them.

Call ``unsupported(program, "openvino", convert)``. It compiles and runs each operator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, fx

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.program import Program
from hnas.export.graph.subgraph import Subprogram, carve
from hnas.export.remote.worker import Worker


def unsupported(program: Program, name: str, convert: Callable[..., Artifact]) -> str | None:
    """Return a line that names the operators that backend ``name`` lacks, and the backends that have all of them.

    Return None if the backend accepts each operator alone, or cannot be tested on this machine. Each operator is
    compiled, opened, and run on the values that it has in the program. This takes seconds: call it only after a failed
    compilation.

    convert: the function that compiles, with the parameters of `hnas.export.compiling.conversion.convert`.
    """
    here = hw_profiles.local_devices()
    if name not in here:
        return None
    refused = [(operator, part) for operator, part in _alone(program) if not _takes(name, part, convert)]
    if not refused:
        return None
    others = [other for other in here if other != name and backends.load(other).missing() is None]
    able = [other for other in others if all(_takes(other, part, convert) for _, part in refused)]
    tested = f" ({', '.join(others)})" if others else ""
    who = f"supported by {' and '.join(able)}" if able else f"no other backend here has it{tested}"
    return f"{name} has no {', '.join(operator for operator, _ in refused)}; {who}"


def _alone(program: Program) -> Iterator[tuple[str, Subprogram]]:
    """Yield each kind of operator once: its name, and a program with this operator alone and recorded inputs."""
    whole, seen = Subprogram(program, (program.inputs,)), set[str]()
    for node in whole.operators:
        name = str(node.target).removesuffix(".default")
        if name not in seen and name.startswith("aten."):
            seen.add(name)
            sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
            part = carve(whole, _tensors(node), cuts=sources)
            if part is not None:
                yield name, part


def _tensors(node: fx.Node) -> Sequence[fx.Node]:
    """Return the node, or the nodes that select its tensors if it returns several."""
    return [node] if isinstance(node.meta.get("val"), Tensor) else [*node.users]


def _takes(name: str, part: Subprogram, convert: Callable[..., Artifact]) -> bool:
    with TemporaryDirectory() as folder:
        try:
            fused = fuse(part.program, passes_for(name))
            profile = hw_profiles.local_devices()[name]
            made = convert(name, fused, Path(folder), precision="fp32", device=profile, threads=1, calibration=None)
            with Worker(made, timeout=60) as worker:
                worker.outputs([tuple(value.numpy() for value in part.calls[0])])
        except ExportError:
            return False
    return True
