"""The mobile space of PAD-NAS (Xia et al., arXiv 2005.07564): 22 layers of inverted bottlenecks or identity.

Every pair of kernel and expansion is a type with its own weights. The paper keeps or prunes an operation as a whole.

The paper gives the channels, the number of searched layers and the number of architectures. Depths and strides of the
stages are derived from these numbers and from MobileNetV2, whose structure the paper starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hnas import ops
from hnas.ops.conv import ConvNorm, round8
from hnas.ops.slot import Slot
from hnas.space import Arch, Choice, Shape, Space
from hnas.spaces.hybrid_vision import HybridVision, Stage, initialise

# channels, layers, stride of the first layer
STAGES = ((16, 1, 1), (32, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
STEM, HEAD = 32, 1280
LARGE_STEM, LARGE_SECOND = 16, 24  # channels of the stem and of the second stage in the large space
_KERNELS = (3, 5, 7)
EXPANSIONS, LARGE_EXPANSIONS = (3, 6), (1, 2, 3, 4, 5, 6)
_FIRST_EXPANSION = 1  # of the first stage, whose only layer chooses its kernel alone
ACT = "relu6"


def _parse_type(kind: str) -> tuple[int, int]:
    """Return (kernel, expansion) of a type: (5, 3) for ``k5e3``."""
    kernel, _, expansion = kind.removeprefix("k").partition("e")
    return int(kernel), int(expansion)


def padnas_mobile(
    classes: int = 1000,
    channels: int = 3,
    resolution: int = 224,
    stem_stride: int = 2,
    width: float = 1.0,
    large: bool = False,
) -> Space:
    """Return the basic space (3 * 6^6 * 7^15 architectures) or the large one (3 * 18^6 * 19^15).

    The defaults are those of the paper.

    classes: number of classes.
    channels: 1 (grey) or 3 (RGB).
    resolution: height and width of the images.
    stem_stride: stride of the first convolution; with 1 the last map of a 32 x 32 image is 2 x 2.
    width: factor of all channels, which are rounded to multiples of 8.
    large: the large space, with expansions from 1 to 6.

    Identity is illegal in the first layer of a stage. A bottleneck of expansion 1 has no expanding convolution.
    """
    arguments = dict(locals())
    stem, *wide = (round8(width * c) for c in (LARGE_STEM if large else STEM, *(c for c, _, _ in STAGES), HEAD))
    if large:
        wide[1] = round8(width * LARGE_SECOND)
    choices: dict[str, Choice] = {}
    for s, (_, depth, _) in enumerate(STAGES):
        expansions = (_FIRST_EXPANSION,) if s == 0 else LARGE_EXPANSIONS if large else EXPANSIONS
        types = tuple(f"k{k}e{e}" for e in expansions for k in _KERNELS)
        choices |= {
            f"stages.{s}.blocks.{b}.op": Choice(types if b == 0 else ("identity", *types)) for b in range(depth)
        }

    def network(arch: Mapping[str, Any], *, every_type: bool = False) -> nn.Module:
        cin, stages = stem, []
        for s, (_, depth, stride) in enumerate(STAGES):
            blocks = []
            for b in range(depth):
                name = f"stages.{s}.blocks.{b}.op"
                chosen: Any = choices[name].options if every_type else arch[name]
                relaxed = isinstance(chosen, tuple)
                kinds = [kind for kind in (chosen if relaxed else (chosen,)) if kind != "identity"]
                branches = {kind: _bottleneck(kind, cin, wide[s], stride if b == 0 else 1) for kind in kinds}
                blocks.append(Slot(branches, residual=b > 0, gated=relaxed and not every_type))
                cin = wide[s]
            stages.append(Stage(blocks))
        return HybridVision(ConvNorm(channels, stem, 3, stem_stride, act=ACT), stages, cin, wide[-1], classes, ACT)

    def union() -> nn.Module:
        return network({}, every_type=True)

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((channels, resolution, resolution),)

    return Space("padnas_mobile", arguments, choices, network, union, example, initialise)


def _bottleneck(kind: str, cin: int, cout: int, stride: int) -> nn.Module:
    kernel, expansion = _parse_type(kind)
    sizes = {"kernel": kernel} if expansion == 1 else {"kernel": kernel, "expansion": expansion}
    built: nn.Module = ops.build("separable" if expansion == 1 else "mbconv", cin, cout, stride, **sizes, act=ACT)
    return built
