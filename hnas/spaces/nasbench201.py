"""NAS-Bench-201 (Dong & Yang, arXiv 2001.00326): 15,625 cells, for which stand-alone accuracies are published.

A cell has 4 nodes and 6 edges. An edge from node i to node j > i chooses one of five operations. A node is the sum of
its edges. All cells of a network make the same choices, each cell with its own weights.

A slot is one edge of all cells: ``edges.0_1`` has for each type one copy for each cell, such as
``edges.0_1.nor_conv_3x3.<cell>``. Every weight that a choice decides is therefore at ``<slot>.<type>``, and the gates
``edges.0_1.gates`` of a relaxed slot act on every cell. Every type is a branch, also ``none`` and ``skip_connect``, so
that gates have one entry for each type.

The network: 3 x 3 convolution, three stages of cells, a residual block of stride 2 before the second and third stage,
norm, global mean, linear classifier. The benchmark has 5 cells in each stage and 16 channels.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from hnas import ops
from hnas.ops.avgpool import WINDOW
from hnas.ops.conv import BatchNorm, ConvNorm, activation, pooled
from hnas.ops.preconv import PreConv
from hnas.space import Arch, Choice, Shape, Space
from hnas.spaces.hybrid_vision import initialise

NODES = 4
STAGES = 3


def _edges_of(nodes: int) -> dict[str, tuple[int, int]]:
    """Return slot -> (from node, to node) for a cell, in the order of the published names."""
    return {f"edges.{source}_{node}": (source, node) for node in range(1, nodes) for source in range(node)}


EDGES = _edges_of(NODES)
# type -> operation and its sizes, from smallest to largest by multiply-accumulates.
TYPES: dict[str, tuple[str, dict[str, int]]] = {
    "none": ("none", {}),
    "skip_connect": ("skip", {}),
    "avg_pool_3x3": ("avgpool", {}),
    "nor_conv_1x1": ("preconv", {"kernel": 1}),
    "nor_conv_3x3": ("preconv", {"kernel": 3}),
}
# The effect on a path of the types without weights: no path, no change, an average over k x k positions.
NONE = ("none",)
SKIPS = ("skip_connect",)
POOLS = {"avg_pool_3x3": WINDOW}

_ACT = "relu"


class _Edge(nn.Module):
    """One edge of every cell, with one copy of each type for each cell.

    types: one type, or several with ``gated``.
    widths: the channels of each cell.
    gated: return sum_i gates[i] * operation_i (relaxed search), with the same gates in every cell.
    """

    def __init__(self, types: Sequence[str], widths: Sequence[int], *, gated: bool) -> None:
        super().__init__()
        self.branches = tuple(types)
        for kind in types:
            name, sizes = TYPES[kind]
            copies = [ops.build(name, width, width, 1, **sizes, act=_ACT) for width in widths]
            self.add_module(kind, nn.ModuleList(copies))
        self.gates = nn.Parameter(torch.ones(len(self.branches))) if gated else None

    def forward(self, x: Tensor, cell: int) -> Tensor:
        """Return [N, C, H, W] from [N, C, H, W], by the copies of ``cell``."""
        return _sum(self._weighted(x, cell, k) for k in range(len(self.branches)))

    def _weighted(self, x: Tensor, cell: int, k: int) -> Tensor:
        y: Tensor = self.get_submodule(f"{self.branches[k]}.{cell}")(x)
        return y if self.gates is None else self.gates[k] * y


class _Reduction(nn.Module):
    """Residual block that halves the map: two 3 x 3 convolutions, plus average pooling and a 1 x 1 convolution."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first = PreConv(cin, cout, 2, kernel=3, act=_ACT)
        self.second = PreConv(cout, cout, 1, kernel=3, act=_ACT)
        self.pool = nn.AvgPool2d(2)
        self.shortcut = nn.Conv2d(cin, cout, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/2, W/2]."""
        y: Tensor = self.shortcut(self.pool(x)) + self.second(self.first(x))
        return y


class _NasBench201(nn.Module):
    """[N, channels, H, W] -> class scores [N, classes]; cells are numbered through all stages."""

    def __init__(self, types: Mapping[str, Sequence[str]], gated: set[str], sizes: tuple[int, int, int, int]) -> None:
        super().__init__()
        channels, width, self.cells, classes = sizes
        self.nodes = 1 + max(int(slot.rpartition("_")[2]) for slot in types)
        widths = [width * 2**stage for stage in range(STAGES)]
        self.stem = ConvNorm(channels, width, 3)
        of_cells = [w for w in widths for _ in range(self.cells)]
        built = {slot.split(".")[1]: _Edge(types[slot], of_cells, gated=slot in gated) for slot in types}
        self.edges = nn.ModuleDict(built)
        self.reductions = nn.ModuleList(_Reduction(w, 2 * w) for w in widths[:-1])
        self.norm = BatchNorm(widths[-1])
        self.act = activation(_ACT)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores of images."""
        x = self.stem(x)
        for stage in range(STAGES):
            if stage:
                x = self.reductions[stage - 1](x)
            for cell in range(stage * self.cells, (stage + 1) * self.cells):
                x = self._cell(x, cell)
        scores: Tensor = self.classifier(pooled(self.act(self.norm(x)), training=self.training))
        return scores

    def _cell(self, x: Tensor, cell: int) -> Tensor:
        nodes = [x]
        for node in range(1, self.nodes):
            nodes.append(_sum(self.edges[f"{i}_{node}"](nodes[i], cell) for i in range(node)))
        return nodes[-1]


