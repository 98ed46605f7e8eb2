"""Say before a training what it takes, and choose resolution and epochs that fit into a given time.

``fit(recipe, task, minutes, timing_of)`` chooses; ``plan_training(...).lines()`` is what a person reads.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hnas.recipes import Recipe
from hnas.recipes.baseline import majority, train_plain_cnn
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.tasks.classification import Classification
from hnas.tasks.stream import Stream
from hnas.training.loop import Observer, Pick, Schedule, train

_TIMED = 6  # steps; the slow first one is not counted
_SHARE = (
    0.8  # of the given time, for fit of the classifier and steps; the plain CNN, evaluations and files take the rest
)
_BASELINE_SECONDS, _BASELINE_SHARE = 30.0, 0.1  # of the training of the plain CNN: seconds, and share of all time
_FEW_IMAGES, _FEW_EPOCHS, _FEW_TESTS = 200, 5, 100  # below these a result is hardly worth deploying
_MOST_EPOCHS = 100.0
_FACTORS = (1.0, 0.75, 0.5)  # of the resolutions of a recipe; the largest one that leaves enough epochs is taken
_ENOUGH = 0.5  # of the epochs of the recipe


@dataclass(frozen=True)
class Timing:
    """Hold the seconds of a training step, and those of all that comes before the first step (0)."""

    step: float
    before: float = 0.0


_Fitted = tuple[Recipe, float, Timing]  # recipe, epochs, and its timing


@dataclass(frozen=True)
class TrainingPlan:
    """Hold the length, the predicted cost and the baselines of a training.

    images: split -> number of images.
    classes: number of classes.
    size: height and width of the largest input, in pixels.
    steps, epochs: length of the training.
    minutes: predicted duration on this machine.
    memory_mb: peak memory of the process in training steps, measured.
    baselines: name -> accuracy on the search images.
    """

    images: Mapping[str, int]
    classes: int
    size: int
    steps: int
    epochs: float
    minutes: float
    memory_mb: int
    baselines: Mapping[str, float]

    def lines(self) -> list[str]:
        """Return the plan and its warnings, a line each."""
        shown = ", ".join(f"{count} {split}" for split, count in self.images.items())
        epochs = f"{self.epochs:.3g} epochs, {self.steps} steps, inputs of up to {self.size} x {self.size} pixels"
        time_here = f"{self.minutes:.1f} minutes on this machine as busy as it is now"
        return [
            f"images    {shown}; {self.classes} classes",
            f"training  {epochs}",
            f"predicted {time_here}; {self.memory_mb} MB of memory",
            *(f"baseline  {share:.1%} {name}, on the search images" for name, share in self.baselines.items()),
            *(f"warning   {line}" for line in self.warnings()),
        ]

    def warnings(self) -> list[str]:
        """Return why the result may not be worth deploying."""
        found = []
        if (count := self.images["train"]) < _FEW_IMAGES:
            found.append(f"{count} training images are few; a few hundred or more are needed for a useful network")
        if self.epochs < _FEW_EPOCHS:
            found.append(f"{self.epochs:.2g} epochs are too few for a useful network; give more --minutes or --epochs")
        if (count := self.images["test"]) < _FEW_TESTS:
            found.append(f"{count} test images measure an accuracy to about {100 / count**0.5:.0f} points")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        shares = {name: round(share, 4) for name, share in self.baselines.items()}
        return {"minutes": round(self.minutes, 2), "memory_mb": self.memory_mb, "baselines": shares}


def time_step(supernet: Supernet, task: Task, pick: Pick, clock: Callable[[], float] = time.monotonic) -> float:
    """Return the mean seconds of training steps, spread over the progress of a training.

    The weights of ``supernet`` change by a rate of 1e-9.
    """
    marks: list[float] = []
    observer = Observer(lambda *_: marks.append(clock()))
    train(supernet, task, pick, Schedule(((_TIMED, 1e-9),), decay=0.0), observer=observer)
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def fit(recipe: Recipe, task: Task, minutes: float, timing_of: Callable[[Recipe], Timing]) -> _Fitted:
    """Return the recipe and the number of epochs that fit into ``minutes``, and the timing of that recipe.

    timing_of: times a recipe.

    1. All epochs of the recipe fit: the recipe as it is.
    2. They do not, and the recipe has [short]: its keys replace those of [space] and [train]. For instance only
       the largest and the smallest subnet are trained.
    3. The resolutions are those of case 2, or else 0.75 or 0.5 of them: the first that leave half of the epochs.
    """
    timing = timing_of(recipe)
    if (epochs := _epochs(minutes, timing, task)) >= _wanted(recipe):  # case 1
        return recipe, round(min(epochs, _MOST_EPOCHS), 3), timing
    short = recipe.short  # case 2
    space, keys = {**recipe.space, **short.get("space", {})}, {**recipe.train, **short.get("train", {})}
    whole = replace(recipe, space=space, train=keys)
    for factor in _FACTORS:  # case 3
        chosen = _resized(whole, factor)
        timing = timing if chosen == recipe else timing_of(chosen)
        epochs = _epochs(minutes, timing, task)
        if epochs >= _ENOUGH * _wanted(whole) or "resolutions" not in whole.space:
            break
    return chosen, round(min(epochs, _MOST_EPOCHS), 3), timing


def plan_training(
    task: Task, schedule: Schedule, size: int, timing: Timing, minutes: float | None = None
) -> TrainingPlan:
    """Return the plan of a training; trains a plain CNN for at most 30 seconds and a tenth of the time.

    schedule: the steps of the training.
    size: height and width of the largest input, in pixels.
    timing: of the training.
    minutes: the time that was given; None: as long as the schedule takes.
    """
    predicted = (schedule.steps * timing.step + timing.before) / _SHARE
    length = min(_BASELINE_SECONDS, _BASELINE_SHARE * (predicted if minutes is None else minutes * 60))
    name = f"a plain CNN of four layers, trained for {length:.0f} s"
    baselines = {"the most frequent class": majority(task), name: train_plain_cnn(task, seconds=length, size=size)}
    return TrainingPlan(
        {split: len(held) for split, held in task.splits.items()},
        task.space_arguments["classes"],
        size,
        schedule.steps,
        schedule.steps / task.steps_per_epoch,
        predicted / 60,
        peak_memory(),
        baselines,
    )


def _wanted(recipe: Recipe) -> float:
    return float(recipe.train["epochs"]) + sum(float(length) for length, _ in recipe.train.get("restarts", ()))


def peak_memory() -> int:
    """Return the largest memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage, in bytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _resized(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe with its resolutions times ``factor``, as multiples of 8."""
    if factor == 1 or "resolutions" not in recipe.space:
        return recipe
    sizes = sorted({max(8, int(size * factor / 8 + 0.5) * 8) for size in recipe.space["resolutions"]})
    return replace(recipe, space={**recipe.space, "resolutions": sizes})


def _epochs(minutes: float, timing: Timing, task: Task) -> float:
    return max(1.0, (minutes * 60 * _SHARE - timing.before) / timing.step) / task.steps_per_epoch


def is_in_memory(task: Task) -> bool:
    """Return whether a plan can be made: a task that streams its images would start its workers for it."""
    return isinstance(task, Classification) and not isinstance(task, Stream)
