"""Studies in which one operation was made bad on purpose: what evidence has to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from torch import nn

from hnas import spaces
from hnas.cost import Price
from hnas.journal import Journal
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas import tiny

BAD = ("blocks.2.op", "conv1")


@dataclass
class Known(Study):
    """A study that knows how good its subnets are, and only writes down what it is asked to train."""

    spaces: list[Space] = field(default_factory=list)
    truth: Callable[[Arch], float] = len

    def train(self, pick, schedule, *, space=None, **_) -> None:
        self.spaces.append(space)

    def accuracy(self, arch: Arch, split: str = "search") -> float:
        return self.truth(arch)


def digits() -> Space:
    return spaces.load("tabular_digits")(classes=4, width=8)


def noise(module: nn.Module, share: float, seed: int = 0) -> None:
    """Move every weight by ``share`` of the spread of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(share * max(float(p.std(correction=0)), 0.1) * torch.randn(p.shape, generator=generator))


def turned(space: Space, share: float = 0.5) -> Study:
    """A study whose weights have all turned."""
    supernet = Supernet(space)
    noise(supernet.union, share)
    return Study(supernet, tiny.task())


def planted(space: Space, name: str, option: object, share: float = 0.5) -> Study:
    """The same, but the weights of one operation are as they were."""
    study, fresh = turned(space, share), Supernet(space)
    branch = f"{name.removesuffix('.op')}.{option}"
    own, first = (net.union.get_submodule(branch) for net in (study.supernet, fresh))
    own.load_state_dict(first.state_dict())
    return study


def worst(scores) -> tuple[str, object]:
    return min(scores, key=scores.__getitem__)


def one_line(error) -> bool:
    return "\n" not in str(error.value)


def quality(arch: Arch) -> float:
    """Every operation has a worth of its own; the bad one costs most."""
    known = sum(0.02 * Random(f"{name}/{option}").random() for name, option in arch.items())
    return 0.8 + known - (0.3 if arch.get(BAD[0]) == BAD[1] else 0.0)


def latency(arch: Arch) -> Price:
    value = 1 + sum(Random(f"latency/{name}/{option}").random() for name, option in arch.items())
    value += arch.get(BAD[0]) == BAD[1]  # what is poor and cheap would be a trade-off
    return Price(value, "ms", value, value, "predicted")


def known(space: Space | None = None, journal: Journal | None = None) -> Known:
    """A study whose accuracies and latencies are ``quality`` and ``latency``."""
    costs = {"latency_ms": latency}
    return Known(Supernet(space or digits()), tiny.task(), costs, journal or Journal(), truth=quality)
