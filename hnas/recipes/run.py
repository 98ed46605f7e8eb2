"""Train the supernet of a recipe and write its folder: ``run_recipe(recipe, data, out)``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch
from torch import nn

from hnas import distributed, spaces, strategies, tasks
from hnas.files import locked, read_json
from hnas.journal import Journal
from hnas.recipes import Recipe
from hnas.recipes.schema import decode_recipe
from hnas.recipes.sections import Experiment
from hnas.recipes.shrinking import predicted_costs, shrink_space
from hnas.recipes.start import begin, make_started, normalised_as
from hnas.sampling.derive import derive
from hnas.sampling.draws import slot_types
from hnas.shrinking.edits import Edit
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.checkpoint import AdamOptions
from hnas.training.folder import save_supernet
from hnas.training.loop import Observer, Pick, Schedule

_JOURNAL = "training.jsonl"
_Logits = dict[str, dict[str, float]]  # slot -> type -> logit


@dataclass(frozen=True)
class RunOptions:
    """Options of ``run_recipe``.

    seed: seed of weights, batches and paths (0).
    epochs: total length of all cycles in epochs; None (default): the epochs of the recipe.
    alone: "smallest", "largest", "random:SEED" or an Arch: train only this subnet, for the same number of steps; None
        (default): train the supernet.
    among: the part of the recipe's space that ``alone`` names a member of; None (default): the whole space.
    resume: continue from the checkpoint in the folder (False). If the run is finished, its record is returned.
    pretrained: the weights to begin with, as ``hnas.training.pretrained.find_pretrained`` names them; None (default):
        those that the recipe names, if they are installed.
    scratch: begin with random weights (False).
    """

    seed: int = 0
    epochs: float | None = None
    alone: Arch | str | None = None
    among: Space | None = None
    resume: bool = False
    pretrained: str | None = None
    scratch: bool = False


def run_recipe(
    recipe: Recipe,
    data: Path,
    out: Path,
    options: RunOptions | None = None,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train what ``recipe`` describes on the images in ``data`` and write the supernet's folder ``out``.

    on_step: called after each step with (finished steps, steps of the run, loss).
    on_message: called with one line for a person.

    Returns the record that is also written. Accuracies are top-1 on the test split, after batch-norm recalibration.

        record = run_recipe(recipes.load("images"), Path("photos"), Path("trained"))

    Raises:
        ValueError: the recipe is malformed, or ``out`` holds another run.
        FileExistsError: ``out`` holds a run, and ``options.resume`` is not set.
        FileNotFoundError: ``data`` or a file in it is missing.
        Diverged: too many steps were not finite.
    """
    options = options or RunOptions()
    recipe, found, line = begin(recipe, options.pretrained, scratch=options.scratch)
    experiment = decode_recipe(recipe)
    if options.epochs is not None and not 0 < options.epochs < math.inf:
        raise ValueError(f"epochs is {options.epochs}, expected a finite number above 0")
    alone = options.alone.to_json() if isinstance(options.alone, Arch) else options.alone
    identity = {"recipe": recipe.to_json(), "epochs": options.epochs, "alone": alone, "seed": options.seed}
    if (ended := _finished_record(out, identity, options.resume)) is not None:
        return ended
    task = normalised_as(open_task_of(experiment, data), found)
    space = whole = _space(recipe, task)
    if options.alone is not None:
        space = space.alone(named_arch(options.among or space, options.alone))
    run = _Run(
        experiment,
        identity,
        out,
        make_started(space, options.seed, f"recipe {recipe.name}", found, whole),
        task,
        _schedule(experiment, task, options.epochs),
    )
    with locked(out) if distributed.rank() == 0 else nullcontext():
        if on_message:
            for note in (*getattr(task, "notes", ()), *([line] if line else [])):
                on_message(note)
        return run.run(run.observer(on_step, on_message))


