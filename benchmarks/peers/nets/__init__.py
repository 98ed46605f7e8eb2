"""The networks on which artifacts are compared: eight of published kinds, five subnets of the shipped supernet.

Weights are random, batch norms hold the moments that real images give them: activations are as sane as a trained net's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hnas.benchmarks.peers.nets import attention, mobile, subnets, vision
from hnas.benchmarks.peers.nets.parts import Net, bytes_of_text, images

SAMPLES = 32  # to calibrate on, and as many others to judge int8 by


def names() -> tuple[str, ...]:
    """Every network, the subnets last; `TINY` is for tests alone."""
    return (*_NETS, *subnets.NAMES)


def load(name: str) -> Net:
    """The network of that name, the same each time; ValueError for an unknown one."""
    if name in subnets.NAMES:
        return subnets.load(name, SAMPLES)
    known = _NETS | TINY
    if name not in known:
        raise ValueError(f"no net {name!r}; known: {', '.join(names())}")
    return known[name]()


_NETS: dict[str, Callable[[], Net]] = {
    "resnet18": partial(images, vision.ResNet, 224, SAMPLES),
    "mobilenetv2": partial(images, mobile.mobilenet_v2, 224, SAMPLES),
    "mobilenetv3": partial(images, mobile.mobilenet_v3, 224, SAMPLES),
    "efficientnet_lite0": partial(images, mobile.efficientnet_lite0, 224, SAMPLES),
    "convnext": partial(images, vision.ConvNeXt, 224, SAMPLES),
    "vit": partial(images, attention.ViT, 224, SAMPLES),
    "unet": partial(images, vision.UNet, 128, SAMPLES),
    "encoder": partial(bytes_of_text, attention.Encoder, 64, SAMPLES),
}
TINY: dict[str, Callable[[], Net]] = {"tiny": partial(images, vision.Tiny, 32, 8)}
