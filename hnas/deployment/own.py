"""Deploy a network of the user's own: a callable that makes a module, or an ONNX file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hnas.cost.kernels import Kernel
from hnas.cost.onnx_graph import kernels
from hnas.cost.roofline import trace
from hnas.deployment.build import CALIBRATION, Run
from hnas.deployment.bundle import Deployment, bundle_result, describe_network
from hnas.deployment.examples import GivenInputs
from hnas.deployment.flow import build_baseline, try_networks, wanted_precisions
from hnas.deployment.folder import working_folder
from hnas.deployment.labels import judged_by
from hnas.deployment.loading import SEED, load_network, read_labelled
from hnas.deployment.network import StaticNetwork
from hnas.deployment.options import NetworkOptions, Progress
from hnas.deployment.plan import Plan
from hnas.deployment.result import Result
from hnas.export import backends
from hnas.export.compiling.compiler import limited_compiler
from hnas.export.compiling.sizes import require_open
from hnas.export.device.errors import ExportError
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.graph.samples import Sample, to_sample
from hnas.export.graph.sizes import Asked
from hnas.export.onnx.source import SUFFIX, Original
from hnas.export.proof.verification import Limits
from hnas.journal import Journal

AGAINST = "the same network in fp32 on the same backend"
_KEY = "network"  # the name of the folder of its artifacts


def deploy_own_network(
    plan: Plan,
    options: NetworkOptions,
    inputs: GivenInputs | None,
    dynamic: Asked | None,
    limits: Limits | None,
    notify: Progress,
) -> Deployment:
    """Deploy a network of the user's own, as `hnas.deployment.deploy_network` documents.

    inputs, dynamic, limits: the options of these names, parsed.
    """
    if dynamic is not None:
        require_open(plan.device.backend)
    with working_folder(plan.out) as work, open_network(options.model, inputs, plan, dynamic) as network:
        network = replace(network, classifier=options.classifier or None)
        if options.calibration is not None:
            network = _with_calibration(network, Path(options.calibration))
        wanted_precisions(plan, network)  # refuses int8 without real inputs before any work
        with limited_compiler() as compiler:
            run = Run(plan, Journal(), compiler, work, lambda _: network.example, notify, limits)
            baseline = build_baseline(run, network, AGAINST, own=True)
            result = Result(plan, baseline, try_networks(run, baseline, [lambda: network]))
        notify("bundle", 0, 1)
        return bundle_result(result, describe_network(result, options.command(), seed=SEED))


@contextmanager
def open_network(
    model: str, given: GivenInputs | None, plan: Plan | None = None, dynamic: Asked | None = None
) -> Iterator[StaticNetwork]:
    """Open the network of ``model`` for the length of the block.

    model: "package.module:callable", or the path of an ONNX file.
    given: example inputs; None: those of the callable, or random ones for the ONNX file.
    plan: if given, a network that the plan's backend cannot take is refused before any work.
    dynamic: the sizes that stay open, as in `hnas.export.CompileOptions`; None: all are fixed.

    Raises:
        ValueError: the network cannot be exported; one line.
    """
    if not model.lower().endswith(SUFFIX):
        flat = load_network(model, given)
        example = to_sample(flat.inputs)
        network = StaticNetwork(
            name=type(flat.net).__name__,
            key=_KEY,
            module=flat,
            example=example,
            count_kernels=partial(_count_kernels, flat, example),
            input_names=flat.input_names,
            dynamic=dynamic,
        )
        if plan is not None:
            network.kernels  # noqa: B018 - counted now, so that a network that cannot be captured is refused here
        yield network
        return
    if plan is not None:
        _require_onnx(plan)
    values, shapes = (None, ()) if given is None else (given.load(), given.shapes)
    sizes = [shape for _, shape in shapes] or None
    names = [name for name, _ in shapes if name] or None
    with Original(Path(model), values, shapes=sizes, names=names, dynamic=dynamic) as original:
        source = original.source
        yield StaticNetwork(
            name=Path(source.name).stem,
            key=_KEY,
            module=original,
            example=tuple(original.examples),
            count_kernels=partial(kernels, Path(source.path), {each.name: each.shape for each in source.inputs}),
            input_names=tuple(tensor.name for tensor in source.inputs),
        )


def _with_calibration(network: StaticNetwork, file: Path) -> StaticNetwork:
    """Return the network with the real inputs in ``file``, for int8 ranges and for the verification.

    If the file has labels, the accuracy on them decides on the artifacts.
    """
    samples, labels = read_labelled(file, network.example, network.input_names)
    if labels is None:
        return replace(network, calibration=samples[:CALIBRATION], evidence=samples[:CALIBRATION])
    return judged_by(network, samples, labels)


def _require_onnx(plan: Plan) -> None:
    """Raise ValueError if the plan's backend or precision cannot be used with an ONNX file."""
    backend = plan.device.backend
    if why := backends.load(backend).no_onnx:
        able = [name for name in backends.names() if not backends.load(name).no_onnx]
        mend = f"choose a target of {', '.join(able)}, or give the network as package.module:callable"
        raise ValueError(f"{plan.device.name} runs {backend}, which takes no ONNX file: {why}; {mend}")
    if plan.precision == "mixed":
        raise ValueError("mixed precision chooses blocks of a torch graph, which an ONNX file has not; choose int8")


def _count_kernels(module: nn.Module, example: Sample) -> list[Kernel]:
    """Return the kernels of the fused network. Raise ValueError if the network cannot be captured."""
    try:
        captured = capture(module, [torch.from_numpy(value) for value in example])
    except ExportError as error:
        raise ValueError(str(error)) from error
    program = fuse(captured)
    graph = copy.deepcopy(program.module).to("meta")
    inputs = [value.to("meta") for value in program.inputs]
    return trace(_Closed(lambda: graph(*inputs)))


class _Closed(nn.Module):
    """A module without inputs that runs ``call``. The called network keeps its mode, batch size and types."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self) -> Any:
        return self.call()
