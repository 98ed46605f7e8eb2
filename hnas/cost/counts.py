"""Costs that are counted, not timed: weights, multiply-accumulates, memory. ``counted(space, skeleton)["macs"](arch)``.

They are exact for the network of torch. A runtime may fuse operations, and may keep more in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hnas.cost import Cost, Price
from hnas.cost.flops import macs, parameters
from hnas.cost.roofline import BYTES, trace
from hnas.space import Arch, Space

COUNTED = ("weights", "macs", "memory")


def counted(space: Space, skeleton: Callable[[Arch], nn.Module]) -> dict[str, Cost]:
    """Return the counted costs of a subnet: name -> cost, in millions and in MB, so that they are near 1 as ms are.

    skeleton: returns the module of an architecture on the meta device, such as ``Supernet.skeleton``.

    1. "weights": millions of weights.
    2. "macs": millions of multiply-accumulates for one example.
    3. "memory": MB in fp32 for one example: all weights, and the most that one kernel reads and writes beside them. A
       runtime needs at least this much.

    Example: ``counted(space, supernet.skeleton)["weights"](space.largest).value``
    """

    def count_weights(arch: Arch) -> Price:  # case 1
        return _price(parameters(skeleton(arch)), "million weights")

    def count_macs(arch: Arch) -> Price:  # case 2
        return _price(macs(skeleton(arch), *space.example(arch)), "million MACs")

    def count_memory(arch: Arch) -> Price:  # case 3
        net = skeleton(arch)
        # Two examples, as in ``macs``.
        most = max((k.elements - k.weights for k in trace(net, *space.example(arch), batch=2)), default=0) / 2
        return _price(BYTES["fp32"] * (parameters(net) + most), "MB")

    return dict(zip(COUNTED, (count_weights, count_macs, count_memory), strict=True))


def _price(count: float, unit: str) -> Price:
    value = count / 1e6
    return Price(value, unit, value, value, "predicted")
