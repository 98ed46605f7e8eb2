"""A study: one supernet, one task, and the costs of architectures. Strategies train, score and price through a study.

``Study(supernet, task).train(pick, schedule)`` trains; ``score(arch)`` evaluates one subnet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from hnas.training.checkpoint import ADAM, AdamOptions
from hnas.training.loop import CheckpointOptions, Observer, Pick, Schedule, TrainingOptions, train

CHUNK = 500  # images in one forward pass of calibration and scoring; limits the memory
_PIXELS = CHUNK * 32 * 32  # of all inputs of such a pass


@dataclass
class Study:
    """Train, calibrate and score the subnets of ``supernet``.

    supernet: the shared weights.
    task: the images. Search and calibration images are never trained on.
    costs: metric -> Cost, for instance {"latency_ms": measured on the device}; default: no costs.
    journal: keeps the answers of finished calls, so that a killed search continues; default: in memory only.
    seed: seed of all random numbers (0).
    folder: the folder of the checkpoints, so that a killed training continues; None (default): no checkpoints.
    identity: a JSON value that identifies the run (None). A checkpoint with another identity is refused.
    precision: "fp32" (default) or "bf16", for all trainings.
    adam: the optimiser of architecture parameters, for all trainings.
    known: accuracies on the search images of subnets of the weights as they are; they are not evaluated again.

        study = Study(Supernet(space), task, {"latency_ms": cost})
        study.train(sandwich.pick, Schedule(((2400, 0.1),)))
        candidate = study.score(space.largest)
    """

    supernet: Supernet
    task: Task
    costs: Mapping[str, Cost] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    seed: int = 0
    folder: Path | None = None
    identity: Any = None
    precision: str = "fp32"
    adam: AdamOptions = ADAM
    known: Mapping[Arch, float] = field(default_factory=dict)
    _trained: int = field(default=0, repr=False)
    _steps: int = field(default=0, repr=False)
    _stats: dict[Arch, Stats] = field(default_factory=dict, repr=False)
    _version: int = field(default=-1, repr=False)
    _space: Space | None = field(default=None, repr=False)

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
        """Train the supernet on the paths that ``pick`` draws.

        pick: draws the paths of a step, for instance ``hnas.strategies.sandwich.pick``.
        schedule: the steps and their learning rates.
        space: the part of the supernet's space to draw from; None (default): all of it.
        extra: as in ``hnas.training.loop.train``.
        combine: as in ``hnas.training.loop.TrainingOptions`` ("sum").
        observer: as in ``hnas.training.loop.train``.

        If the study has a ``folder``, each call writes a checkpoint there. If a killed run is started again, it loads
        its finished trainings and continues the unfinished training.

        Raises:
            Diverged: too many steps were not finite.
            ValueError: a checkpoint in ``folder`` belongs to another run.
        """
        self._trained += 1
        self._space = space
        file = self.folder and self.folder / f"checkpoint-{self._trained}.safetensors"
        options = TrainingOptions(space, combine, self.precision, self.seed, self._steps, self.adam)
        kept = CheckpointOptions(file, self.identity, resume=True) if file else None
        train(self.supernet, self.task, pick, schedule, options, extra=extra, checkpoint=kept, observer=observer)
        self._steps += schedule.steps

    @property
    def trained(self) -> int:
        """Return how often ``train`` was called, including calls that loaded a finished training."""
        return self._trained

    @property
    def space(self) -> Space:
        """Return the part of the supernet's space that the latest training drew from; all of it before a training."""
        return self._space or self.supernet.space

    @property
    def steps(self) -> int:
        """Return the steps of all finished trainings."""
        return self._steps

    @torch.no_grad()
    def calibrate(self, arch: Arch) -> Stats:
        """Return the exact moments of every batch norm of ``arch``, pooled over the calibration images.

        During this pass each batch norm normalises by the moments of the current chunk of images (AlphaNet's
        recalibration). The study caches the moments until the weights change.
        """
        if self._version != self.supernet.version:
            self._stats.clear()
            self._version = self.supernet.version
        if arch not in self._stats:
            self._stats[arch] = self._pooled(arch)
        return self._stats[arch]

    @torch.no_grad()
    def outputs(self, arch: Arch, split: str, gates: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return (outputs, labels) of the recalibrated subnet on a held-out split; ``gates`` as in ``Supernet``."""
        raw, labels = self.task.held(split)
        stats = self.calibrate(arch) if gates is None else self._pooled(arch, gates)
        chunks = [self.supernet(arch, *inputs, stats=stats, gates=gates) for inputs in self._inputs(arch, raw)]
        return torch.cat(chunks), labels

    def accuracy(self, arch: Arch, split: str = "search") -> float:
        """Return the task's metric of the recalibrated subnet on a held-out split."""
        outputs, labels = self.outputs(arch, split)
        return self.task.metric(outputs, labels)

    @property
    def search_images(self) -> int:
        """Return the number of search images."""
        return len(self.task.splits["search"])

    def price(self, arch: Arch, metric: str) -> Price:
        """Return the price of ``arch`` in ``metric``. Each price is computed once, and then read from the journal."""
        key = _key(arch, metric)
        answer = self.answer(key, lambda: self.costs[metric](arch).to_json())
        try:
            return Price(**answer)
        except TypeError:  # the file of the journal was changed
            raise ValueError(f"the journal holds no price under {key}; start afresh in another --out") from None

    def priced(self, arch: Arch, metric: str) -> bool:
        """Return whether the journal holds the price of ``arch`` in ``metric``."""
        return _key(arch, metric) in self.journal

    def scored(self, arch: Arch) -> bool:
        """Return whether the journal holds the accuracy of ``arch`` on the search images."""
        return self._accuracy_key(arch) in self.journal

    def score(self, arch: Arch) -> Candidate:
        """Return ``arch`` with its costs and its accuracy on the search images. Costs are measured first."""
        metrics = {metric: self.price(arch, metric).value for metric in self.costs}
        return Candidate(arch, {**metrics, "accuracy": self.search_accuracy(arch)})

    def search_accuracy(self, arch: Arch) -> float:
        """Return the accuracy of ``arch`` on the search images. It is computed once, and then read from the journal."""
        if arch in self.known:
            return self.known[arch]
        return float(self.answer(self._accuracy_key(arch), lambda: self.accuracy(arch)))

    def weights(self, arch: Arch, at: str = "now") -> dict[str, Tensor]:
        """Return the weights of ``arch`` by name, as views.

        at: "now" (default), or "initial" for the weights before all training.

        Raises:
            ValueError: ``at`` is unknown.
        """
        if at == "now":
            return self.supernet.view(arch)
        if at != "initial":
            raise ValueError(f"weights at {at!r}; known: initial, now")
        return self._initial.view(arch)

    def snapshot(self, at: str = "now") -> dict[str, Tensor]:
        """Return a copy of every shared weight by name.

        at: "now" (default), or "initial" for the weights before all training.

        Raises:
            ValueError: ``at`` is unknown.
        """
        if at not in ("now", "initial"):
            raise ValueError(f"a snapshot at {at!r}; known: initial, now")
        union = (self.supernet if at == "now" else self._initial).union
        return {name: p.detach().clone() for name, p in union.named_parameters(remove_duplicate=False)}

    def answer(self, key: str, work: Callable[[], Any]) -> Any:
        """Return the answer that the journal holds for ``key``; otherwise call ``work`` and store its answer.

        work: returns a JSON value. If several processes train, only rank 0 calls it, and all ranks get its answer.
        """
        return distributed.agreed(lambda: self.journal.call(key, work))

    def _accuracy_key(self, arch: Arch) -> str:
        # Training changes the accuracy, so the key holds the steps so far. A repeated run counts the same steps.
        return f"accuracy/{self._steps}/{arch.digest}"

    @cached_property
    def _initial(self) -> Supernet:
        return Supernet(self.supernet.space, self.supernet.seed)

    def _pooled(self, arch: Arch, gates: Mapping[str, Tensor] | None = None) -> Stats:
        raw, labels = self.task.held("calibration")
        return pool_moments(self.supernet, arch, self._inputs(arch, raw), len(labels), gates)

    def _inputs(self, arch: Arch, raw: Any) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs in chunks, so that a large split is never in memory as floats."""
        shapes = self.supernet.space.example(arch)
        size = chunk_size(shapes)
        return (self.task.inputs(raw[i : i + size], shapes) for i in range(0, len(raw), size))


def chunk_size(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of images in one forward pass without gradients, which limits the memory of the pass.

    shapes: of the inputs of one image, height and width last.
    """
    largest = max(math.prod(shape[-2:]) for shape in shapes)
    return min(CHUNK, max(32, _PIXELS // largest))


def _key(arch: Arch, metric: str) -> str:
    return f"cost/{metric}/{arch.digest}"


@torch.no_grad()
def pool_moments(
    supernet: Supernet,
    arch: Arch,
    chunks: Iterable[tuple[Tensor, ...]],
    images: int,
    gates: Mapping[str, Tensor] | None = None,
) -> Stats:
    """Return the moments of the input of every batch norm of ``arch``, pooled over ``chunks`` in float64.

    chunks: for each chunk the inputs of the network, each [N, *shape].
    images: the number of images in all chunks; only recorded in the result.
    gates: as in ``Supernet.forward``.
    """
    own = norms(supernet.skeleton(arch))
    sums: dict[str, tuple[float, Tensor, Tensor]] = {}

    def recorder(name: str) -> Callable[[int, Tensor, Tensor], None]:
        def record(count: int, mean: Tensor, variance: Tensor) -> None:
            mean, spread = mean.double(), variance.double() * (count - 1) / count
            n, total, squares = sums.get(name, (0.0, torch.zeros_like(mean), torch.zeros_like(mean)))
            sums[name] = (n + count, total + count * mean, squares + count * (spread + mean.square()))

        return record

    try:
        for name, norm in own.items():
            norm.record = recorder(name)
        for inputs in chunks:
            supernet(arch, *inputs, gates=gates)
    finally:
        for norm in own.values():
            norm.record = None
    moments: dict[str, Tensor] = {}
    for name, (n, total, squares) in sums.items():
        mean = total / n
        moments[f"{name}.running_mean"] = mean.float()
        moments[f"{name}.running_var"] = ((squares / n - mean.square()) * (n / (n - 1))).clamp_min(0).float()
    return Stats(MappingProxyType(moments), images)
