"""Follow a training: evaluate smallest and largest subnet after each epoch, and write what was seen.

``Progress(study, steps, folder)`` is called after each step; it writes training.jsonl and training.csv.
"""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from hnas.cost.flops import macs, parameters
from hnas.files import parse_number, read_plain, write_text
from hnas.recipes.baseline import train_plain_recurrent
from hnas.recipes.searching import SkipWatch
from hnas.study import Study
from hnas.training.loop import Observer

LOG, TABLE, EVENTS = "training.jsonl", "training.csv", "tensorboard"
_LARGEST = 2**24  # bytes of a log
_SHOWN = 5  # confused classes
_KEYS = ("epoch", "step", "loss", "smallest", "largest", "seconds")
_SEARCHED = ("types", "skips")  # further keys of a differentiable search


class _TensorBoardMissing(RuntimeError):
    """The package tensorboard is not installed."""

    code = 3


class Progress:
    """The log of a training: one record for each epoch.

    study: the training; its search images give the accuracies.
    steps: steps of the whole run.
    per_epoch: steps of an epoch.
    folder: where the files are written; those of an interrupted run are continued.
    say: called with a line for each epoch.
    watch: counts the most likely types of a differentiable search, for the log; None: no such search.
    tensorboard: write event files too.

    Raises:
        _TensorBoardMissing: ``tensorboard`` is set, and the package is not installed.
    """

    def __init__(
        self,
        study: Study,
        steps: int,
        per_epoch: int,
        folder: Path,
        say: Callable[[str], None] | None = None,
        watch: SkipWatch | None = None,
        *,
        tensorboard: bool = False,
    ) -> None:
        self.study = study
        self.steps = steps
        self.per_epoch = per_epoch
        self.folder = folder
        self.say = say
        self.watch = watch
        self.records: list[dict[str, Any]] = _read(folder / LOG)
        self._writer = _open_writer(folder / EVENTS) if tensorboard else None
        self._losses: list[float] = []
        self._begun: tuple[float, int] | None = None  # when this process began, and after how many steps
        self._spent = 0.0  # seconds of earlier processes

    def __call__(self, done: int, loss: float) -> None:
        """Take note of a finished step; at the end of an epoch evaluate and write.

        done: number of finished steps of the run, from 1.
        loss: of the largest subnet in this step.
        """
        if self._begun is None:
            self._begun = time.monotonic(), done - 1
            self.records = [record for record in self.records if record["step"] < done]  # repeated after a kill
            self._spent = self.records[-1]["seconds"] if self.records else 0.0
        self._losses.append(loss)
        if done % self.per_epoch == 0 or done == self.steps:
            self._record(done)

    def _record(self, done: int) -> None:
        assert self._begun is not None
        space = self.study.supernet.space
        record: dict[str, Any] = {
            "epoch": round(done / self.per_epoch, 2),
            "step": done,
            "loss": round(sum(self._losses) / len(self._losses), 4),
            "smallest": round(self.study.accuracy(space.smallest), 4),
            "largest": round(self.study.accuracy(space.largest), 4),
            "seconds": round(self._spent + time.monotonic() - self._begun[0], 1),
        }
        if self.watch is not None:
            record |= {"types": self.watch.count_types(), "skips": self.watch.count_skips()}
        self._losses.clear()
        self.records.append(record)
        self._write()
        if self.say:
            self.say(self._line(record))

    def _line(self, record: dict[str, Any]) -> str:
        assert self._begun is not None
        began, first = self._begun
        left = (time.monotonic() - began) / (record["step"] - first) * (self.steps - record["step"])
        shares = f"smallest {record['smallest']:.1%}, largest {record['largest']:.1%} of the search images"
        epochs = f"epoch {record['epoch']:g} of {self.steps / self.per_epoch:.3g}"
        types = f", {_counts(record['types'])}" if record.get("types") else ""
        return f"{epochs}: loss {record['loss']:.3f}, {shares}{types}, {left / 60:.1f} min left"

    def _write(self) -> None:
        write_text(self.folder / LOG, "".join(json.dumps(record) + "\n" for record in self.records))
        text = StringIO()
        table = csv.DictWriter(text, _KEYS if self.watch is None else (*_KEYS, *_SEARCHED), extrasaction="ignore")
        table.writeheader()
        table.writerows({**each, "types": _counts(each.get("types", {}))} for each in self.records)
        write_text(self.folder / TABLE, text.getvalue())
        if self._writer is not None:
            for key in ("loss", "smallest", "largest", *(["skips"] if self.watch else [])):
                self._writer.add_scalar(key, self.records[-1][key], self.records[-1]["step"])
            self._writer.flush()


