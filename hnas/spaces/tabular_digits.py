"""Four slots of five types for 8 x 8 digits: 625 architectures, so small that each of them was trained alone.

What they reach is shipped as a table (``table``), which ``python -m hnas.benchmarks.papers.digits_table`` makes again:
a ground truth for everything that claims to rank architectures or operations.

The stem is pointwise and the end a global mean: what a network sees of the neighbourhood of a pixel, its four slots
have found. That spreads the accuracies, so that ranks mean something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hnas import ops
from hnas.files import read_json
from hnas.ops.conv import BatchNorm, ConvNorm, pooled
from hnas.ops.slot import Slot
from hnas.space import Arch, Choice, Shape, Space

LAYERS = 4
# type -> operation and its sizes, from smallest to largest by multiply-accumulates; identity is a slot without branch.
TYPES: dict[str, tuple[str, dict[str, int]] | None] = {
    "identity": None,
    "conv1": ("preconv", {"kernel": 1}),
    "avg3": ("poolconv", {}),
    "dw5": ("separable", {"kernel": 5}),
    "conv3": ("preconv", {"kernel": 3}),
}
ACT = "relu"
SLOTS = tuple(f"blocks.{b}" for b in range(LAYERS))


@dataclass(frozen=True)
class Row:
    """What an architecture reached when it was trained alone, and what it costs.

    test, search: accuracy on that split, one for each seed. latency_ms: measured, on the machine that the table names;
    None in a table that was made without.
    """

    test: tuple[float, ...]
    search: tuple[float, ...]
    params: int
    macs: int
    latency_ms: float | None = None

    @property
    def accuracy(self) -> float:
        """The mean test accuracy: the truth."""
        return sum(self.test) / len(self.test)


class TabularDigits(nn.Module):
    """[N, channels, H, W] -> class scores [N, classes]."""

    def __init__(self, channels: int, width: int, blocks: Iterable[nn.Module], classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(channels, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = BatchNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The class scores of images."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.classifier(pooled(F.relu(self.norm(x)), training=self.training))
        return scores


def tabular_digits(classes: int = 10, channels: int = 1, resolution: int = 8, width: int = 16) -> Space:
    """The space for square images; the table is of the defaults."""
    arguments = dict(locals())
    choices = {f"{slot}.op": Choice(tuple(TYPES)) for slot in SLOTS}

    def block(kinds: Iterable[str], gated: bool) -> nn.Module:
        wanted = [(kind, TYPES[kind]) for kind in kinds]
        branches = {kind: ops.build(op[0], width, width, 1, **op[1], act=ACT) for kind, op in wanted if op}
        return Slot(branches, residual=True, gated=gated)

    def network(arch: Mapping[str, Any]) -> nn.Module:
        chosen = [arch[name] for name in choices]
        relaxed = [isinstance(kinds, tuple) for kinds in chosen]
        blocks = [block(k if many else (k,), many) for k, many in zip(chosen, relaxed, strict=True)]
        return TabularDigits(channels, width, blocks, classes)

    def union() -> nn.Module:
        return TabularDigits(channels, width, [block(TYPES, gated=False) for _ in SLOTS], classes)

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((channels, resolution, resolution),)

    return Space("tabular_digits", arguments, choices, network, union, example, initialise)


def initialise(net: nn.Module) -> None:
    """He-normal convolutions, a classifier of unit spread; 100 steps are too few for branches that start at zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            module.weight.data.mul_(module.groups**0.5)  # fan_out counts every group's outputs, a filter feeds one
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)


def arch_of(types: Iterable[str]) -> Arch:
    """The architecture with these types, from the first slot to the last."""
    return Arch({f"{slot}.op": kind for slot, kind in zip(SLOTS, types, strict=True)})


def table(file: Path | None = None) -> dict[Arch, Row]:
    """The shipped table, or the one in ``file``; ValueError in one line where it is none."""
    record = record_of(file)
    try:
        return {arch_of(row.pop("types")): _row(row) for row in map(dict, record["archs"])}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file or 'the shipped table'} is no table of tabular_digits; make it again") from None


def record_of(file: Path | None = None) -> dict[str, Any]:
    """All that the table's file says: the settings, the versions, the noise, and the rows as ``archs``."""
    if file is not None:
        return read_json(file)
    with resources.as_file(resources.files("hnas") / "assets" / "tabular_digits.json") as shipped:
        return read_json(shipped)


def _row(fields: Mapping[str, Any]) -> Row:
    return Row(**{**fields, "test": tuple(fields["test"]), "search": tuple(fields["search"])})
