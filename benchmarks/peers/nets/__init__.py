"""Load the networks on which artifacts are compared: ``load("resnet18")``.

Eight are of published kinds, five are subnets of the shipped supernet. Weights are random. Batch norms hold the moments
of real images, so activations are in the range of a trained net's. Six more are timm's, on photographs; one of them is
trained. They need packages that hnas does not, see ``missing(name)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hnas.benchmarks.peers.nets import attention, mobile, photographs, subnets, vision
from hnas.benchmarks.peers.nets.parts import PeerNet, bytes_of_text, images

_PHOTOGRAPHED = (*photographs.NAMES, *photographs.MORE)
_SAMPLES = 32  # for calibration, and as many others to judge int8


def names() -> tuple[str, ...]:
    """Return the names of all networks, the subnets last; `TINY` is only for tests."""
    return (*_NETS, *photographs.NAMES, *subnets.NAMES)


def missing(name: str) -> str | None:
    """Return which packages a network needs that are not installed, or None."""
    return photographs.missing(name) if name in _PHOTOGRAPHED else None


def load(name: str) -> PeerNet:
    """Return the network of a name, the same each time; raise ValueError for an unknown name."""
    if name in subnets.NAMES:
        return subnets.load_subnet(name, _SAMPLES)
    if name in _PHOTOGRAPHED:
        return photographs.load(name, _SAMPLES)
    known = _NETS | TINY
    if name not in known:
        raise ValueError(f"no net {name!r}; known: {', '.join(names())}")
    return known[name]()


_NETS: dict[str, Callable[[], PeerNet]] = {
    "resnet18": partial(images, vision.ResNet18, 224, _SAMPLES),
    "mobilenetv2": partial(images, mobile.mobilenet_v2, 224, _SAMPLES),
    "mobilenetv3": partial(images, mobile.mobilenet_v3, 224, _SAMPLES),
    "efficientnet_lite0": partial(images, mobile.efficientnet_lite0, 224, _SAMPLES),
    "convnext": partial(images, vision.ConvNeXtAtto, 224, _SAMPLES),
    "vit": partial(images, attention.ViT, 224, _SAMPLES),
    "unet": partial(images, vision.UNet, 128, _SAMPLES),
    "encoder": partial(bytes_of_text, attention.Encoder, 64, _SAMPLES),
}
TINY: dict[str, Callable[[], PeerNet]] = {"tiny": partial(images, vision.Tiny, 32, 8)}