def nasbench201(
    classes: int = 10, channels: int = 1, resolution: int = 28, width: int = 8, cells: int = 1, nodes: int = NODES
) -> Space:
    """Return the space for square images.

    classes: number of classes.
    channels: 1 (grey) or 3 (RGB).
    resolution: height and width of the images, a multiple of 4.
    width: number of channels in the first stage.
    cells: number of cells in each stage.
    nodes: number of nodes of a cell, from 2 to 4. A cell of 3 nodes has 3 edges, so that the space has 125 cells.

    Raises:
        ValueError: ``resolution`` is not a multiple of 4, ``width`` or ``cells`` is below 1, or ``nodes`` is not from 2
            to 4.

    Example: ``nasbench201(channels=3, resolution=32, width=16, cells=5)`` has the networks of the benchmark.
    """
    if resolution < 4 or resolution % 4:
        raise ValueError(f"the resolution is halved twice, so it is a multiple of 4; got {resolution}")
    if width < 1 or cells < 1:
        raise ValueError(f"width and cells are whole numbers from 1 on; got {width} and {cells}")
    if not 2 <= nodes <= NODES:
        raise ValueError(f"a cell has 2 to {NODES} nodes; got {nodes}")
    arguments = {name: value for name, value in locals().items() if name != "nodes" or value != NODES}
    edges = _edges_of(nodes)
    choices = {f"{slot}.op": Choice(tuple(TYPES)) for slot in edges}
    sizes = (channels, width, cells, classes)

    def network(arch: Mapping[str, Any]) -> nn.Module:
        chosen = {slot: arch[f"{slot}.op"] for slot in edges}
        gated = {slot for slot, types in chosen.items() if isinstance(types, tuple)}
        return _NasBench201(
            {slot: types if slot in gated else (types,) for slot, types in chosen.items()}, gated, sizes
        )

    def union() -> nn.Module:
        return _NasBench201(dict.fromkeys(edges, tuple(TYPES)), set(), sizes)

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((channels, resolution, resolution),)

    return Space("nasbench201", arguments, choices, network, union, example, initialise)


def pools(space: Space) -> dict[str, tuple[int, int]]:
    """Return type of pooling -> (kernel, number of channels that an edge pools, summed over all cells)."""
    width, cells = int(space.arguments["width"]), int(space.arguments["cells"])
    channels = sum(cells * width * 2**stage for stage in range(STAGES))
    return {kind: (kernel, channels) for kind, kernel in POOLS.items()}


def to_string(arch: Mapping[str, Any]) -> str:
    """Return the published name: ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|``, one group for each node."""
    groups: list[str] = []
    for node in range(1, NODES):
        groups.append("".join(f"|{arch[f'{s}.op']}~{i}" for s, (i, end) in EDGES.items() if end == node) + "|")
    return "+".join(groups)


def from_string(text: str) -> Arch:
    """Return the architecture with this published name. Raise ValueError for a malformed name."""
    types = re.findall(r"\|(\w+)~", text)
    if len(types) == len(EDGES) and all(kind in TYPES for kind in types):
        arch = Arch({f"{slot}.op": kind for slot, kind in zip(EDGES, types, strict=True)})
        if to_string(arch) == text:
            return arch
    form = "|TYPE~0|+|TYPE~0|TYPE~1|+|TYPE~0|TYPE~1|TYPE~2|"
    raise ValueError(f"{text!r} is not a cell; expected {form} with types of {', '.join(TYPES)}")


def _sum(terms: Iterator[Tensor]) -> Tensor:
    """Return the sum. Each term is computed when it is added, so that terms without gradients are not kept."""
    return reduce(operator.add, terms)
