"""Make the parts of a run from its recipe: task, space, schedule and named architectures.

``open_task_of(decode_recipe(recipe), Path("photos"))`` returns the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from hnas import spaces, tasks
from hnas.recipes import Recipe, check_subnet
from hnas.recipes.sections import Experiment
from hnas.space import Arch, Space
from hnas.tasks import Task
from hnas.training.loop import Schedule


def open_task_of(experiment: Experiment, data: Path | None, seed: int = 0) -> Task:
    """Return the task that [data] and [train] describe, over the images in ``data``.

    seed: of the order of the images and of their augmentation (0), for a task that takes it. A ``seed`` in [data] goes
        first.

    Raises:
        FileNotFoundError: ``data`` or a file in it is missing.
        ValueError: the task does not take the options of the recipe, or the images cannot be read.
    """
    name, options = experiment.data.task, dict(experiment.data.options)
    loss = {key: getattr(experiment.train, key) for key in ("smoothing", "distil", "divergence")}
    options |= {key: value for key, value in loss.items() if value is not msgspec.UNSET}  # the task's default
    open_task = tasks.load(name).open_task
    parameters = signature(open_task).parameters.values()
    if any(each.name == "seed" or each.kind is each.VAR_KEYWORD for each in parameters):
        options.setdefault("seed", seed)
    try:
        return open_task(data, batch_size=experiment.train.batch, **options)
    except TypeError as error:
        raise ValueError(f"the task {name!r} does not take the options of this recipe: {error}") from None


def check_same_data(task: Task, record: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError unless a task has the data of the training whose record is in ``folder``."""
    said = record.get("task")
    if not isinstance(said, dict) or task.to_json().get("digests") != said.get("digests"):
        raise ValueError(f"this is not the data that {folder} was trained on; give --data as in that training")


def named_arch(space: Space, which: Arch | str) -> Arch:
    """Return an architecture by name: "smallest", "largest", "random:SEED"; raise ValueError for any other name."""
    if isinstance(which, Arch):
        return space.arch(which)
    check_subnet(which)
    if which in ("smallest", "largest"):
        return space.smallest if which == "smallest" else space.largest
    return space.sample(Random(int(which.removeprefix("random:"))))


def make_schedule(experiment: Experiment, task: Task, epochs: float | None) -> Schedule:
    """Return the recipe's cycles in steps. ``epochs`` scales the lengths of all cycles by the same factor."""
    train = experiment.train
    cycles = [(train.epochs, train.rate), *train.restarts]
    share = 1.0 if epochs is None else epochs / sum(length for length, _ in cycles)
    steps = tuple((max(1, round(length * share * task.steps_per_epoch)), rate) for length, rate in cycles)
    return Schedule(steps, train.warmup, train.final, train.momentum, train.decay, train.clip, train.optimiser)


def make_space(recipe: Recipe, task: Task) -> Space:
    """Return the space of a recipe for the classes and channels of ``task``. Raise ValueError for wrong arguments."""
    arguments = {**task.space_arguments, **recipe.space}
    name = arguments.pop("name")
    images = task.space_arguments.get("channels", arguments.get("channels"))
    if arguments.get("channels") != images:
        what = f"space.channels is {arguments['channels']}, and the images have {images}"
        raise ValueError(f"recipe {recipe.name}: {what}; give data.channels and space.channels the same value")
    maker = spaces.load(name)
    try:
        spaces.check_arguments(arguments)
        return maker(**arguments)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"recipe {recipe.name}: the space {name!r} does not take these arguments: {error}") from None