def make_observer(
    study: Study,
    steps: int,
    on_step: Callable[[int, int, float], None] | None,
    followers: Sequence[Callable[[int, float], None]],
    on_message: Callable[[str], None] | None,
) -> Observer:
    """Return callbacks that count the steps of all trainings of the run, also of those before a resume."""

    def follow(step: int, loss: float) -> None:
        done = min(study.steps + step, steps)
        if on_step is not None:
            on_step(done, steps, loss)
        for each in followers:
            each(done, loss)

    return Observer(follow if on_step or followers else None, on_message)


def timing_line(*, plan: bool) -> str:
    """Return the line that precedes the timing of a training.

    plan: whether a plan with baselines follows.
    """
    told = "timing    a few training steps"
    return f"{told}, then at most 30 s of training of a plain CNN, for comparison" if plan else told


def summarise(study: Study) -> dict[str, Any]:
    """Return the accuracies of five subnets on the test images, and the classes that the largest one confuses most."""
    space = study.supernet.space
    rng = Random(0)
    archs = {"largest": space.largest, **{f"random {k}": space.sample(rng) for k in (1, 2, 3)}}
    archs["smallest"] = space.smallest
    outputs, labels = study.outputs(space.largest, "test")
    scores = {space.largest: study.task.metric(outputs, labels)}
    scores |= {arch: study.accuracy(arch, "test") for arch in {*archs.values()} - {space.largest}}
    pairs = Counter(zip(labels.tolist(), outputs.argmax(1).tolist(), strict=True))
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]]
    classes = study.task.to_json()["classes"]
    subnets = {
        name: {
            "accuracy": round(scores[arch], 4),
            "macs": macs(study.supernet.skeleton(arch), *space.example(arch)),
        }
        for name, arch in archs.items()
    }
    return {
        "subnets": subnets,
        "confusion": [[classes[true], classes[taken], count] for (true, taken), count in wrong[:_SHOWN]],
    }


def accuracy_of_ends(study: Study, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracies of largest and smallest subnet on the test images, from the summary where it has them."""
    if summary:
        return {name: summary["subnets"][name]["accuracy"] for name in ("largest", "smallest")}
    space = study.supernet.space
    scores = {arch: study.accuracy(arch, "test") for arch in {space.largest, space.smallest}}
    return {"largest": round(scores[space.largest], 4), "smallest": round(scores[space.smallest], 4)}


def judge_sequence(study: Study, steps: int, say: Callable[[str], None] | None) -> dict[str, Any]:
    """Return how the metric of a task of sequences is called, and the metric of its baselines on the test split.

    steps: length of the training of an LSTM and a GRU with as many weights as the largest member has.
    say: called with a line before each of the two trainings.
    Empty for a task without ``baselines``: images have a plan with baselines of their own.
    """
    task = study.task
    if not hasattr(task, "baselines"):
        return {}
    space = study.supernet.space
    count = parameters(study.supernet.skeleton(space.largest))
    found = dict(task.baselines("test"))
    for kind, name in (("lstm", "LSTM"), ("gru", "GRU")):
        said = f"{name} of as many weights ({count}), trained for {steps} steps"
        if say is not None:
            say(f"baseline  {said}")
        found[said] = train_plain_recurrent(task, kind, steps=steps, weights=count)
    return {"score": asdict(task.score), "baselines": {name: round(value, 4) for name, value in found.items()}}


def _counts(types: Mapping[str, int]) -> str:
    """Return the numbers of slots by type as text: "conv3 2, identity 1"."""
    return ", ".join(f"{kind} {count}" for kind, count in types.items())


def _read(file: Path) -> list[dict[str, Any]]:
    """Return the records of an interrupted run; a line that a kill has cut is left out.

    A search of an earlier version has records without the counts of types.

    Raises:
        ValueError: the log is no plain file, or has more than 16 MiB.
    """
    if not file.exists():
        return []
    found = []
    for line in read_plain(file, _LARGEST).splitlines():
        try:
            record = json.loads(line, parse_float=parse_number)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or set(record) not in (set(_KEYS), {*_KEYS, *_SEARCHED}):
            break
        if not isinstance(types := record.get("types", {}), dict):
            break
        numbers = [*types.values(), *(value for key, value in record.items() if key != "types")]
        if not all(isinstance(value, int | float) for value in numbers):
            break
        found.append(record)
    return found


def _open_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _TensorBoardMissing("tensorboard is not installed; pip install 'hnas[tensorboard]'") from None
    return SummaryWriter(str(folder))
