"""Latency predicted from a device profile: the roofline (Williams et al. 2009) of every kernel plus a launch time.

``roofline(space, supernet.skeleton, hw_profiles.load("jetson"), "fp16")(arch)`` returns a ``Price``.

The kernels are traced on the meta device: nothing is executed, and no layer is known by name. Batch norm, ReLU and
additions count as fused into the kernel before them, as in TensorRT. Where the profile names a calibration, the peaks
and the bandwidth are multiplied by efficiencies that were fitted on published latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hnas.cost import Cost, Price
from hnas.cost.kernels import ELEMENTWISE, FLOATING, FUSED, REDUCTIONS, REFORMATS, TENSOR, Kernel, kind_of_convolution
from hnas.hw_profiles import Device, calibration
from hnas.hw_profiles.calibration import Calibration
from hnas.space import Arch, Space

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "w8": 4}  # of an activation; w8 has int8 weights alone
_UNKNOWN = 0.05  # share of the time in kinds of kernel that no published row contains, above which the band is wide

_REACH = 1.5  # a network may have so many times fewer or more operations than those of the published rows


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # a hook of torch
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self.passes: dict[int, Tensor] = {}  # results of element-wise passes, kept alive so that an id stays unique

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        count = flop_registry.get(func._overloadpacket)
        inputs, outputs = [t for arg in args for t in _tensors(arg)], _tensors(out)
        kind = self._fused(_kind(name, args, counted=count is not None), name, inputs, outputs)
        if kind is not None:
            flops = int(count(*args, **(kwargs or {}), out_val=out)) if count else 0
            moved = sum(t.numel() for t in (*inputs, *outputs))
            weights = sum(t.numel() for t in inputs if isinstance(t, nn.Parameter) or isinstance(t._base, nn.Parameter))
            side = int(args[1].shape[2]) if name == "convolution" else 1
            self.kernels.append(Kernel(name, flops, moved, kind, weights, side))
        return out

    def _fused(self, kind: str | None, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> str | None:
        """Return the kind, or None for an element-wise operation that continues a pass over memory."""
        if kind != "elementwise" and name not in FUSED:
            return kind
        continued = any(id(tensor) in self.passes for tensor in inputs)
        if continued or kind is not None:
            self.passes |= {id(tensor): tensor for tensor in outputs}
        return None if continued else kind


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in an argument or a result: the value itself, or the items of a list or tuple."""
    items = value if isinstance(value, list | tuple) else (value,)
    return [item for item in items if isinstance(item, Tensor)]


def _kind(name: str, args: Sequence[Any], *, counted: bool) -> str | None:
    """Return the kind of the kernel of a torch operation; None if it launches none."""
    if name == "convolution":
        return "dense" if args[6] else kind_of_convolution(tuple(args[1].shape), int(args[8]))
    if counted:
        return "attention" if name in ("bmm", "baddbmm") or "attention" in name else "pointwise"
    for kind, words in (("reduction", REDUCTIONS), ("reformat", REFORMATS)):
        if any(word in name for word in words):
            return kind
    return "elementwise" if name in ELEMENTWISE else None


def trace(net: nn.Module, *shapes: tuple[int, ...], batch: int = 1, training: bool = True) -> list[Kernel]:
    """Return the kernels of ``net`` in order, for one call.

    net: on the meta device.
    shapes: the shape of each input, without the batch axis.
    batch: the number of examples in the call.
    training: the mode of the network. True needs no running moments. False is for networks that drop paths in training.
    """
    tracing = _Trace()
    _run(net, shapes, tracing, batch=batch, training=training)
    return tracing.kernels


def _run(
    net: nn.Module, shapes: Sequence[tuple[int, ...]], tracing: _Trace, *, batch: int = 1, training: bool = True
) -> None:
    """Call ``net`` once under a trace; the arguments are those of ``trace``. Its mode is restored."""
    mode = net.training
    net.train(training)
    try:
        with torch.no_grad(), torch.device("meta"), tracing:
            net(*(torch.empty(batch, *shape) for shape in shapes))
    finally:
        net.train(mode)


@dataclass(frozen=True)
class _Traced:
    """The kernels of a module in a network.

    sizes: the kind of module, and the shapes of its input and its output.
    """

    kernels: tuple[Kernel, ...]
    sizes: tuple[type[nn.Module], tuple[int, ...], tuple[int, ...]]


def trace_parts(
    net: nn.Module, paths: Sequence[str], *shapes: tuple[int, ...]
) -> tuple[list[Kernel], dict[str, _Traced]]:
    """Return the kernels outside of some modules of ``net``, and path -> those of each module, for one call.

    paths: modules that take and return one tensor, and are called once.
    The other parameters are those of ``trace``.

    Raises:
        AttributeError: there is no module at a path.
        ValueError: such a module is not called, or more than once.
    """
    parts: dict[str, _Traced] = {}
    begun: dict[str, int] = {}
    tracing = _Trace()

    def leave(path: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if path in parts:
            raise ValueError(f"the module {path} is called more than once")
        inside = tuple(tracing.kernels[begun[path] :])
        parts[path] = _Traced(inside, (type(module), tuple(inputs[0].shape), tuple(output.shape)))

    with ExitStack() as stack:
        for path in paths:
            module = net.get_submodule(path)
            before = module.register_forward_pre_hook(lambda *_, at=path: begun.update({at: len(tracing.kernels)}))
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(partial(leave, path)).remove)
        _run(net, shapes, tracing)
    if unused := set(paths) - parts.keys():
        raise ValueError(f"the module {min(unused)} is not called")
    taken = {id(kernel) for part in parts.values() for kernel in part.kernels}
    return [kernel for kernel in tracing.kernels if id(kernel) not in taken], parts


