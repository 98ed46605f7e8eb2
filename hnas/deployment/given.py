"""What an export starts from: a network of the user's own, made by a callable of theirs or lying there as ONNX."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnas.cost.onnx_graph import kernels
from hnas.cost.roofline import Kernel, trace
from hnas.deployment.network import load, sizes
from hnas.deployment.plan import Plan
from hnas.export import backends
from hnas.export.device.errors import ExportError
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.onnx.source import SUFFIX, Original


@dataclass(frozen=True, eq=False)
class Given:
    """A network as `export.compile` takes it, and the inputs of one call.

    name: that of its class or file; kernels: counts them, for the roofline; inputs: the names of its inputs, if it has.
    """

    name: str
    network: nn.Module | Original
    examples: tuple[Tensor, ...]
    kernels: Callable[[], list[Kernel]]
    inputs: tuple[str, ...] = ()

    @property
    def editable(self) -> bool:
        """Whether there is a torch graph: what recovers accuracy and what keeps blocks in float edits that."""
        return isinstance(self.network, nn.Module)


@contextmanager
def given(model: str, shapes: Sequence[str] | None, plan: Plan | None = None) -> Iterator[Given]:
    """The network of ``model``, "package.module:callable" or the path of an ONNX file, which is open within the block.

    ``shapes``: of its inputs, such as "1x3x64x64". ValueError in one line for what cannot be exported, or not by the
    backend of ``plan``.
    """
    if not model.lower().endswith(SUFFIX):
        net, examples = load(model, shapes)
        yield Given(type(net).__name__, net, examples, partial(_traced, net, examples))
        return
    if plan is not None:
        _require(plan)
    with Original(Path(model), shapes=None if shapes is None else [sizes(text) for text in shapes]) as original:
        source = original.source
        yield Given(
            Path(source.name).stem,
            original,
            tuple(map(torch.from_numpy, original.examples)),
            partial(kernels, Path(source.path)),
            tuple(tensor.name for tensor in source.inputs),
        )


def _require(plan: Plan) -> None:
    """ValueError where the plan asks for what an ONNX file cannot have."""
    backend = plan.device.backend
    if why := backends.load(backend).no_onnx:
        able = [name for name in backends.names() if not backends.load(name).no_onnx]
        mend = f"choose a target of {', '.join(able)}, or give the network as package.module:callable"
        raise ValueError(f"{plan.device.name} runs {backend}, which takes no ONNX file: {why}; {mend}")
    if plan.precision == "mixed":
        raise ValueError("mixed precision chooses blocks of a torch graph, which an ONNX file has not; choose int8")


def _traced(net: nn.Module, examples: tuple[Tensor, ...]) -> list[Kernel]:
    """The kernels of the fused network; one that cannot be captured is wrong input, NaN weights among it."""
    try:
        captured = capture(net, examples)
    except ExportError as error:
        raise ValueError(str(error)) from error
    program = fuse(captured)
    graph = copy.deepcopy(program.module).to("meta")
    inputs = [value.to("meta") for value in program.inputs]
    return trace(_Closed(lambda: graph(*inputs)))


class _Closed(nn.Module):
    """A call as a module without inputs; what it calls stays in eval mode, at its own batch and types."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self) -> Any:
        return self.call()
