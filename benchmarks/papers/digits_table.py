"""Train every architecture of ``tabular_digits`` alone: ``python -m hnas.benchmarks.papers.digits_table``.

Accuracies on the test and the search split for each seed, parameters, multiply-accumulates, and the latency in ONNX
Runtime, each architecture in turns with the largest. Architectures that differ only in where their identities stand are
one network when they are alone: 341 networks stand behind the 625 rows, and equal ones have equal figures. About a
second of a core for each training; finished ones are files, so the same command goes on where it was stopped.
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
from dataclasses import asdict
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hnas import export, hw_profiles
from hnas.benchmarks.papers.parts import Parts, Result, part, versions
from hnas.benchmarks.papers.statistics import ceiling
from hnas.cost.flops import macs, parameters
from hnas.export import backends
from hnas.export.device.machine import Machine
from hnas.files import write_text
from hnas.space import Arch, Space
from hnas.spaces.tabular_digits import LAYERS, TYPES, arch_of, tabular_digits
from hnas.strategies import alone
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification
from hnas.tasks.digits import open_task as digits
from hnas.training.loop import Schedule, train

# By a pilot of 20 architectures and 2 seeds: of 60 to 200 steps, batches of 64 to 256 and rates of 0.1 to 1 these gave
# architectures that differ by 6 times as much (in standard deviations) as the seeds of one.
STEPS, RATE, BATCH = 100, 0.4, 128
SEEDS = 4
DEVICE, NO_DEVICE = "onnxruntime-cpu", "none"
TOGETHER = 25  # networks timed in one session with the largest
BLOCKS = 6  # turns of each in a session

USAGE = 2


def reached(
    images: Path | None, seed: int, *, types: Sequence[str], data: str, steps: int, rate: float, batch: int
) -> Result:
    """Train one architecture alone; its accuracy on the test and the search split. data: ``described`` images."""
    del images  # scikit-learn has them
    task = digits(seed=seed, batch_size=batch, smoothing=0.0)
    if described(task) != data:
        raise ValueError("these are not the digits that this part is of; take another --parts")
    lone = tabular_digits().alone(arch_of(types))
    study = Study(Supernet(lone, seed), task, seed=seed)
    train(study.supernet, study.task, alone.pick, Schedule(((steps, rate),)), seed=seed)
    return {split: study.accuracy(lone.largest, split) for split in ("test", "search")}


def described(task: Classification) -> str:
    """Sixteen hex digits that tell the images and their splits from others."""
    return hashlib.sha256(json.dumps(task.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def network(types: Sequence[str]) -> tuple[str, ...]:
    """The types with the identities first: what is the same network has the same."""
    return tuple(sorted(types, key=lambda kind: kind != "identity"))


def timed(images: Path | None, seed: int, *, archs: Sequence[Sequence[str]], device: str) -> Result:
    """How many times as fast as the largest architecture each one is: ratio, low, high of a 95 % interval.

    In one process, one thread, one image, fp32; also the median of the largest in ms.
    """
    del images
    study = Study(Supernet(tabular_digits(), seed), digits(), seed=seed)
    largest = study.supernet.space.largest
    raw, _ = study.task.held("search")
    inputs = [x.numpy() for x in study.task.inputs(raw[:1], study.supernet.space.example(largest))]
    with tempfile.TemporaryDirectory(prefix="hnas-") as folder:
        runners = [
            export.load(
                export.compile(_extract(study, arch), inputs, device=device, path=Path(folder, str(i)), threads=1)
            )
            for i, arch in enumerate((largest, *map(arch_of, archs)))
        ]
        found = export.compare_many(runners[0], runners[1:], inputs, blocks=BLOCKS)
        return {
            "ratios": [[round(x, 5) for x in (each.ratio, each.low, each.high)] for each in found],
            "largest_ms": found[0].a.median_ms,
            "machine": json.loads(json.dumps(asdict(Machine.here()))),
            "versions": dict(export.Artifact.read(Path(folder, "0")).versions),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the table; a user's mistake is one line."""
    arguments = parser().parse_args(argv)
    parts = Parts(arguments.parts, None, arguments.jobs)
    try:
        text = run(parts, arguments)
        write_text(arguments.out, text)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from the finished parts", 130)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return _complain(str(error), USAGE)
    finally:
        parts.close()
    noise = json.loads(text)["noise"]
    console = Console()
    console.print(f"  {', '.join(f'{name} {value}' for name, value in noise.items())}", highlight=False)
    console.print(f"  written to {arguments.out}")
    return 0