@dataclass
class _Run:
    """One run of a recipe.

    experiment: the decoded recipe.
    identity: recipe, epochs, alone and seed, as JSON. Only a run with the same identity may continue in ``out``.
    out: the folder of the supernet and its checkpoints.
    supernet: the supernet to train.
    task: the training and held-out images.
    schedule: the steps of all cycles.
    """

    experiment: Experiment
    identity: dict[str, Any]
    out: Path
    supernet: Supernet
    task: Task
    schedule: Schedule

    def observer(
        self, on_step: Callable[[int, int, float], None] | None, on_message: Callable[[str], None] | None
    ) -> Observer:
        """Return callbacks that count the steps of all trainings of the run."""
        done, steps = count(1), self.schedule.steps
        follow = (lambda _, loss: on_step(min(next(done), steps), steps, loss)) if on_step else None
        return Observer(follow, on_message)

    def run(self, observer: Observer) -> dict[str, Any]:
        """Train, evaluate and save; return the record, which is empty in all processes but the first."""
        started, first = time.monotonic(), distributed.rank() == 0
        with closing(Journal(self.out / _JOURNAL if first else None)) as journal:
            train, seed = self.experiment.train, self.identity["seed"]
            adam = AdamOptions(train.alpha_rate, train.alpha_decay)
            study = Study(self.supernet, self.task, {}, journal, seed, self.out, self.identity, train.precision, adam)
            log, logits = self._train(study, observer)
        skipped = getattr(self.task, "left_out", 0) + distributed.total(getattr(self.task, "skipped", 0))
        if not first:
            return {}
        ends = {"largest": self.supernet.space.largest, "smallest": self.supernet.space.smallest}
        record = {
            **self.identity,
            "task": self.task.to_json(),
            "steps": self.schedule.steps,
            "seconds": round(time.monotonic() - started, 1),
            "accuracy": {name: round(study.accuracy(arch, "test"), 4) for name, arch in ends.items()},
            "images": {split: len(held) for split, held in self.task.splits.items()},
            **({"skipped": skipped} if self.experiment.data.options.get("skip") else {}),
            **({"edits": [edit.to_json() for edit in log]} if log else {}),
            **({"logits": logits, "derived": self._derived(logits)} if logits else {}),
        }
        save_supernet(self.supernet, self.out, record)
        for trace in (*_checkpoints(self.out), self.out / _JOURNAL):
            trace.unlink(missing_ok=True)
        return record

    def _train(self, study: Study, observer: Observer) -> tuple[list[Edit], _Logits]:
        """Train, and set the supernet's space to the space that shrinking leaves. Return edits and final logits."""
        train, shrink = self.experiment.train, self.experiment.shrink
        alone = self.identity["alone"] is not None
        pick, extra = self._pick("alone" if alone else train.strategy)
        log: list[Edit] = []
        if alone or shrink is None:
            study.train(pick, self.schedule, combine=train.combine, extra=extra, observer=observer)
        else:
            cycles = [replace(self.schedule, cycles=(cycle,)) for cycle in self.schedule.cycles]
            training = StageTraining(cycles, pick, extra, observer)
            space = shrink_space(study, shrink, training, self.identity, log)
            for cycle in cycles[study.trained :]:  # shrinking may end before the schedule does
                training.train(study, cycle, space)
            self.supernet.space = space
        space = self.supernet.space
        known = {
            slot: dict(zip(slot_types(space, slot), values.tolist(), strict=True)) for slot, values in extra.items()
        }
        return log, {slot: {kind: round(x, 6) for kind, x in own.items()} for slot, own in known.items()}

    def _derived(self, logits: _Logits) -> dict[str, Any]:
        """Return the most likely architecture as JSON, with at most as many identities as the strategy allows."""
        skips = getattr(strategies.load(self.experiment.train.strategy), "MAX_SKIPS", None)
        values = {slot: torch.tensor(list(own.values())) for slot, own in logits.items()}
        return derive(self.supernet.space, values, skips).to_json()

    def _pick(self, name: str) -> tuple[Pick, dict[str, nn.Parameter]]:
        """Return the training strategy with its options, and its architecture parameters."""
        strategy, space = strategies.load(name), self.supernet.space
        options = dict(self.experiment.options) if name != "alone" else {}
        extra: dict[str, nn.Parameter] = strategy.extra(space) if hasattr(strategy, "extra") else {}
        if (split := getattr(strategy, "SPLIT", None)) not in (None, *self.task.splits):
            mend = f"give [data] {split} = 0.5, the share of the training images that it takes"
            raise ValueError(f"the strategy {name!r} trains architecture parameters on images of their own; {mend}")
        if isinstance(device := options.get("latency"), str):
            priced = Study(self.supernet, self.task, predicted_costs(self.supernet, device))
            options["latency"] = strategy.latencies(priced, space)
        if extra:
            options["extra"] = extra
        return partial(strategy.pick, **options), extra


