"""Make random networks, ``network(seed, number)``, and the settings that each is tested with, ``asks(...)``.

A network and its settings depend only on seed and number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnas import spaces
from hnas.benchmarks.fuzz.drawn import draw_network
from hnas.export.diagnosis.trial import Call, Setting
from hnas.export.graph.fusion import passes_for
from hnas.export.graph.program import Program, capture
from hnas.ops.conv import BatchNorm
from hnas.study import pool_moments
from hnas.supernet import Supernet

EACH = 8  # cases of one network, which is captured once
CALLS = 4  # calls of a case, at batch 1

# Kernel, expanded channels, output channels and stride of the blocks of two stages.
_BLOCKS = (((3, 0, 8, 1),), ((5, 16, 16, 2), (5, 32, 16, 1)))
# Small members of every kind of space, with the options of the space switched on.
SPACES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("hybrid_vision", {"resolutions": (12, 15, 20), "head": 32}),
    ("hybrid_vision", {"resolutions": (14, 16), "activations": ("relu", "hardswish", "gelu"), "head": 24}),
    ("hybrid_vision", {"resolutions": (16,), "norm": "layer", "squeeze": True, "channels": 3, "head": 32}),
    (
        "hybrid_vision",
        {"resolutions": (16, 19), "divisions": ("mbconv+fusedconv", "convnext+mbconv"), "stem_stride": 2, "head": 16},
    ),
    ("padnas_mobile", {"resolution": 16, "stem_stride": 1, "width": 0.25, "classes": 10}),
    ("padnas_mobile", {"resolution": 24, "width": 0.25, "large": True, "classes": 10}),
    ("nasbench201", {"resolution": 12}),
    ("nasbench201", {"resolution": 16, "channels": 3, "width": 4, "cells": 2}),
    ("tabular_digits", {}),
    ("darts_recurrent", {"window": 3, "widths": (8,), "nodes": 2}),
    ("recurrent_cell", {"window": 3, "widths": (8,), "nodes": (1, 2)}),
    ("mobilenetv3", {"resolution": 28, "width": 0.25}),
    ("inverted_residuals", {"resolutions": (16, 20), "stem": 8, "head": 32, "stages": _BLOCKS}),
)


@dataclass(frozen=True)
class Ask:
    """The setting of one case: backend, precision, passes and batch size."""

    setting: Setting
    batch: int = 1


@dataclass(frozen=True, eq=False)
class FuzzNetwork:
    """A network and inputs for it; ``title`` is the name of its space, or "drawn"."""

    title: str
    net: nn.Module
    calls: tuple[Call, ...]

    def program(self, batch: int) -> tuple[Program, list[Call]]:
        """Return the program captured at a batch size, and the calls at that size."""
        calls = [
            tuple(torch.cat(values) for values in zip(*self.calls[start : start + batch], strict=True))
            for start in range(0, len(self.calls), batch)
        ]
        return capture(self.net, calls[0]), calls


def network(seed: int, number: int) -> FuzzNetwork:
    """Return network ``number`` of a seed: odd numbers are drawn operator by operator, even ones come from spaces."""
    rng = Random(f"{seed}/{number}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(rng.getrandbits(32))
        if number % 2:
            net, shapes = draw_network(rng)
            title = "drawn"
        else:
            name, arguments = SPACES[number // 2 % len(SPACES)]
            net, shapes = _member(SPACES.index((name, arguments)), rng)
            title = name
        calls = tuple(tuple(_picture(shape, index) for shape in shapes) for index in range(CALLS))
    return FuzzNetwork(title, net, calls)


def asks(seed: int, number: int, backends: Sequence[str]) -> list[Ask]:
    """Return the cases of network ``number``: every backend in fp32, passes on and off, other batches, and int8."""
    rng = Random(f"{seed}/{number}/asks")
    found = [Ask(Setting(backend)) for backend in backends]
    found.append(Ask(Setting("reference", passes=_some_passes(rng, rng.choice(backends)))))
    while len(found) < EACH:
        backend, batch = rng.choice(backends), rng.choice((1, 1, 2, 4))
        precision = "int8" if len(found) >= EACH - 2 else "fp32"
        passes = _some_passes(rng, backend) if batch == 1 and rng.random() < 0.6 else None
        found.append(Ask(Setting(backend, precision, passes=passes), batch))
    return found


def _some_passes(rng: Random, backend: str) -> tuple[str, ...]:
    """Return no pass of the backend, one pass, all but one, or a random subset."""
    names = tuple(each.__name__ for each in passes_for(backend))
    kind = rng.randrange(4)
    one = rng.choice(names)
    if kind == 0:
        return ()
    if kind == 1:
        return (one,)
    return tuple(name for name in names if (name != one if kind == 2 else rng.random() < 0.5))


@cache
def _supernet(index: int) -> Supernet:
    """Return a supernet with random norms; branches that start at zero would hide their operators."""
    name, arguments = SPACES[index]
    supernet = Supernet(spaces.load(name)(**arguments), seed=index)
    with torch.random.fork_rng(devices=[]):  # the supernet is made once, by whichever case comes first
        torch.manual_seed(index)
        for module in supernet.union.modules():
            if isinstance(module, BatchNorm | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.2, 0.8)
                nn.init.normal_(module.bias, 0.0, 0.2)
    return supernet


def _member(index: int, rng: Random) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    """Return a random subnet of a space with recalibrated norms, and the shapes of its inputs."""
    supernet = _supernet(index)
    arch = supernet.space.sample(rng)
    shapes = supernet.space.example(arch)
    chunk = tuple(torch.cat([_picture(shape, index) for index in range(16)]) for shape in shapes)
    return supernet.extract(arch, pool_moments(supernet, arch, [chunk], 16)), shapes


def _picture(shape: tuple[int, ...], index: int) -> Tensor:
    """Return a map that varies slowly, as images do, with some noise; every third map is noise alone."""
    if len(shape) < 3 or index % 3 == 2:
        return torch.randn(1, *shape)
    coarse = torch.randn(1, shape[0], 4, 4)
    return F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True) + 0.1 * torch.randn(1, *shape)
