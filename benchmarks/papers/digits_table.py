"""Train every architecture of ``tabular_digits`` alone: ``python -m hnas.benchmarks.papers.digits_table --out FILE``.

The table holds accuracies on the test and the search split for each seed, parameters, multiply-accumulates, and the
latency in ONNX Runtime, each architecture interleaved with the largest. Architectures that differ only in the places of
their identities are one network when trained alone. So 341 networks stand behind the 625 rows, and equal networks have
equal figures. A training takes about a second of a core. Finished trainings are files, so a stopped command continues.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
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
from hnas.cost.flops import macs, parameters
from hnas.export import backends
from hnas.export.device.machine import Machine
from hnas.files import write_text
from hnas.space import Space
from hnas.spaces.tabular_digits import LAYERS, TYPES, arch_of, tabular_digits
from hnas.strategies import alone
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification
from hnas.tasks.digits import open_task as digits
from hnas.training.loop import Schedule, TrainingOptions, train

# From a pilot of 20 architectures and 2 seeds, with 60 to 200 steps, batches of 64 to 256 and rates of 0.1 to 1. With
# these values, architectures differ 6 times as much (in standard deviations) as the seeds of one architecture.
_STEPS, _RATE, _BATCH = 100, 0.4, 128
_SEEDS = 4
_DEVICE, _NO_DEVICE = "onnxruntime-cpu", "none"
_TOGETHER = 25  # networks that are timed in one session with the largest
BLOCKS = 6  # interleaved blocks of a session

_USAGE = 2
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class _LoneSetting:
    """The setting of one training alone: the type of each slot, the digest of the data, and the schedule."""

    types: Sequence[str]
    data: str
    steps: int
    rate: float
    batch: int


@dataclass(frozen=True, kw_only=True)
class _SessionSetting:
    """The setting of one session that measures latencies: the types of each architecture, and the device."""

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
    lone = tabular_digits().alone(arch_of(setting.types))
    study = Study(Supernet(lone, seed), task, seed=seed)
    train(
        study.supernet, study.task, alone.pick, Schedule(((setting.steps, setting.rate),)), TrainingOptions(seed=seed)
    )
    return {split: study.accuracy(lone.largest, split) for split in ("test", "search")}


def _digest(task: Classification) -> str:
    """Return sixteen hex digits that identify the images and their splits."""
    return hashlib.sha256(json.dumps(task.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def network_of(types: Sequence[str]) -> tuple[str, ...]:
    """Return the types with all identities first. Architectures with an equal result are the same network."""
    return tuple(sorted(types, key=lambda kind: kind != "identity"))


def timed(images: Path | None, seed: int, setting: _SessionSetting) -> Result:
    """Measure how many times as fast as the largest architecture each one is: ratio, low, high of a 95 % interval.

    One process, one thread, one image, fp32. The result also holds the median time of the largest in ms.
    """
    del images
    study = Study(Supernet(tabular_digits(), seed), digits(), seed=seed)
    largest = study.supernet.space.largest
    raw, _ = study.task.held("search")
    inputs = [x.numpy() for x in study.task.inputs(raw[:1], study.supernet.space.example(largest))]
    with tempfile.TemporaryDirectory(prefix="hnas-") as folder:
        runners = []
        for index, arch in enumerate((largest, *map(arch_of, setting.archs))):
            net = study.supernet.extract(arch, study.calibrate(arch))
            path = Path(folder, str(index))
            runners.append(export.load(export.compile(net, inputs, device=setting.device, path=path, threads=1)))
        found = export.compare_many(runners[0], runners[1:], inputs, blocks=BLOCKS)
        return {
            "ratios": [[round(x, 5) for x in (each.ratio, each.low, each.high)] for each in found],
            "largest_ms": found[0].a.median_ms,
            "machine": json.loads(json.dumps(asdict(Machine.here()))),
            "versions": dict(export.Artifact.read(Path(folder, "0")).versions),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the unfinished parts, then write the table. Return the exit code: 0, 2 for wrong use, 130 if interrupted."""
    arguments = parser().parse_args(argv)
    parts = StudyParts(arguments.parts, None, arguments.jobs)
    try:
        text = _make_table(parts, arguments)
        write_text(arguments.out, text)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues from the finished parts", _INTERRUPTED)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return _complain(str(error), _USAGE)
    finally:
        parts.close()
    noise = json.loads(text)["noise"]
    console = Console()
    console.print(f"  {', '.join(f'{name} {value}' for name, value in noise.items())}", highlight=False)
    console.print(f"  written to {arguments.out}")
    return 0