def run(parts: Parts, arguments: argparse.Namespace) -> str:
    """Complete the parts; the table as JSON, a row of an architecture on a line."""
    if arguments.device != NO_DEVICE and (
        missing := backends.load(hw_profiles.load(arguments.device).backend).missing()
    ):
        raise ValueError(f"{missing}; or take --device {NO_DEVICE}")
    archs = list(product(TYPES, repeat=LAYERS))
    if arguments.sample is not None:
        archs = Random(0).sample(archs, min(arguments.sample, len(archs)))
    training: dict[str, Any] = {"steps": arguments.steps, "rate": RATE, "batch": BATCH}
    setting = {"data": described(digits()), **training}
    networks = list(dict.fromkeys(map(network, archs)))
    # Seed by seed: what is finished after each pass over the networks is a table with fewer seeds.
    trained = [{n: part(reached, seed, types=n, **setting) for n in networks} for seed in range(arguments.seeds)]
    for seed, wanted in enumerate(trained):
        parts.complete(list(wanted.values()), f"seed {seed + 1} of {arguments.seeds}")
    sessions = []
    if arguments.device != NO_DEVICE:
        chunks = [networks[i : i + TOGETHER] for i in range(0, len(networks), TOGETHER)]
        sessions = [part(timed, 0, archs=chunk, device=arguments.device, timed=True) for chunk in chunks]
        parts.complete(sessions, "latency")
    space = tabular_digits()
    rows: list[dict[str, Any]] = []
    for types in archs:
        each = [parts[seed[network(types)]] for seed in trained]
        values = {split: [round(result[split], 4) for result in each] for split in ("test", "search")}
        rows.append({"types": types, **values, **_costs(space, arch_of(types))})
    latency = _latency(rows, networks, [parts[session] for session in sessions], arguments.device)
    header = {
        "schema": 1,
        "space": space.to_json(),
        "task": digits().to_json(),
        "training": {**training, "smoothing": 0.0, "schedule": asdict(Schedule(((arguments.steps, RATE),)))},
        "seeds": arguments.seeds,
        "networks": len(networks),
        "versions": versions(),
        "latency": latency,
        "noise": noise(rows),
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return json.dumps(header, indent=1).removesuffix("\n}") + f',\n "archs": [\n  {lines}\n ]\n}}\n'


def noise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How well the table knows its own order: no ranking can be expected to agree with it better than its halves do.

    spread: standard deviation of the architectures' mean test accuracies; seed: that of the seeds of one architecture;
    ratio: of the two; ceiling: Kendall's tau between the means of two halves of the seeds, over every halving.
    """
    test = np.array([row["test"] for row in rows])
    if min(test.shape) < 2:
        return {"spread": None, "seed": None, "ratio": None, "ceiling": None}
    spread, seed = float(test.mean(1).std(ddof=1)), float(np.sqrt(test.var(1, ddof=1).mean()))
    figures = {"spread": spread, "seed": seed, "ratio": spread / seed if seed else None, "ceiling": ceiling(test)}
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def _latency(
    rows: list[dict[str, Any]], networks: Sequence[tuple[str, ...]], sessions: Sequence[Result], device: str
) -> dict[str, Any] | None:
    """Give the rows their latencies; what they were taken at.

    One speed of the machine for all: the median of the largest over the sessions, divided by the ratio within one.
    """
    if not sessions:
        return None
    if any(session["machine"] != sessions[0]["machine"] for session in sessions):
        raise ValueError("latencies were taken on several machines; take them again with another --parts")
    largest = statistics.median(session["largest_ms"] for session in sessions)
    ratios = [ratio for session in sessions for ratio in session["ratios"]]
    known = {each: largest / ratio for each, (ratio, _, _) in zip(networks, ratios, strict=True)}
    for row in rows:
        row["latency_ms"] = round(known[network(row["types"])], 6)
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


def _costs(space: Space, arch: Arch) -> dict[str, int]:
    with torch.device("meta"):
        net = space.build(arch)
    return {"params": parameters(net), "macs": macs(net, *space.example(arch))}


def _extract(study: Study, arch: Arch) -> torch.nn.Module:
    return study.supernet.extract(arch, study.calibrate(arch))


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    top = argparse.ArgumentParser("python -m hnas.benchmarks.papers.digits_table", description=main.__doc__)
    top.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, as JSON")
    top.add_argument(
        "--seeds", type=_positive, default=SEEDS, metavar="N", help="trainings of each (default %(default)s)"
    )
    top.add_argument("--jobs", type=_positive, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
    top.add_argument("--parts", type=Path, default=Path("runs/papers/digits"), metavar="DIR", help="finished trainings")
    top.add_argument("--device", default=DEVICE, metavar="NAME", help="of the latency (default %(default)s), or none")
    top.add_argument("--sample", type=_positive, metavar="N", help="so many random architectures only: a pilot")
    top.add_argument("--steps", type=_positive, default=STEPS, metavar="N", help="of a training (default %(default)s)")
    return top


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _complain(line: str, code: int) -> int:
    print(f"hnas.benchmarks.papers.digits_table: {line}", file=sys.stderr)  # noqa: T201 - one line, without rich
    return code


if __name__ == "__main__":
    # By its own name: parts are named after the module of their function, which here would be __main__.
    sys.exit(importlib.import_module("hnas.benchmarks.papers.digits_table").main())
