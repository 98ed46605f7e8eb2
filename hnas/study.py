"""A study: one supernet, one task, one price. The only thing a strategy talks to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hnas import distributed
from hnas.cost import Cost, Price
from hnas.journal import Journal
from hnas.pareto import Candidate
from hnas.space import Arch, Space
from hnas.supernet import Stats, Supernet, norms
from hnas.tasks import Task
from hnas.training.loop import CheckpointOptions, Observer, Pick, Schedule, TrainingOptions, train

CHUNK = 500  # images a forward pass of calibration and scoring; memory, not mathematics


@dataclass
class Study:
    """Training, calibration and scoring of the subnets of ``supernet``.

    task: gives the search images, which are never trained on, and the calibration images.
    costs: metric name -> Cost, for instance {"latency_ms": measured on the device}.
    journal: finished calls answer from it, so a search that was killed replays to where it was.
    folder: where finished trainings are kept, for the same reason (None: nowhere). identity: what they belong to, as
        JSON; a folder with another one is refused.
    """

    supernet: Supernet
    task: Task
    costs: Mapping[str, Cost] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    seed: int = 0
    folder: Path | None = None
    identity: Any = None
    precision: str = "fp32"
    _trained: int = field(default=0, repr=False)
    _steps: int = field(default=0, repr=False)
    _stats: dict[Arch, Stats] = field(default_factory=dict, repr=False)
    _version: int = field(default=-1, repr=False)

    def train(
        self,
        pick: Pick,
        schedule: Schedule,
        *,
        space: Space | None = None,
        extra: Mapping[str, nn.Parameter] | None = None,
        combine: str = "sum",
        observer: Observer | None = None,
    ) -> None:
        """Train the supernet on the paths that ``pick`` draws from ``space``, a part of its own (or all of it).

        With a ``folder`` the weights are kept there after each call: a replay loads what is finished, and goes on from
        the checkpoint of what is not. The other arguments are those of ``hnas.training.loop.train``.
        """
        self._trained += 1
        file = self.folder and self.folder / f"checkpoint-{self._trained}.safetensors"
        options = TrainingOptions(space, combine, self.precision, self.seed, self._steps)
        kept = CheckpointOptions(file, self.identity, resume=True) if file else None
        train(self.supernet, self.task, pick, schedule, options, extra=extra, checkpoint=kept, observer=observer)
        self._steps += schedule.steps

    @property
    def trained(self) -> int:
        """How many trainings there have been, in a replay too."""
        return self._trained

    @torch.no_grad()
    def calibrate(self, arch: Arch) -> Stats:
        """The exact moments of every norm of ``arch``, pooled over the calibration images; the supernet never has them.

        Each norm normalises by the moments of its chunk of images while the pooled ones are taken (AlphaNet's
        calibration). Cached until the weights change.
        """
        if self._version != self.supernet.version:
            self._stats.clear()
            self._version = self.supernet.version
        if arch not in self._stats:
            raw, labels = self.task.held("calibration")
            self._stats[arch] = calibrate(self.supernet, arch, self._inputs(arch, raw), len(labels))
        return self._stats[arch]

    @torch.no_grad()
    def outputs(self, arch: Arch, split: str) -> tuple[Tensor, Tensor]:
        """What the calibrated subnet answers on a held-out split: (outputs, labels)."""
        raw, labels = self.task.held(split)
        stats = self.calibrate(arch)
        chunks = [self.supernet(arch, *inputs, stats=stats) for inputs in self._inputs(arch, raw)]
        return torch.cat(chunks), labels

    def accuracy(self, arch: Arch, split: str = "search") -> float:
        """The task's metric of the calibrated subnet on a held-out split."""
        outputs, labels = self.outputs(arch, split)
        return self.task.metric(outputs, labels)

    def price(self, arch: Arch, metric: str) -> Price:
        """What ``arch`` costs in ``metric``; answered once, then from the journal."""
        return Price(**self.answer(_key(arch, metric), lambda: self.costs[metric](arch).to_json()))

    def priced(self, arch: Arch, metric: str) -> bool:
        """Whether the journal has that price already, so that asking again takes no time."""
        return _key(arch, metric) in self.journal

    def score(self, arch: Arch) -> Candidate:
        """Accuracy on the search images and every cost of ``arch``; costs come first, they are what windows bound."""
        metrics = {metric: self.price(arch, metric).value for metric in self.costs}
        # Training between two scores changes the answer; its steps are counted, in a replay too.
        key = f"accuracy/{self._steps}/{arch.digest}"
        metrics["accuracy"] = self.answer(key, lambda: self.accuracy(arch))
        return Candidate(arch, metrics)

    def weights(self, arch: Arch, at: str = "now") -> dict[str, Tensor]:
        """The weights of ``arch`` "now", or as they were at "initial"-isation from the same seed."""
        if at == "now":
            return self.supernet.view(arch)
        if at != "initial":
            raise ValueError(f"weights at {at!r}; known: initial, now")
        return self._initial.view(arch)

    def snapshot(self, at: str = "now") -> dict[str, Tensor]:
        """Every shared weight by name, as a copy of what it is "now" or was at "initial"-isation."""
        if at not in ("now", "initial"):
            raise ValueError(f"a snapshot at {at!r}; known: initial, now")
        union = (self.supernet if at == "now" else self._initial).union
        return {name: p.detach().clone() for name, p in union.named_parameters(remove_duplicate=False)}

    def answer(self, key: str, work: Callable[[], Any]) -> Any:
        """The journalled answer; where several processes train, the first one's on all of them."""
        return distributed.agreed(lambda: self.journal.call(key, work))

    @cached_property
    def _initial(self) -> Supernet:
        return Supernet(self.supernet.space, self.supernet.seed)

    def _inputs(self, arch: Arch, raw: Any) -> Iterator[tuple[Tensor, ...]]:
        """Chunk by chunk: a large split, unread or decoded, is never in memory as floats."""
        shapes = self.supernet.space.example(arch)
        return (self.task.inputs(raw[i : i + CHUNK], shapes) for i in range(0, len(raw), CHUNK))


def _key(arch: Arch, metric: str) -> str:
    return f"cost/{metric}/{arch.digest}"


@torch.no_grad()
def calibrate(supernet: Supernet, arch: Arch, chunks: Iterable[tuple[Tensor, ...]], images: int) -> Stats:
    """Pool count, sum and squared sum of what every norm of ``arch`` reads over ``chunks``, in float64."""
    net = supernet.skeleton(arch)
    sums: dict[str, tuple[float, Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            count = x.numel() / x.shape[1]
            mean = x.mean((0, 2, 3))
            spread = (x - mean[:, None, None]).square().mean((0, 2, 3)).double()
            mean = mean.double()
            n, total, squares = sums.get(name, (0.0, torch.zeros_like(mean), torch.zeros_like(mean)))
            sums[name] = (n + count, total + count * mean, squares + count * (spread + mean.square()))

        return hook

    hooks = [norm.register_forward_pre_hook(record(name)) for name, norm in norms(net).items()]
    try:
        for inputs in chunks:
            supernet(arch, *inputs)
    finally:
        for hook in hooks:
            hook.remove()
    moments: dict[str, Tensor] = {}
    for name, (n, total, squares) in sums.items():
        mean = total / n
        moments[f"{name}.running_mean"] = mean.float()
        moments[f"{name}.running_var"] = ((squares / n - mean.square()) * (n / (n - 1))).clamp_min(0).float()
    return Stats(MappingProxyType(moments), images)