def _make_table(parts: StudyParts, arguments: argparse.Namespace) -> str:
    """Run the parts; return the table as JSON, with the row of each architecture on one line."""
    device = arguments.device
    if device != _NO_DEVICE and (missing := backends.load(hw_profiles.load(device).backend).missing()):
        raise ValueError(f"{missing}; or take --device {_NO_DEVICE}")
    archs = list(product(TYPES, repeat=LAYERS))
    if arguments.sample is not None:
        archs = Random(0).sample(archs, min(arguments.sample, len(archs)))
    networks = list(dict.fromkeys(map(network_of, archs)))
    trained = _train_networks(parts, networks, arguments.seeds, arguments.steps)
    sessions = _time_networks(parts, networks, device)
    space = tabular_digits()
    rows = [_row(space, types, [parts[seed[network_of(types)]] for seed in trained]) for types in archs]
    latency = _add_latencies(rows, networks, [parts[session] for session in sessions], device) if sessions else None
    schedule = Schedule(((arguments.steps, _RATE),))
    header = {
        "schema": 1,
        "space": space.to_json(),
        "task": digits().to_json(),
        "training": {
            "steps": arguments.steps,
            "rate": _RATE,
            "batch": _BATCH,
            "smoothing": 0.0,
            "schedule": asdict(schedule),
        },
        "seeds": arguments.seeds,
        "networks": len(networks),
        "versions": result_versions(),
        "latency": latency,
        "noise": noise_of_table(rows),
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return json.dumps(header, indent=1).removesuffix("\n}") + f',\n "archs": [\n  {lines}\n ]\n}}\n'


def _train_networks(
    parts: StudyParts, networks: Sequence[tuple[str, ...]], seeds: int, steps: int
) -> list[dict[tuple[str, ...], StudyPart]]:
    """Train every network seed by seed, so that each finished seed leaves a table; return [seeds] network -> part."""
    data = _digest(digits())
    settings = {net: _LoneSetting(types=net, data=data, steps=steps, rate=_RATE, batch=_BATCH) for net in networks}
    trained = [{net: part(reached, seed, setting) for net, setting in settings.items()} for seed in range(seeds)]
    for seed, wanted in enumerate(trained):
        parts.complete(list(wanted.values()), f"seed {seed + 1} of {seeds}")
    return trained


def _time_networks(parts: StudyParts, networks: Sequence[tuple[str, ...]], device: str) -> list[StudyPart]:
    """Measure the latency of every network in sessions of ``_TOGETHER``; nothing without a device."""
    if device == _NO_DEVICE:
        return []
    chunks = [networks[i : i + _TOGETHER] for i in range(0, len(networks), _TOGETHER)]
    sessions = [part(timed, 0, _SessionSetting(archs=chunk, device=device), timed=True) for chunk in chunks]
    parts.complete(sessions, "latency")
    return sessions


def _row(space: Space, types: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
    """Return the row of an architecture: types, accuracies of every seed, parameters and multiply-accumulates."""
    values = {split: [round(result[split], 4) for result in results] for split in ("test", "search")}
    arch = arch_of(types)
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
    rows: list[dict[str, Any]], networks: Sequence[tuple[str, ...]], sessions: Sequence[Result], device: str
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
        "kind": "measured",
        "device": device,
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


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(
        "python -m hnas.benchmarks.papers.digits_table",
        description="Train every architecture of tabular_digits alone, then write the table.",
    )
    top.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, as JSON")
    top.add_argument(
        "--seeds", type=count, default=_SEEDS, metavar="N", help="trainings of each network (default %(default)s)"
    )
    top.add_argument("--jobs", type=count, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
    top.add_argument("--parts", type=Path, default=Path("runs/papers/digits"), metavar="DIR", help="finished trainings")
    top.add_argument("--device", default=_DEVICE, metavar="NAME", help="device of the latency, or none (%(default)s)")
    top.add_argument("--sample", type=count, metavar="N", help="a pilot: N random architectures only")
    top.add_argument("--steps", type=count, default=_STEPS, metavar="N", help="steps of a training (%(default)s)")
    return top


def _complain(line: str, code: int) -> int:
    print(f"hnas.benchmarks.papers.digits_table: {line}", file=sys.stderr)  # noqa: T201 - one line, without rich
    return code


if __name__ == "__main__":
    # Imported by its name: parts are named after the module of their function, which here would be __main__.
    sys.exit(importlib.import_module("hnas.benchmarks.papers.digits_table").main())
