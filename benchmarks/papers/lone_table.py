"""Train every architecture of a small space alone, and write the table: ``main(LoneTable(...))``.

The table holds accuracies on the test and the search split for each seed, parameters, multiply-accumulates, and the
latency in ONNX Runtime, each architecture interleaved with the largest. Architectures that compute the same function
are one network, which is trained once. Finished trainings are files, so a stopped command continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hnas import export, hw_profiles
from hnas.benchmarks.cli import count
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part, result_versions
from hnas.benchmarks.papers.statistics import ceiling
from hnas.benchmarks.papers.supernets import space_of
from hnas.cost.flops import macs, parameters
from hnas.export import backends
from hnas.export.device.machine import Machine
from hnas.files import write_text
from hnas.space import Arch, Space
from hnas.strategies import alone
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification
from hnas.tasks.digits import open_task as digits
from hnas.training.loop import Schedule, TrainingOptions, train

_SEEDS = 4
_DEVICE, _NO_DEVICE = "onnxruntime-cpu", "none"
_TOGETHER = 25  # networks that are timed in one session with the largest
BLOCKS = 6  # interleaved blocks of a session

_USAGE = 2
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class LoneTable:
    """Say which table a command makes, and how its networks are trained.

    command: module of the command.
    describes: one line for ``--help``.
    space, arguments: name and arguments of the space; each of its slots has all of its types.
    network_of: (type of each slot) -> the types of the architecture that stands for all with the same function.
    steps, rate, batch: of one training alone.
    parts: folder of the finished trainings, unless ``--parts`` names one.
    """

    command: str
    describes: str
    space: str
    arguments: Mapping[str, Any]
    network_of: Callable[[Sequence[str]], tuple[str, ...]]
    steps: int
    rate: float
    batch: int
    parts: Path

    @property
    def whole(self) -> Space:
        """Return the space."""
        return space_of(self.space, self.arguments)

    def members(self) -> list[tuple[str, ...]]:
        """Return the types of every architecture, one for each slot."""
        space = self.whole
        return list(product(*(map(str, space.choices[f"{slot}.op"].options) for slot in space.slots)))


def arch_of(space: Space, types: Sequence[str]) -> Arch:
    """Return the architecture with these types, from the first slot to the last."""
    return Arch({f"{slot}.op": kind for slot, kind in zip(space.slots, types, strict=True)})


@dataclass(frozen=True, kw_only=True)
class _LoneSetting:
    """The setting of one training alone: the type of each slot, the digest of the data, and the schedule."""

    space: str
    arguments: Mapping[str, Any]
    types: Sequence[str]
    data: str
    steps: int
    rate: float
    batch: int


@dataclass(frozen=True, kw_only=True)
class _SessionSetting:
    """The setting of one session that measures latencies: the types of each architecture, and the device."""

    space: str
    arguments: Mapping[str, Any]
    archs: Sequence[Sequence[str]]
    device: str


def reached(images: Path | None, seed: int, setting: _LoneSetting) -> Result:
    """Train one architecture alone; return its accuracy on the test and the search split.

    Raises:
        ValueError: the images of scikit-learn are not those of the setting.
    """
    del images  # scikit-learn has the digits
    task = digits(seed=seed, batch_size=setting.batch, smoothing=0.0)
    if _digest(task) != setting.data:
        raise ValueError("this part was made from other digits; choose another --parts")
    space = space_of(setting.space, setting.arguments)
    lone = space.alone(arch_of(space, setting.types))
    study = Study(Supernet(lone, seed), task, seed=seed)
    train(
        study.supernet, study.task, alone.pick, Schedule(((setting.steps, setting.rate),)), TrainingOptions(seed=seed)
    )
    return {split: study.accuracy(lone.largest, split) for split in ("test", "search")}


def train_alone(table: LoneTable, types: Sequence[str], seed: int, steps: int) -> Result:
    """Train one architecture of a table as its command does; return its accuracy on the test and the search split."""
    return reached(None, seed, _lone_setting(table, types, steps, table.rate))


def _lone_setting(table: LoneTable, types: Sequence[str], steps: int, rate: float) -> _LoneSetting:
    data = _digest(digits())
    return _LoneSetting(
        space=table.space,
        arguments=table.arguments,
        types=types,
        data=data,
        steps=steps,
        rate=rate,
        batch=table.batch,
    )


def _digest(task: Classification) -> str:
    """Return sixteen hex digits that identify the images and their splits."""
    return hashlib.sha256(json.dumps(task.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def timed(images: Path | None, seed: int, setting: _SessionSetting) -> Result:
    """Measure how many times as fast as the largest architecture each one is, as ``_time_together`` does."""
    del images
    space = space_of(setting.space, setting.arguments)
    study = Study(Supernet(space, seed), digits(), seed=seed)
    return _time_together(study, [arch_of(space, types) for types in setting.archs], setting.device)


def _time_together(study: Study, archs: Sequence[Arch], device: str) -> Result:
    """Measure how many times as fast as the largest architecture each one is: ratio, low, high of a 95 % interval.

    One process, one thread, one image, fp32. The result also holds the median time of the largest in ms.
    """
    space = study.supernet.space
    raw, _ = study.task.held("search")
    inputs = [x.numpy() for x in study.task.inputs(raw[:1], space.example(space.largest))]
    with tempfile.TemporaryDirectory(prefix="hnas-") as folder:
        runners = []
        for index, arch in enumerate((space.largest, *archs)):
            net = study.supernet.extract(arch, study.calibrate(arch))
            path = Path(folder, str(index))
            runners.append(export.load(export.compile(net, inputs, device=device, path=path, threads=1)))
        found = export.compare_many(runners[0], runners[1:], inputs, blocks=BLOCKS)
        return {
            "ratios": [[round(x, 5) for x in (each.ratio, each.low, each.high)] for each in found],
            "largest_ms": found[0].a.median_ms,
            "machine": json.loads(json.dumps(asdict(Machine.here()))),
            "versions": dict(export.Artifact.read(Path(folder, "0")).versions),
        }


def main(table: LoneTable, argv: Sequence[str] | None = None) -> int:
    """Run the unfinished parts, then write the table. Return the exit code: 0, 2 for wrong use, 130 if interrupted."""
    arguments = _parser(table).parse_args(argv)
    parts = StudyParts(arguments.parts, None, arguments.jobs)
    try:
        text = _make_table(table, parts, arguments)
        write_text(arguments.out, text)
    except KeyboardInterrupt:
        return _complain(table, "interrupted; the same command continues from the finished parts", _INTERRUPTED)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return _complain(table, str(error), _USAGE)
    finally:
        parts.close()
    noise = json.loads(text)["noise"]
    console = Console()
    console.print(f"  {', '.join(f'{name} {value}' for name, value in noise.items())}", highlight=False)
    console.print(f"  written to {arguments.out}")
    return 0


def _make_table(table: LoneTable, parts: StudyParts, arguments: argparse.Namespace) -> str:
    """Run the parts; return the table as JSON, with the row of each architecture on one line."""
    device = arguments.device
    if device != _NO_DEVICE and (missing := backends.load(hw_profiles.load(device).backend).missing()):
        raise ValueError(f"{missing}; or take --device {_NO_DEVICE}")
    archs = table.members()
    if arguments.sample is not None:
        archs = Random(0).sample(archs, min(arguments.sample, len(archs)))
    networks = list(dict.fromkeys(map(table.network_of, archs)))
    trained = _train_networks(table, parts, networks, arguments)
    sessions = _time_networks(table, parts, networks, device)
    space = table.whole
    rows = [_row(space, types, [parts[seed[table.network_of(types)]] for seed in trained]) for types in archs]
    measured = [parts[session] for session in sessions]
    latency = _add_latencies(rows, networks, measured, table.network_of) if sessions else None
    schedule = Schedule(((arguments.steps, arguments.rate),))
    header = {
        "schema": 1,
        "space": space.to_json(),
        "task": digits().to_json(),
        "training": {
            "steps": arguments.steps,
            "rate": arguments.rate,
            "batch": table.batch,
            "smoothing": 0.0,
            "schedule": asdict(schedule),
        },
        "seeds": arguments.seeds,
        "networks": len(networks),
        "versions": result_versions(),
        "latency": None if latency is None else {"kind": "measured", "device": device, **latency},
        "noise": noise_of_table(rows),
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return json.dumps(header, indent=1).removesuffix("\n}") + f',\n "archs": [\n  {lines}\n ]\n}}\n'


def _train_networks(
    table: LoneTable, parts: StudyParts, networks: Sequence[tuple[str, ...]], arguments: argparse.Namespace
) -> list[dict[tuple[str, ...], StudyPart]]:
    """Train every network seed by seed, so that each finished seed leaves a table; return [seeds] network -> part."""
    settings = {net: _lone_setting(table, net, arguments.steps, arguments.rate) for net in networks}
    seeds = range(arguments.seeds)
    trained = [{net: part(reached, seed, setting) for net, setting in settings.items()} for seed in seeds]
    for seed, wanted in enumerate(trained):
        parts.complete(list(wanted.values()), f"seed {seed + 1} of {len(seeds)}")
    return trained


def _time_networks(
    table: LoneTable, parts: StudyParts, networks: Sequence[tuple[str, ...]], device: str
) -> list[StudyPart]:
    """Measure the latency of every network in sessions of ``_TOGETHER``; nothing without a device."""
    if device == _NO_DEVICE:
        return []
    chunks = [networks[i : i + _TOGETHER] for i in range(0, len(networks), _TOGETHER)]
    settings = [
        _SessionSetting(space=table.space, arguments=table.arguments, archs=chunk, device=device) for chunk in chunks
    ]
    sessions = [part(timed, 0, setting, timed=True) for setting in settings]
    parts.complete(sessions, "latency")
    return sessions


def _row(space: Space, types: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
    """Return the row of an architecture: types, accuracies of every seed, parameters and multiply-accumulates."""
    values = {split: [round(result[split], 4) for result in results] for split in ("test", "search")}
    arch = arch_of(space, types)
    with torch.device("meta"):
        net = space.build(arch)
    costs = {"params": parameters(net), "macs": macs(net, *space.example(arch))}
    return {"types": types, **values, **costs}


def noise_of_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the noise of the table. No ranking can agree with the table better than two halves of its seeds do.

    spread: standard deviation of the mean test accuracies of architectures.
    seed: standard deviation of the seeds of one architecture.
    ratio: spread by seed.
    ceiling: Kendall's tau between the means of two halves of the seeds, over every way to halve them.
    """
    test = np.array([row["test"] for row in rows])
    if min(test.shape) < 2:
        return {"spread": None, "seed": None, "ratio": None, "ceiling": None}
    spread, seed = float(test.mean(1).std(ddof=1)), float(np.sqrt(test.var(1, ddof=1).mean()))
    figures = {"spread": spread, "seed": seed, "ratio": spread / seed if seed else None, "ceiling": ceiling(test)}
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def _add_latencies(
    rows: list[dict[str, Any]],
    networks: Sequence[tuple[str, ...]],
    sessions: Sequence[Result],
    network_of: Callable[[Sequence[str]], tuple[str, ...]],
) -> dict[str, Any]:
    """Add the latencies to the rows; return the conditions of the measurement.

    All rows share one speed of the machine: the median time of the largest over the sessions, divided by the ratio that
    was measured within a session.
    """
    if any(session["machine"] != sessions[0]["machine"] for session in sessions):
        raise ValueError("latencies were measured on several machines; measure again with another --parts")
    largest = statistics.median(session["largest_ms"] for session in sessions)
    ratios = [ratio for session in sessions for ratio in session["ratios"]]
    known = {each: largest / ratio for each, (ratio, _, _) in zip(networks, ratios, strict=True)}
    for row in rows:
        row["latency_ms"] = round(known[network_of(row["types"])], 6)
    widths = [high / low for _, low, high in ratios]
    return {
        "machine": sessions[0]["machine"],
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "largest_ms": round(largest, 6),
        "largest_ms_between_sessions": [round(pick(s["largest_ms"] for s in sessions), 6) for pick in (min, max)],
        "median_width_of_95_interval": round(statistics.median(widths), 4),
        "blocks": BLOCKS,
        "versions": sessions[0]["versions"],
    }


def _parser(table: LoneTable) -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(f"python -m {table.command}", description=table.describes)
    top.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, as JSON")
    top.add_argument(
        "--seeds", type=count, default=_SEEDS, metavar="N", help="trainings of each network (default %(default)s)"
    )
    top.add_argument("--jobs", type=count, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
    top.add_argument("--parts", type=Path, default=table.parts, metavar="DIR", help="finished trainings")
    top.add_argument("--device", default=_DEVICE, metavar="NAME", help="device of the latency, or none (%(default)s)")
    top.add_argument("--sample", type=count, metavar="N", help="a pilot: N random architectures only")
    top.add_argument("--steps", type=count, default=table.steps, metavar="N", help="steps of a training (%(default)s)")
    top.add_argument("--rate", type=float, default=table.rate, metavar="R", help="learning rate (%(default)s)")
    return top


def _complain(table: LoneTable, line: str, code: int) -> int:
    print(f"{table.command}: {line}", file=sys.stderr)  # noqa: T201 - one line, without rich
    return code
