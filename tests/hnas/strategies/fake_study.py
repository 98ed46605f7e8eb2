"""A study whose accuracy and cost are sums over choices, for tests of searches."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

from torch import nn

from hnas.cost import Price
from hnas.journal import Journal
from hnas.pareto import Candidate
from hnas.space import Arch, Choice, Space


def plain(choices: dict[str, Choice]) -> Space:
    return Space("plain", {}, choices, None, None, lambda _: (), lambda _: None)


SEPARABLE = plain({f"c{k}": Choice(tuple(range(4))) for k in range(12)})


class _Nothing(nn.Module):
    """A network without a kernel, so that no latency can be predicted from kernels."""

    def forward(self) -> None:
        """Compute nothing."""


class FakeStudy:
    """A study whose accuracy and cost are sums over choices: each option has its own share of both."""

    def __init__(self, journal: Journal | None = None, seed: int = 0) -> None:
        self.journal = journal or Journal()
        self.costs = {"latency_ms": self._latency}
        self.supernet = SimpleNamespace(skeleton=lambda _: _Nothing())
        self.search_images = 10**9
        self.known: dict[Arch, float] = {}
        self.seed, self.asked, self.evaluated = seed, list[Arch](), list[Arch]()

    def _weight(self, name: str, option: object, what: str) -> float:
        return Random(f"{self.seed}/{what}/{name}/{option}").random()

    def _latency(self, arch: Arch) -> Price:
        self.asked.append(arch)
        value = 1 + sum(self._weight(name, option, "latency") for name, option in arch.items())
        return Price(value, "ms", value, value, "predicted")

    def price(self, arch: Arch, metric: str) -> Price:
        return Price(**self.journal.call(f"cost/{metric}/{arch.digest}", lambda: self.costs[metric](arch).to_json()))

    def priced(self, arch: Arch, metric: str) -> bool:
        return f"cost/{metric}/{arch.digest}" in self.journal

    def scored(self, arch: Arch) -> bool:
        return f"accuracy/{arch.digest}" in self.journal

    def search_accuracy(self, arch: Arch) -> float:
        def accuracy() -> float:
            self.evaluated.append(arch)
            return sum(self._weight(name, option, "accuracy") for name, option in arch.items()) / max(1, len(arch))

        if arch in self.known:
            return self.known[arch]
        return float(self.journal.call(f"accuracy/{arch.digest}", accuracy))

    def score(self, arch: Arch) -> Candidate:
        metrics = {"latency_ms": self.price(arch, "latency_ms").value}
        return Candidate(arch, {**metrics, "accuracy": self.search_accuracy(arch)})