def latency_ms(kernels: Sequence[Kernel], device: Device, precision: str) -> float:
    """Return the sum over kernels of max(arithmetic, memory traffic) + launch time, in milliseconds."""
    return calibrated_ms(kernels, device, precision, calibration.of(device))


def calibrated_ms(kernels: Sequence[Kernel], device: Device, precision: str, fit: Calibration | None) -> float:
    """Return `latency_ms` with the efficiencies ``fit`` instead of those that the profile names."""
    return sum(_kernel_ms(kernel, device, precision, fit) for kernel in kernels)


def _kernel_ms(kernel: Kernel, device: Device, precision: str, fit: Calibration | None) -> float:
    """Return the time of one kernel.

    On a GPU, tensor cores compute convolutions and products, in TF32 where the network is in fp32. The CUDA cores
    compute the rest. In an int8 network, what is not quantised runs in fp16.
    """
    kept, gpu = precision, device.kind == "gpu"
    if gpu and precision == "int8" and kernel.kind in FLOATING and "fp16" in device.peaks:
        kept = "fp16"
    peak = device.peaks[kept]
    if gpu and kernel.kind in TENSOR:
        peak = device.peaks.get("tf32", peak) if kept == "fp32" else peak
    elif gpu:
        peak = device.peaks["fp32"] * (1 if kept == "fp32" else 2)
    compute, moved, launch = kernel.flops / peak, kernel.elements * BYTES[kept] / device.bandwidth, device.launch_us
    share = 0.0
    if fit is not None:
        compute /= fit.compute.get(kept, min(fit.compute.values()))
        moved /= fit.bandwidth * (fit.depthwise if kernel.kind == "depthwise" else 1.0)
        launch, share = fit.launch_us, fit.elementwise
    whole = 1e-6 * max(compute, moved) + 1e-3 * launch
    return whole * (share if kernel.kind == "elementwise" else 1.0)


def predict(kernels: Sequence[Kernel], device: Device, precision: str) -> Price:
    """Return the predicted latency with its error band, and in ``basis`` what the band rests on.

    1. Published rows cover the device, its power mode, the kinds of kernel and the size of the network: the band is the
       range of errors on all rows of the calibration.
    2. Otherwise: the wide band of the profile, and ``basis`` begins with "outside what I know".
    """
    fit = calibration.of(device)
    value = calibrated_ms(kernels, device, precision, fit)
    (low, high), basis = _band(kernels, device, precision, fit)
    return Price(value, "ms", value * low, value * high, "predicted", basis)


def _band(
    kernels: Sequence[Kernel], device: Device, precision: str, fit: Calibration | None
) -> tuple[tuple[float, float], str]:
    """Return two factors, and what they rest on."""
    if fit is None and device.local:
        return device.band, "a rough model that only orders candidates; the measurement replaces it"
    known = None if fit is None else fit.evidence_of(device)
    if fit is None or known is None:
        of = f"{device.name} in {device.power}" if device.power else device.name
        return device.band, f"outside what I know: no published row of {of}"  # case 2
    if precision not in fit.compute:
        return device.band, f"outside what I know: no published row of {device.name} in {precision}"  # case 2
    if why := _outside(kernels, known.gflop, fit.kinds, lambda strange: calibrated_ms(strange, device, precision, fit)):
        return device.band, f"outside what I know: {why}"  # case 2
    low, high = min(each.low for each in fit.evidence), max(each.high for each in fit.evidence)
    return (min(low, 1.0), max(high, 1.0)), known.line()  # case 1


def _outside(
    kernels: Sequence[Kernel],
    sizes: tuple[float, float],
    kinds: tuple[str, ...],
    time: Callable[[list[Kernel]], float],
) -> str:
    """Return what makes a network unlike those of the published rows; empty if nothing does."""
    gflop = sum(kernel.flops for kernel in kernels) / 1e9
    if not sizes[0] / _REACH <= gflop <= sizes[1] * _REACH:
        return f"{gflop:.3g} GFLOP a call; the rows have {sizes[0]:.3g} to {sizes[1]:.3g}"
    strange = [kernel for kernel in kernels if kernel.kind not in kinds]
    if strange and time(strange) > _UNKNOWN * time(list(kernels)):
        return f"no published row has {', '.join(sorted({kernel.kind for kernel in strange}))} kernels"
    return ""


def roofline(space: Space, skeleton: Callable[[Arch], nn.Module], device: Device, precision: str) -> Cost:
    """Return the cost that predicts the latency of a subnet on ``device``, with its error band.

    skeleton: returns the module of an architecture on the meta device, such as ``Supernet.skeleton``.

    Raises:
        ValueError: the profile has no peak for ``precision``.
    """
    if precision not in device.peaks or precision not in BYTES:
        known = ", ".join(p for p in device.peaks if p in BYTES)
        raise ValueError(f"no peak for {precision!r} in the profile of {device.name}; known: {known}")

    def price(arch: Arch) -> Price:
        net, shapes = skeleton(arch), space.example(arch)
        if space.deployed is not None:
            net, shapes = space.deployed(net)
        return predict(trace(net, *shapes), device, precision)

    return price
