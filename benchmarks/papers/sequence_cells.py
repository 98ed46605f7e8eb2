"""Train one recurrent network of the study C3, found or given: ``cell_error(folder, seed, _CellSetting(...))``.

A found cell is searched by growth, and then trained from the start, as the given ones are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hnas import spaces
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.sequences import TEXT, SequenceData, open_sequence, sequence_data
from hnas.cost.flops import parameters
from hnas.growth.loop import GrowthRules, grow
from hnas.recipes.baseline import train_plain_recurrent
from hnas.space import Arch, Space
from hnas.strategies import alone
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.loop import Schedule

BOTH, ADD, PRODUCT = "add and product", "add", "product"
LSTM, GRU, DARTS = "lstm", "gru", "darts"
JOINS: Mapping[str, tuple[str, ...]] = {BOTH: ("add", "product"), ADD: ("add",), PRODUCT: ("product",)}
CELLS = (*JOINS, LSTM, GRU, DARTS)
NODES = 3  # of a grown cell
STEPS = 400  # of a training
# The published cell of DARTS, found on Penn Treebank: activation and input of each of its eight nodes.
PUBLISHED = (
    ("relu", 0),
    ("relu", 1),
    ("tanh", 2),
    ("relu", 3),
    ("relu", 4),
    ("linear", 1),
    ("relu", 5),
    ("relu", 1),
)
_WIDTHS = {TEXT: range(20, 29)}  # of the state of a grown cell, to choose from
_OTHER_WIDTHS = range(14, 21)
_RULES = GrowthRules(stages=4, finish=0.4)  # as in the recipes; three edits lead to the largest network


@dataclass(frozen=True, kw_only=True)
class CellSetting:
    """The setting of one training.

    cell: one of ``CELLS``.
    width: of the state.
    weights: of the found cells, to which the others come as near as their widths allow.
    steps: of the training.
    optimiser, rate: "adam" or "sgd", and its peak learning rate.
    arch: the found cell that is trained from the start, as JSON; None: growth searches one, or the cell is given.
    split: the split that is judged: "test", or "search" in the pilot.
    """

    data: SequenceData
    cell: str
    width: int
    weights: int
    steps: int
    optimiser: Literal["sgd", "adam"]
    rate: float
    arch: Mapping[str, Any] | None = None
    split: str = "test"


@dataclass(frozen=True)
class _CellSizes:
    """Widths of the cells on a task at nearly equal numbers of weights: cell -> (width, weights)."""

    sizes: Mapping[str, tuple[int, int]]

    @property
    def weights(self) -> int:
        """Return the number of weights of the grown cells."""
        return self.sizes[BOTH][1]

    @property
    def apart(self) -> float:
        """Return the largest difference from the grown cells, as a share of their weights."""
        return max(abs(found - self.weights) for _, found in self.sizes.values()) / self.weights


def sizes_of(name: str, features: int, outputs: int) -> _CellSizes:
    """Return the widths of all cells on a task. The width of the grown cells is the one that suits the others best.

    name: of the task.
    """
    return min(
        (_sizes_at(width, features, outputs) for width in _WIDTHS.get(name, _OTHER_WIDTHS)), key=lambda x: x.apart
    )


def _sizes_at(width: int, features: int, outputs: int) -> _CellSizes:
    wanted = _weights(BOTH, width, features, outputs)
    found = dict.fromkeys(JOINS, (width, wanted))
    for cell in (LSTM, GRU, DARTS):
        counted = ((w, _weights(cell, w, features, outputs)) for w in range(2, 4 * width))
        found[cell] = min(counted, key=lambda each: abs(each[1] - wanted))
    return _CellSizes(found)


def _weights(cell: str, width: int, features: int, outputs: int) -> int:
    """Return the number of weights of a cell with its readout."""
    readout = (width + 1) * outputs
    if cell in JOINS:  # embedding, state, two matrices with biases for each node, output weights
        return (features + 1) * width + width**2 + 2 * NODES * (width + 1) * width + NODES + readout
    if cell == DARTS:  # two matrices for the first highway and for each node
        return 2 * width * (features + width) + 2 * len(PUBLISHED) * width**2 + readout
    return {LSTM: 4, GRU: 3}[cell] * width * (features + width + 2) + readout


def cell_error(folder: Path | None, seed: int, setting: CellSetting) -> Result:
    """Train a network; return its error on the split, its weights, its cell and the CPU seconds.

    error: mean squared error of a series, bits per character of a text.
    arch: the cell as JSON; None for LSTM and GRU.
    """
    task = open_sequence(setting.data, seed, folder=folder)
    begun = time.process_time()
    if setting.cell in (LSTM, GRU):
        metric = train_plain_recurrent(
            task,
            setting.cell,
            steps=setting.steps,
            weights=setting.weights,
            split=setting.split,
            rate=setting.rate,
            seed=seed,
        )
        shape = task.space_arguments["features"], task.space_arguments["outputs"]
        return _result(metric, _weights(setting.cell, setting.width, *shape), begun, None)
    space = _space_of(setting, task)
    study = Study(Supernet(space, seed), task, seed=seed)
    schedule = Schedule(((setting.steps, setting.rate),), decay=0.0, clip=1.0, optimiser=setting.optimiser)
    if setting.cell in JOINS and setting.arch is None:
        space = grow(study, _RULES, schedule)
    else:
        study.train(alone.pick, schedule)
    arch = space.largest
    return _result(study.accuracy(arch, setting.split), parameters(study.supernet.skeleton(arch)), begun, arch)


def _space_of(setting: CellSetting, task: Task) -> Space:
    """Return the space that a cell grows in, a found cell alone, or the published cell of DARTS alone."""
    if setting.cell == DARTS:
        space = spaces.load("darts_recurrent")(**task.space_arguments, widths=[setting.width], nodes=len(PUBLISHED))
        chosen = {f"nodes.{i}.a.op": f"s{source}" for i, (_, source) in enumerate(PUBLISHED)}
        chosen |= {f"nodes.{i}.f.op": kind for i, (kind, _) in enumerate(PUBLISHED)}
        return space.alone(space.arch({"width": setting.width, **chosen}))
    space = spaces.load("recurrent_cell")(
        **task.space_arguments,
        widths=[3 * setting.width // 4, setting.width],
        nodes=list(range(1, NODES + 1)),
        joins=JOINS[setting.cell],
    )
    return space if setting.arch is None else space.alone(space.arch(setting.arch))


def _result(metric: float, weights: int, begun: float, arch: Arch | None) -> Result:
    seconds = round(time.process_time() - begun, 3)
    return {"error": -metric, "weights": weights, "seconds": seconds, "arch": None if arch is None else arch.to_json()}


@lru_cache(64)
def setting_of(
    name: str,
    cell: str,
    steps: int,
    rate: float,
    folder: Path | None,
    quick: bool,
    optimiser: Literal["sgd", "adam"] = "adam",
) -> CellSetting:
    """Return the setting of a training that is judged on the test split.

    name: of the sequence.
    folder, quick: as in ``sequence_data``.
    """
    data = sequence_data(name, quick, folder)
    shape = open_sequence(data, 0, folder=folder).space_arguments
    sizes = sizes_of(name, shape["features"], shape["outputs"])
    return CellSetting(
        data=data,
        cell=cell,
        width=sizes.sizes[cell][0],
        weights=sizes.weights,
        steps=steps,
        optimiser=optimiser,
        rate=rate,
    )
