"""Train the supernet of a recipe and write its folder: ``run_recipe(recipe, data, out)``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hnas import distributed
from hnas.files import locked, write_json
from hnas.journal import Journal, digest
from hnas.recipes import Recipe, check_length
from hnas.recipes.kept import LENGTH, checkpoints, digest_of, finished_record, known_length
from hnas.recipes.length import Timing, TrainingPlan, fit, is_in_memory, plan_training, time_step
from hnas.recipes.parts import make_schedule, make_space, named_arch, open_task_of
from hnas.recipes.progress import Progress, accuracy_of_ends, judge_sequence, make_observer, summarise, timing_line
from hnas.recipes.schema import decode_recipe
from hnas.recipes.searching import (
    Logits,
    MeasureLatency,
    Measuring,
    SkipWatch,
    limit_of_skips,
    make_pick,
    name_logits,
    record_of,
)
from hnas.recipes.sections import Experiment
from hnas.recipes.shrinking import grow_network, shrink_space
from hnas.recipes.start import begin, fit_classifier, make_started, needs_fit, prepared_for, read_grown, time_fitting
from hnas.shrinking.edits import Edit
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.checkpoint import AdamOptions
from hnas.training.folder import save_supernet
from hnas.training.loop import Observer, Pick, Schedule
from hnas.training.pretrained import Pretrained
from hnas.training.teacher import SHARE, Taught, fine_tune, time_tuning

_JOURNAL = "journal.jsonl"
_TEACHER = "teacher.safetensors"


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
    minutes: choose space, resolution and epochs that fit into so many minutes on this machine; None (default): those of
        the recipe, or ``epochs``.
    clock: returns the seconds of which ``minutes`` speaks (``time.monotonic``); ``time.process_time`` for comparisons
        on a busy machine.
    report: say the plan with two baselines before training, evaluate after each epoch, and write training.jsonl and
        training.csv (False). Only for images in memory.
    tensorboard: with ``report``: write event files for TensorBoard too (False).
    grown_from: the folder of a trained supernet whose smallest member grows, as [grow] of the recipe says; None
        (default): training begins anew.
    measure: opens the measurement of subnets on a device of this machine, for a recipe with ``measured = true`` in
        [train.options]; None (default): such a recipe is refused. ``hnas.deployment.derived.measuring`` is one.
    """

    seed: int = 0
    epochs: float | None = None
    alone: Arch | str | None = None
    among: Space | None = None
    resume: bool = False
    pretrained: str | None = None
    scratch: bool = False
    minutes: float | None = None
    clock: Callable[[], float] = time.monotonic
    report: bool = False
    tensorboard: bool = False
    grown_from: Path | None = None
    measure: MeasureLatency | None = None


