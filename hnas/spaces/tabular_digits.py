"""Four slots of five types for 8 x 8 digits: 625 architectures, each of which was trained alone.

``read_table()[arch_of(["conv3", "dw5", "avg3", "identity"])].accuracy`` is the accuracy of one of them.

The table of their accuracies is the ground truth for methods that rank architectures or operations.
``python -m hnas.benchmarks.papers.digits_table`` makes it again.

The stem is pointwise, and the last layer is a global mean. Only the four slots see the neighbourhood of a pixel. The
accuracies therefore differ enough to be ranked.
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
# type -> operation and its sizes, from smallest to largest by multiply-accumulates; identity has no branch.
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
class _TabularRow:
    """Accuracy and costs of an architecture that was trained alone.

    test: accuracy on the test split, one value for each seed.
    search: accuracy on the search split, one value for each seed.
    params: the number of weights.
    macs: multiply-accumulates of one image.
    latency_ms: measured on the machine that the table names; None in a table without latencies.
    """

    test: tuple[float, ...]
    search: tuple[float, ...]
    params: int
    macs: int
    latency_ms: float | None = None

    @property
    def accuracy(self) -> float:
        """Return the mean test accuracy."""
        return sum(self.test) / len(self.test)


class _TabularDigits(nn.Module):
    """[N, channels, H, W] -> class scores [N, classes]."""

    def __init__(self, channels: int, width: int, blocks: Iterable[nn.Module], classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(channels, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = BatchNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores of images."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.classifier(pooled(F.relu(self.norm(x)), training=self.training))
        return scores


def tabular_digits(classes: int = 10, channels: int = 1, resolution: int = 8, width: int = 16) -> Space:
    """Return the space for square images. The table belongs to the defaults."""
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
        return _TabularDigits(channels, width, blocks, classes)

    def union() -> nn.Module:
        return _TabularDigits(channels, width, [block(TYPES, gated=False) for _ in SLOTS], classes)

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((channels, resolution, resolution),)

    return Space("tabular_digits", arguments, choices, network, union, example, _initialise)


def _initialise(net: nn.Module) -> None:
    """Draw He-normal convolutions and a classifier of unit variance.

    Branches do not start at zero, because 100 training steps are too few for that.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            module.weight.data.mul_(module.groups**0.5)  # fan_out counts the outputs of every group
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)


def arch_of(types: Iterable[str]) -> Arch:
    """Return the architecture with these types, from the first slot to the last."""
    return Arch({f"{slot}.op": kind for slot, kind in zip(SLOTS, types, strict=True)})


def read_table(file: Path | None = None) -> dict[Arch, _TabularRow]:
    """Return the shipped table, or the table in ``file``. Raise ValueError for a malformed file."""
    record = read_record(file)
    try:
        return {arch_of(row.pop("types")): _row(row) for row in map(dict, record["archs"])}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file or 'the shipped table'} is not a table of tabular_digits; make it again") from None


def read_record(file: Path | None = None) -> dict[str, Any]:
    """Return the record of the shipped table, or of ``file``: settings, versions, noise, and the rows as ``archs``."""
    if file is not None:
        return read_json(file)
    with resources.as_file(resources.files("hnas") / "assets" / "tabular_digits.json") as shipped:
        return read_json(shipped)


def _row(fields: Mapping[str, Any]) -> _TabularRow:
    return _TabularRow(**{**fields, "test": tuple(fields["test"]), "search": tuple(fields["search"])})