def open_task_of(experiment: Experiment, data: Path | None) -> Task:
    """Return the task that [data] and [train] describe, over the images in ``data``.

    Raises:
        FileNotFoundError: ``data`` or a file in it is missing.
        ValueError: the task does not take the options of the recipe, or the images cannot be read.
    """
    name, options = experiment.data.task, dict(experiment.data.options)
    loss = {key: getattr(experiment.train, key) for key in ("smoothing", "distil", "divergence")}
    options |= {key: value for key, value in loss.items() if value is not msgspec.UNSET}  # the task's default
    try:
        return tasks.load(name).open_task(data, batch_size=experiment.train.batch, **options)
    except TypeError as error:
        raise ValueError(f"the task {name!r} does not take the options of this recipe: {error}") from None


def named_arch(space: Space, which: Arch | str) -> Arch:
    """Return an architecture by name: "smallest", "largest", "random:SEED"; raise ValueError for any other name."""
    if isinstance(which, Arch):
        return space.arch(which)
    if which in ("smallest", "largest"):
        return space.smallest if which == "smallest" else space.largest
    if which.startswith("random:") and which[7:].isdecimal():
        return space.sample(Random(int(which[7:])))
    raise ValueError(f"no architecture {which!r}; known: smallest, largest, random:SEED")


def _schedule(experiment: Experiment, task: Task, epochs: float | None) -> Schedule:
    """Return the recipe's cycles in steps. ``epochs`` scales the lengths of all cycles by the same factor."""
    train = experiment.train
    cycles = [(train.epochs, train.rate), *train.restarts]
    share = 1.0 if epochs is None else epochs / sum(length for length, _ in cycles)
    steps = tuple((max(1, round(length * share * task.steps_per_epoch)), rate) for length, rate in cycles)
    return Schedule(steps, train.warmup, train.final, train.momentum, train.decay, train.clip)


def _space(recipe: Recipe, task: Task) -> Space:
    arguments = {**task.space_arguments, **recipe.space}
    name = arguments.pop("name")
    images = task.space_arguments.get("channels", arguments.get("channels"))
    if arguments.get("channels") != images:
        what = f"space.channels is {arguments['channels']}, and the images have {images}"
        raise ValueError(f"recipe {recipe.name}: {what}; give data.channels and space.channels the same value")
    make_space = spaces.load(name)
    try:
        spaces.check_arguments(arguments)
        return make_space(**arguments)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"recipe {recipe.name}: the space {name!r} does not take these arguments: {error}") from None


def _finished_record(out: Path, identity: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Return the record of the finished run in ``out``; None if the run must be started or continued.

    Raises:
        ValueError: the finished run had another recipe, epochs, alone or seed.
        FileExistsError: there is a run, and ``resume`` is not set.
    """
    ended, begun = (out / "supernet.json").exists(), bool(_checkpoints(out))
    if ended and not resume:
        raise FileExistsError(f"{out} already holds a trained supernet; choose another --out or --resume")
    if begun and not resume:
        raise FileExistsError(f"{out} holds an interrupted training; continue it with --resume or choose another --out")
    if not ended or begun:
        return None
    record = read_json(out / "supernet.json")
    if differ := [key for key, value in identity.items() if record.get(key) != value]:
        raise ValueError(f"{out} holds the supernet of a run with other {', '.join(differ)}; choose another --out")
    return record


def _checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint-*.safetensors"))