def run_recipe(
    recipe: Recipe,
    data: Path | None,
    out: Path,
    options: RunOptions | None = None,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train what ``recipe`` describes on the images in ``data`` and write the supernet's folder ``out``.

    data: the folder of images, or the file of a series or a text; None: a recipe whose task makes its own data.
    on_step: called after each step with (finished steps, steps of the run, loss).
    on_message: called with one line for a person.

    Returns the record that is also written. Accuracies are the task's metric on the test split, after batch-norm
    recalibration: top-1 for images.

        record = run_recipe(recipes.load("images"), Path("photos"), Path("trained"))

    Raises:
        ValueError: the recipe is malformed, or ``out`` holds another run.
        FileExistsError: ``out`` holds a run, and ``options.resume`` is not set.
        FileNotFoundError: ``data`` or a file in it is missing.
        Diverged: too many steps were not finite.
    """
    options = options or RunOptions()
    check_length(options.epochs, options.minutes)
    recipe, found, line = begin(recipe, options.pretrained, scratch=options.scratch)
    known = known_length(out, options.minutes, recipe) if options.resume else None
    recipe, options = _with_length(recipe, options, known)
    if (ended := finished_record(out, _identity(recipe, options), resume=options.resume)) is not None:
        return ended
    task = prepared_for(open_task_of(decode_recipe(recipe), data, options.seed), found, options.seed)
    say = on_message or (lambda _: None)
    with locked(out) if distributed.rank() == 0 else nullcontext():
        for note in (*getattr(task, "notes", ()), *([line] if line else [])):
            say(note)
        if options.minutes is not None and known is None:
            known = _choose_length(recipe, task, options, out, found, say)
            recipe, options = _with_length(recipe, options, known)
        run = _make_run(recipe, task, options, out, found)
        kept = Timing(known["seconds"], known.get("before", 0.0)) if known and known.get("seconds") else None
        plan = _make_plan(run, options, kept or partial(_time_run, recipe, task, options, found), say)
        if isinstance(task, Taught):
            fine_tune(task, max(1, round(SHARE * run.schedule.steps)), out / _TEACHER, run.identity, say)
        return run.run(options, on_step, on_message, plan)


def _make_plan(
    run: _Run, options: RunOptions, timed: Timing | Callable[[], Timing], say: Callable[[str], None]
) -> TrainingPlan | None:
    """Return the plan and say it, on rank 0; the others get None. It stays in the journal, for a run that is continued.

    timed: the timing of the run, or what measures it on all ranks together.
    """
    if not (options.report and is_in_memory(run.task)):
        return None
    space, first = run.supernet.space, distributed.rank() == 0
    size = space.example(space.largest)[0][-1]
    key = f"plan/{digest([run.identity, run.task.to_json(), options.minutes])}"
    with closing(Journal(run.out / _JOURNAL if first else None)) as journal:
        kept = distributed.agreed(lambda: key in journal)
        if not kept and callable(timed):
            say(timing_line(plan=True))
        timing = Timing(0.0) if kept else timed() if callable(timed) else timed
        if not first:
            return None
        make = partial(plan_training, run.task, run.schedule, size, timing, options.minutes)
        plan = TrainingPlan(**journal.call(key, lambda: asdict(make())))
    for note in plan.lines():
        say(note)
    return plan


def _choose_length(
    recipe: Recipe, task: Task, options: RunOptions, out: Path, found: Pretrained | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return a length that fits into the minutes of the options, the same on all ranks; rank 0 writes it to ``out``."""
    assert options.minutes is not None
    say(timing_line(plan=options.report and is_in_memory(task)))
    fitted, epochs, timing = fit(recipe, task, options.minutes, lambda each: _time_run(each, task, options, found))
    chosen = {"minutes": options.minutes, "space": fitted.space, "train": fitted.train}
    chosen |= {"epochs": epochs, "seconds": timing.step, "before": timing.before, "recipe": digest_of(recipe)}
    if distributed.rank() == 0:
        write_json(out / LENGTH, chosen)
    return chosen


def _identity(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """Return what identifies a run, as JSON."""
    alone = options.alone.to_json() if isinstance(options.alone, Arch) else options.alone
    grown = {} if options.grown_from is None else {"grown_from": str(options.grown_from)}
    return {"recipe": recipe.to_json(), "epochs": options.epochs, "alone": alone, "seed": options.seed, **grown}


def _with_length(recipe: Recipe, options: RunOptions, chosen: Mapping[str, Any] | None) -> tuple[Recipe, RunOptions]:
    """Return recipe and options with a length that was chosen."""
    if chosen is None:
        return recipe, options
    return replace(recipe, space=chosen["space"], train=chosen["train"]), replace(options, epochs=chosen["epochs"])


def _make_run(recipe: Recipe, task: Task, options: RunOptions, out: Path, found: Pretrained | None) -> _Run:
    """Return the run of a recipe with its untrained supernet."""
    experiment = decode_recipe(recipe)
    space = whole = make_space(recipe, task)
    if options.alone is not None:
        space = space.alone(named_arch(options.among or space, options.alone))
    schedule, start = make_schedule(experiment, task, options.epochs), None
    if options.grown_from is not None:
        supernet, start, task = read_grown(options.grown_from, space, task, options.seed)
    else:
        supernet = make_started(space, options.seed, f"recipe {recipe.name}", found, whole)
    return _Run(experiment, _identity(recipe, options), out, supernet, task, schedule, start, options.measure)


def _time_run(recipe: Recipe, task: Task, options: RunOptions, found: Pretrained | None) -> Timing:
    """Return the timing of a run, measured on a copy of its supernet, with the teacher's share in a step.

    All ranks take the steps together, and all get the seconds of rank 0.
    """
    run = _make_run(recipe, task, options, Path(), found)
    pick, _ = make_pick(run.experiment, run.supernet, run.task, alone=options.alone is not None)
    fits = needs_fit(run.identity["recipe"], task)
    before = distributed.agreed(lambda: time_fitting(run.supernet, task, options.clock)) if fits else 0.0
    tuning = SHARE * time_tuning(task) if isinstance(task, Taught) else 0.0
    seconds = tuning + time_step(run.supernet, task, pick, options.clock)
    return Timing(float(distributed.agreed(lambda: seconds)), before)


@dataclass
class _Run:
    """One run of a recipe.

    experiment: the decoded recipe.
    identity: recipe, epochs, alone and seed, as JSON. Only a run with the same identity may continue in ``out``.
    out: the folder of the supernet and its checkpoints.
    supernet: the supernet to train.
    task: the training and held-out images.
    schedule: the steps of all cycles.
    start: a trained member of the supernet to grow from; None: nothing is trained yet.
    measure: as in ``RunOptions``.
    proofs: receives the proof of every edit that grows the network.
    """

    experiment: Experiment
    identity: dict[str, Any]
    out: Path
    supernet: Supernet
    task: Task
    schedule: Schedule
    start: Arch | None = None
    measure: MeasureLatency | None = None
    proofs: list[dict[str, Any]] = field(default_factory=list)

    def run(
        self,
        options: RunOptions,
        on_step: Callable[[int, int, float], None] | None,
        on_message: Callable[[str], None] | None,
        plan: TrainingPlan | None,
    ) -> dict[str, Any]:
        """Train, evaluate and save; return the record, which is empty in all processes but the first."""
        started, first = time.monotonic(), distributed.rank() == 0
        alone = self.identity["alone"] is not None
        with closing(Journal(self.out / _JOURNAL if first else None)) as journal:
            train, seed = self.experiment.train, self.identity["seed"]
            adam = AdamOptions(train.alpha_rate, train.alpha_decay)
            study = Study(self.supernet, self.task, {}, journal, seed, self.out, self.identity, train.precision, adam)
            measuring = Measuring(self.measure, journal, on_message if first else None)
            picked = make_pick(self.experiment, self.supernet, self.task, measuring, alone=alone)
            followers = self._followers(study, picked[1], options, plan, on_message) if first else []
            observer = make_observer(study, self.schedule.steps, on_step, followers, on_message)
            log, logits = self._train(study, picked, observer)
        skipped = getattr(self.task, "left_out", 0) + distributed.total(getattr(self.task, "skipped", 0))
        if not first:
            return {}
        seconds = round(time.monotonic() - started, 1)
        summary = summarise(study) if plan is not None else {}
        record = {
            **self.identity,
            "task": self.task.to_json(),
            "steps": self.schedule.steps,
            "seconds": seconds,
            "accuracy": accuracy_of_ends(study, summary),
            "images": {split: len(held) for split, held in self.task.splits.items()},
            **({"skipped": skipped} if self.experiment.data.options.get("skip") else {}),
            **({"edits": [edit.to_json() for edit in log]} if log else {}),
            **({"growth": self.proofs} if self.proofs else {}),
            **record_of(self.supernet.space, logits, self.identity["recipe"]["train"]),
            **judge_sequence(study, self.schedule.steps, on_message),
        }
        if plan is not None:
            record |= {"plan": plan.to_json(), **summary}
        save_supernet(self.supernet, self.out, record)
        for trace in (*checkpoints(self.out), self.out / _JOURNAL, self.out / _TEACHER):
            trace.unlink(missing_ok=True)
        return record

    def _followers(
        self,
        study: Study,
        logits: Mapping[str, nn.Parameter],
        options: RunOptions,
        plan: TrainingPlan | None,
        say: Callable[[str], None] | None,
    ) -> list[Callable[[int, float], None]]:
        """Return what looks at the training after each step: the log, with a plan, and the watch of a search."""
        steps, per_epoch = self.schedule.steps, self.task.steps_per_epoch
        found: list[Callable[[int, float], None]] = []
        watch = None
        if logits:
            most = limit_of_skips(self.identity["recipe"]["train"])
            watch = SkipWatch(study, logits, most, steps, per_epoch, say)
        if plan is not None:
            found.append(Progress(study, steps, per_epoch, self.out, say, watch, tensorboard=options.tensorboard))
        return [*found, watch] if watch else found

    def _train(
        self, study: Study, picked: tuple[Pick, dict[str, nn.Parameter]], observer: Observer
    ) -> tuple[list[Edit], Logits]:
        """Train, and set the supernet's space to the space that shrinking leaves. Return edits and final logits.

        picked: the training strategy with its options, and its architecture parameters.
        """
        train, shrink = self.experiment.train, self.experiment.shrink
        alone = self.identity["alone"] is not None
        if self.experiment.grow is not None and not alone:
            rules = self.experiment.grow
            self.supernet.space = grow_network(study, rules, self.schedule, self.start, observer, self.proofs)
            return [], {}
        pick, extra = picked
        log: list[Edit] = []
        if needs_fit(self.identity["recipe"], self.task) and not checkpoints(self.out):
            fit_classifier(study, observer.on_message or (lambda _: None))
        if alone or shrink is None:
            study.train(pick, self.schedule, combine=train.combine, extra=extra, observer=observer)
        else:
            cycles = [replace(self.schedule, cycles=(cycle,)) for cycle in self.schedule.cycles]
            training = StageTraining(cycles, pick, extra, observer)
            space = shrink_space(study, shrink, training, self.identity, log)
            for cycle in cycles[study.trained :]:  # shrinking may end before the schedule does
                training.train(study, cycle, space)
            self.supernet.space = space
        return log, name_logits(self.supernet.space, extra)
