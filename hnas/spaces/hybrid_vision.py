"""Image classifiers whose every slot chooses an operation *type* and its sizes, from 28 x 28 to 224 x 224."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hnas import ops
from hnas.ops.conv import NORMS, ConvNorm, activation, pooled
from hnas.ops.slot import Slot, divided
from hnas.space import Arch, Choice, Option, Shape, Space

# From smallest to largest by multiply-accumulates at equal channels.
TYPES = ("identity", "attention", "convnext", "mbconv", "fusedconv")


class Stage(nn.Module):
    """Slots in a row; the first changes the map's size and the width, the others keep both."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, width, H/stride, W/stride]."""
        for block in self.blocks:
            x = block(x)
        return x


class HybridVision(nn.Module):
    """[N, channels, H, W] -> class scores [N, classes]."""

    def __init__(
        self, stem: nn.Module, stages: Iterable[nn.Module], width: int, head: int, classes: int, act: str
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = ConvNorm(width, head, act=act)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The class scores of images."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        scores: Tensor = self.classifier(pooled(self.head(x), training=self.training))
        return scores


def hybrid_vision(
    classes: int = 10,
    channels: int = 1,
    resolutions: Sequence[int] = (20, 24, 28),
    stem: int = 16,
    stem_stride: int = 1,
    widths: Sequence[Sequence[int]] = ((16, 24), (32, 48), (64, 80)),
    depths: Sequence[Sequence[int]] = ((2, 3), (2, 3), (2, 3)),
    strides: Sequence[int] = (2, 2, 2),
    head: int = 160,
    types: Sequence[str] = TYPES,
    kernels: Sequence[int] = (3, 5, 7),
    fused_kernels: Sequence[int] = (3,),
    expansions: Sequence[float] = (2, 3, 4),
    fused_expansions: Sequence[float] = (1, 2),
    heads: Sequence[int] = (2, 4),
    attention_tokens: int = 64,
    activations: Sequence[str] = ("relu",),
    norm: str = "batch",
    squeeze: bool = False,
    divisions: Sequence[str] = (),
) -> Space:
    """A hybrid space of image classifiers; the defaults are the shipped Fashion-MNIST space.

    widths, depths, strides: one entry a stage; the options of its width (multiples of 8) and number of slots, and the
    stride of its first slot. types: a sub-set of ``TYPES``. attention is offered where the map has at most
    ``attention_tokens`` positions at the largest resolution, identity in slots 1 .. min(depth) - 1 of a stage: further
    back it would equal a smaller depth. expansions: of mbconv and convnext; attention's MLP takes the fused ones.
    activations, norm ("batch" | "layer", ConvNeXt's), squeeze: what quantises badly is not in the defaults.
    divisions: types that may share a slot, as "convnext+mbconv": each puts out its part of the channels, from
    proportionally smaller sizes.
    """
    _check(types, widths, depths, strides, activations, norm)
    arguments = {name: _plain(value) for name, value in locals().items() if name != "divisions" or value}
    shared = _shared(divisions, types)
    sizes: dict[str, dict[str, Sequence[Option]]] = {
        "identity": {},
        "attention": {"heads": heads, "expansion": fused_expansions},
        "convnext": {"kernel": kernels, "expansion": expansions},
        "mbconv": {"kernel": kernels, "expansion": expansions},
        "fusedconv": {"kernel": fused_kernels, "expansion": fused_expansions},
    }
    stages = list(zip(widths, depths, strides, strict=True))
    choices = {"resolution": Choice(tuple(resolutions))}
    if len(activations) > 1:
        choices["activation"] = Choice(tuple(activations))
    side = -(-max(resolutions) // stem_stride)
    for s, (width, depth, stride) in enumerate(stages):
        side = -(-side // stride)
        choices[f"stages.{s}.width"] = Choice(tuple(width))
        choices[f"stages.{s}.depth"] = Choice(tuple(depth))
        small = types if side**2 <= attention_tokens else [t for t in types if t != "attention"]
        for b in range(max(depth)):
            choices |= _slot(s, b, depth, small, sizes, shared)

    def branch(
        slot: str, kind: str, arch: Mapping[str, Any], cin: int, stride: int, parts: int, cout: int
    ) -> nn.Module:
        extras: dict[str, dict[str, Any]] = {"mbconv": {"squeeze": squeeze}, "convnext": {"norm": norm}}
        taken = {size: _part(size, arch[f"{slot}.{kind}.{size}"], parts) for size in sizes[kind]}
        act = arch.get("activation", activations[-1])
        built: nn.Module = ops.build(kind, cin, cout, stride, **taken, act=act, **extras.get(kind, {}))
        return built

    def network(arch: Mapping[str, Any], *, every_type: bool = False) -> nn.Module:
        act = arch.get("activation", activations[-1])
        cin, built = stem, []
        for s, stride in enumerate(strides):
            width, blocks = arch[f"stages.{s}.width"], []
            for b in range(arch[f"stages.{s}.depth"]):
                slot = f"stages.{s}.blocks.{b}"
                chosen: Any = choices[f"{slot}.op"].options if every_type else arch[f"{slot}.op"]
                taken = chosen if isinstance(chosen, tuple) else shared.get(chosen, (chosen,))
                kinds = [k for k in taken if k != "identity" and k not in shared]
                step, parts = stride if b == 0 else 1, len(kinds) if chosen in shared else 1
                made = {kind: partial(branch, slot, kind, arch, cin, step, parts) for kind in kinds}
                branches = divided(made, width) if parts > 1 else {kind: make(width) for kind, make in made.items()}
                gated = isinstance(chosen, tuple) and not every_type
                blocks.append(Slot(branches, residual=b > 0, gated=gated, divided=parts > 1))
                cin = width
            built.append(Stage(blocks))
        return HybridVision(ConvNorm(channels, stem, 3, stem_stride, act=act), built, cin, head, classes, act)

    def union() -> nn.Module:
        return network({name: choice.options[-1] for name, choice in choices.items()}, every_type=True)

    def example(arch: Arch) -> tuple[Shape, ...]:
        height = int(str(arch["resolution"]))
        return ((channels, height, height),)

    return Space("hybrid_vision", arguments, choices, network, union, example, initialise)


def _slot(
    s: int,
    b: int,
    depth: Sequence[int],
    types: Sequence[str],
    sizes: Mapping[str, Mapping[str, Sequence[Option]]],
    shared: Mapping[str, tuple[str, ...]],
) -> dict[str, Choice]:
    """The choices of slot ``b`` of stage ``s``: its type, and the sizes of each type that is legal there."""
    slot, certain = f"stages.{s}.blocks.{b}", b < min(depth)
    illegal = {"identity", "attention"} if b == 0 else set() if certain else {"identity"}
    legal = [kind for kind in TYPES if kind in types and kind not in illegal]
    if not legal:
        raise ValueError(f"no type of {', '.join(types)} is legal in {slot}; add a convolution type")
    when = None if certain else (f"stages.{s}.depth", tuple(d for d in depth if d > b))
    parts = {kind: (kind,) for kind in legal} | {s: kinds for s, kinds in shared.items() if set(kinds) <= set(legal)}
    # A divided slot costs about what its types cost on average.
    ordered = sorted(parts, key=lambda option: sum(TYPES.index(kind) for kind in parts[option]) / len(parts[option]))
    choices = {f"{slot}.op": Choice(tuple(ordered), when)}
    for kind in legal:
        for size, options in sizes[kind].items():
            active = tuple(option for option in ordered if kind in parts[option])
            choices[f"{slot}.{kind}.{size}"] = Choice(tuple(options), (f"{slot}.op", active))
    return choices


def _shared(divisions: Sequence[str], types: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The types of each divided slot, in the order of ``TYPES``, by the option that names them."""
    shared = {}
    for text in divisions:
        kinds = text.split("+")
        if len(set(kinds)) != len(kinds) or len(kinds) < 2 or not set(kinds) <= {*types} - {"identity"}:
            known = ", ".join(t for t in TYPES if t in types and t != "identity")
            raise ValueError(f"{text!r} does not divide a slot; join different types by '+', of {known}")
        ordered = tuple(kind for kind in TYPES if kind in kinds)
        shared["+".join(ordered)] = ordered
    return shared


def _part(size: str, value: Any, parts: int) -> Any:
    """The size of a type that shares its slot with others; a kernel is not shared."""
    if size == "expansion" and parts > 1:
        return value / parts
    return max(1, value // parts) if size == "heads" else value


def initialise(net: nn.Module) -> None:
    """He-normal convolutions; a residual branch starts at zero (Goyal et al., arXiv 1706.02677, section 5.1)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            module.weight.data.mul_(module.groups**0.5)  # fan_out counts every group's outputs, a filter feeds one
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, Slot) and module.residual:
            for name in module.branches:
                out = module.get_submodule(name).get_submodule("out")
                assert isinstance(out.weight, Tensor)
                torch.nn.init.zeros_(out.weight)


def _check(
    types: Sequence[str],
    widths: Sequence[Sequence[int]],
    depths: Sequence[Sequence[int]],
    strides: Sequence[int],
    activations: Sequence[str],
    norm: str,
) -> None:
    unknown = [t for t in types if t not in TYPES]
    if unknown:
        raise ValueError(f"no operation type {unknown[0]!r}; known: {', '.join(TYPES)}")
    if not len(widths) == len(depths) == len(strides) > 0:
        raise ValueError(
            f"widths, depths and strides need one entry a stage; got {len(widths)}, {len(depths)}, {len(strides)}"
        )
    if any(w % 8 for width in widths for w in width):
        raise ValueError(f"widths are multiples of 8; got {widths}")
    if norm not in NORMS:
        raise ValueError(f"no norm {norm!r}; known: {', '.join(NORMS)}")
    for name in activations:
        activation(name)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that the arguments are equal after a round trip through JSON."""
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
