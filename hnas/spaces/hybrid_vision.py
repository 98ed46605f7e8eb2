"""Image classifiers in which every slot chooses an operation type and its sizes, for 28 x 28 to 224 x 224 pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hnas import ops
from hnas.ops.conv import NORMS, ConvNorm, activation, pooled
from hnas.ops.slot import Slot, divided
from hnas.space import Arch, Choice, Option, Shape, Space

# From smallest to largest by multiply-accumulates at equal channels. A slot with "identity" always adds its input. A
# slot with "skip" never does: there the identity is one branch among others.
TYPES = ("identity", "skip", "attention", "convnext", "mbconv", "fusedconv")
DEFAULT = tuple(kind for kind in TYPES if kind != "skip")


class Stage(nn.Module):
    """A sequence of slots; the first one changes the size of the map and the width, the others keep both."""

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
        """Return the class scores of images."""
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
    types: Sequence[str] = DEFAULT,
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
    """Return a hybrid space of image classifiers; the defaults are the shipped Fashion-MNIST space.

    classes: the number of classes.
    channels: 1 (grey) or 3 (RGB).
    resolutions: possible heights and widths of the input, in pixels.
    stem: channels of the first convolution.
    stem_stride: stride of the first convolution.
    widths: for each stage the possible numbers of channels, multiples of 8.
    depths: for each stage the possible numbers of slots.
    strides: for each stage the stride of its first slot.
    head: channels of the last convolution.
    types: some of ``TYPES``. Identity is offered in the slots 1 .. min(depth) - 1 of a stage: in a later slot it would
        equal a smaller depth. "skip" in place of "identity" makes it compete: such a slot does not add its input to the
        output, as in the cells of DARTS.
    kernels: of mbconv and convnext.
    fused_kernels: of fusedconv.
    expansions: of mbconv and convnext.
    fused_expansions: of fusedconv and of the MLP in attention.
    heads: of attention.
    attention_tokens: attention is offered only in maps of at most this many positions (height times width) at the
        largest resolution.
    activations: possible activations; those that quantise badly are not in the defaults.
    norm: of convnext, "batch" or "layer"; "layer" quantises badly.
    squeeze: squeeze-excite in mbconv, which quantises badly.
    divisions: types that may share a slot, such as "convnext+mbconv". Each type outputs a part of the channels, and its
        expansion or number of heads is divided by the number of types.

    Raises:
        ValueError: arguments contradict each other or name something unknown.
    """
    _check(types, widths, depths, strides, activations, norm)
    arguments = {name: as_lists(value) for name, value in locals().items() if name != "divisions" or value}
    shared = _shared(divisions, types)
    sizes: dict[str, dict[str, Sequence[Option]]] = {
        **{kind: {} for kind in ("identity", "skip")},
        "attention": {"heads": heads, "expansion": fused_expansions},
        "convnext": {"kernel": kernels, "expansion": expansions},
        "mbconv": {"kernel": kernels, "expansion": expansions},
        "fusedconv": {"kernel": fused_kernels, "expansion": fused_expansions},
    }
    choices = {"resolution": Choice(tuple(resolutions))}
    if len(activations) > 1:
        choices["activation"] = Choice(tuple(activations))
    side = -(-max(resolutions) // stem_stride)
    for s, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True)):
        side = -(-side // stride)
        small = types if side**2 <= attention_tokens else [t for t in types if t != "attention"]
        choices |= {f"stages.{s}.width": Choice(tuple(width)), f"stages.{s}.depth": Choice(tuple(depth))}
        for b in range(max(depth)):
            choices |= _slot(s, b, depth, small, sizes, shared)
    builder = _Builder(
        stem=lambda act: ConvNorm(channels, stem, 3, stem_stride, act=act),
        width=stem,
        strides=tuple(strides),
        head=head,
        classes=classes,
        act=activations[-1],
        extras={"mbconv": {"squeeze": squeeze}, "convnext": {"norm": norm}},
        sizes=sizes,
        shared=shared,
        choices=choices,
    )

    def example(arch: Arch) -> tuple[Shape, ...]:
        height = int(str(arch["resolution"]))
        return ((channels, height, height),)

    return Space("hybrid_vision", arguments, choices, builder.network, builder.union, example, initialise)


@dataclass(frozen=True)
class _Builder:
    """Make the networks of a space; the fields are common to all of them.

    stem: makes the first convolution for an activation.
    width: the channels of the stem.
    act: the activation where the space offers no choice.
    extras: further arguments of an operation, by type.
    sizes: the options of each size, by type.
    shared: the types of each option that divides a slot.
    """

    stem: Callable[[str], nn.Module]
    width: int
    strides: tuple[int, ...]
    head: int
    classes: int
    act: str
    extras: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, Mapping[str, Sequence[Option]]]
    shared: Mapping[str, tuple[str, ...]]
    choices: Mapping[str, Choice]

    def network(self, arch: Mapping[str, Any]) -> nn.Module:
        """Return the module of an architecture; a slot with several types is gated."""
        return self._network(arch, every_type=False)

    def union(self) -> nn.Module:
        """Return the module with every type of every slot at its largest sizes."""
        return self._network({name: choice.options[-1] for name, choice in self.choices.items()}, every_type=True)

    def _network(self, arch: Mapping[str, Any], *, every_type: bool) -> nn.Module:
        act = arch.get("activation", self.act)
        cin, stages = self.width, []
        for s, stride in enumerate(self.strides):
            width, blocks = arch[f"stages.{s}.width"], []
            for b in range(arch[f"stages.{s}.depth"]):
                path = f"stages.{s}.blocks.{b}"
                chosen: Any = self.choices[f"{path}.op"].options if every_type else arch[f"{path}.op"]
                built = partial(self._branch, path, arch, cin, stride if b == 0 else 1)
                residual = b > 0 and "skip" not in self.choices[f"{path}.op"].options
                blocks.append(self._slot(chosen, built, width, residual=residual, gated=not every_type))
                cin = width
            stages.append(Stage(blocks))
        return HybridVision(self.stem(act), stages, cin, self.head, self.classes, act)

    def _slot(
        self, chosen: Any, built: Callable[[str, int, int], nn.Module], width: int, *, residual: bool, gated: bool
    ) -> Slot:
        """Return a slot of ``width`` channels.

        chosen: an option of the slot, or a tuple of them.
        built: returns the branch of a type, for the number of types that share the slot and its output channels.
        """
        several = isinstance(chosen, tuple)
        taken = chosen if several else self.shared.get(chosen, (chosen,))
        kinds = [kind for kind in taken if kind != "identity" and kind not in self.shared]
        if not several and chosen in self.shared:
            makers = {kind: partial(built, kind, len(kinds)) for kind in kinds}
            return Slot(divided(makers, width), residual=residual, divided=True)
        branches = {kind: built(kind, 1, width) for kind in kinds}
        return Slot(branches, residual=residual, gated=several and gated)

    def _branch(
        self, path: str, arch: Mapping[str, Any], cin: int, stride: int, kind: str, parts: int, cout: int
    ) -> nn.Module:
        sizes = {size: _part(size, arch[f"{path}.{kind}.{size}"], parts) for size in self.sizes[kind]}
        act = arch.get("activation", self.act)
        built: nn.Module = ops.build(kind, cin, cout, stride, **sizes, act=act, **self.extras.get(kind, {}))
        return built


def _slot(
    s: int,
    b: int,
    depth: Sequence[int],
    types: Sequence[str],
    sizes: Mapping[str, Mapping[str, Sequence[Option]]],
    shared: Mapping[str, tuple[str, ...]],
) -> dict[str, Choice]:
    """Return the choices of slot ``b`` of stage ``s``: its type, and the sizes of each type that is legal there."""
    slot, certain = f"stages.{s}.blocks.{b}", b < min(depth)
    legal = _legal(b, types, certain=certain)
    if not legal:
        raise ValueError(f"no type of {', '.join(types)} is legal in {slot}; add a convolution type")
    when = None if certain else (f"stages.{s}.depth", tuple(d for d in depth if d > b))
    parts: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in legal}
    parts |= {option: kinds for option, kinds in shared.items() if set(kinds) <= set(legal)}
    # A divided slot costs about as much as its types cost on average.
    ordered = sorted(parts, key=lambda option: sum(TYPES.index(kind) for kind in parts[option]) / len(parts[option]))
    choices = {f"{slot}.op": Choice(tuple(ordered), when)}
    for kind in legal:
        active = tuple(option for option in ordered if kind in parts[option])
        for size, options in sizes[kind].items():
            choices[f"{slot}.{kind}.{size}"] = Choice(tuple(options), (f"{slot}.op", active))
    return choices


def _legal(b: int, types: Sequence[str], *, certain: bool) -> list[str]:
    """Return the types that slot ``b`` of a stage can have; ``certain``: the slot is there at every depth."""
    illegal = set() if certain else {"identity", "skip"}
    if b == 0:  # changes the size of the map
        illegal = {"identity", "skip", "attention"}
    return [kind for kind in TYPES if kind in types and kind not in illegal]


def _shared(divisions: Sequence[str], types: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the types of each option that divides a slot, in the order of ``TYPES``."""
    shared = {}
    for text in divisions:
        kinds = text.split("+")
        if len(set(kinds)) != len(kinds) or len(kinds) < 2 or not set(kinds) <= {*types} - {"identity", "skip"}:
            known = ", ".join(t for t in TYPES if t in types and t not in ("identity", "skip"))
            raise ValueError(f"{text!r} does not divide a slot; join different types by '+', of {known}")
        ordered = tuple(kind for kind in TYPES if kind in kinds)
        shared["+".join(ordered)] = ordered
    return shared


def _part(size: str, value: Any, parts: int) -> Any:
    """Return the size ``value`` of a type that shares its slot with ``parts`` types. A kernel keeps its size."""
    if size == "expansion" and parts > 1:
        return value / parts
    return max(1, value // parts) if size == "heads" else value


def initialise(net: nn.Module) -> None:
    """Draw He-normal convolutions and set residual branches to zero (Goyal et al., arXiv 1706.02677, section 5.1)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            module.weight.data.mul_(module.groups**0.5)  # fan_out counts the outputs of every group
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
    """Raise ValueError if arguments of the space contradict each other or name something unknown."""
    unknown = [t for t in types if t not in TYPES]
    if unknown:
        raise ValueError(f"no operation type {unknown[0]!r}; known: {', '.join(TYPES)}")
    if {"identity", "skip"} <= set(types):
        raise ValueError('types has "identity" and "skip"; give one of them: a slot adds its input always or never')
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


def as_lists(value: Any) -> Any:
    """Return tuples as lists, so that arguments are equal after JSON."""
    return [as_lists(v) for v in value] if isinstance(value, tuple | list) else value
