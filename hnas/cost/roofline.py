"""Latency predicted from a device profile: the roofline (Williams et al. 2009) of every kernel plus a launch time.

The kernels are traced on the meta device: nothing is executed, and no layer is known by name. Batch norm, activations
and additions count as fused into the kernel before them, as in TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hnas.cost import Cost, Price
from hnas.hw_profiles import Device
from hnas.space import Arch, Space

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "w8": 4}  # of an activation; w8 has int8 weights alone
# Kernels whose arithmetic the counter does not know; they read and write memory.
MOVES = ("softmax", "mean", "clone", "_adaptive_avg_pool2d", "native_layer_norm")


@dataclass(frozen=True)
class Kernel:
    """One kernel launch.

    flops: floating point operations; a multiply-accumulate is two.
    elements: values that are read from and written to memory.
    """

    name: str
    flops: int
    elements: int


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # a hook of torch
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        count = flop_registry.get(func._overloadpacket)
        if count is not None or any(move in name for move in MOVES):
            flops = int(count(*args, **(kwargs or {}), out_val=out)) if count else 0
            tensors = [t for t in (*args, *(out if isinstance(out, tuple) else (out,))) if isinstance(t, Tensor)]
            self.kernels.append(Kernel(name, flops, sum(t.numel() for t in tensors)))
        return out


def trace(net: nn.Module, *shapes: tuple[int, ...]) -> list[Kernel]:
    """Return the kernels of ``net`` in order, for one example.

    net: on the meta device.
    shapes: the shape of each input, without the batch axis.
    """
    mode = net.training
    net.train()  # needs no running moments; the kernels are the same
    try:
        with torch.no_grad(), torch.device("meta"), _Trace() as found:
            net(*(torch.empty(1, *shape) for shape in shapes))
    finally:
        net.train(mode)
    kernels: list[Kernel] = found.kernels
    return kernels


def latency_ms(kernels: list[Kernel], device: Device, precision: str) -> float:
    """Return the sum over kernels of max(arithmetic, memory traffic) + launch time, in milliseconds."""
    peak = device.peaks[precision] * 1e9
    bandwidth = device.bandwidth * 1e9
    floor = device.launch_us * 1e-6
    return 1e3 * sum(floor + max(k.flops / peak, k.elements * BYTES[precision] / bandwidth) for k in kernels)


def roofline(space: Space, skeleton: Callable[[Arch], nn.Module], device: Device, precision: str) -> Cost:
    """Return the cost that predicts the latency of a subnet on ``device``, with the error band of the profile.

    skeleton: returns the module of an architecture on the meta device, such as ``Supernet.skeleton``.

    Raises:
        ValueError: the profile has no peak for ``precision``.
    """
    if precision not in device.peaks or precision not in BYTES:
        known = ", ".join(p for p in device.peaks if p in BYTES)
        raise ValueError(f"no peak for {precision!r} in the profile of {device.name}; known: {known}")

    def cost(arch: Arch) -> Price:
        value = latency_ms(trace(skeleton(arch), *space.example(arch)), device, precision)
        low, high = device.band
        return Price(value, "ms", value * low, value * high, "predicted")

    return cost
