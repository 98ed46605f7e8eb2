"""Show how much of a deployment is luck: ``python -m hnas.benchmarks.costs.seeds --targets tflite-cpu --seeds 10``.

Each run is ``hnas-deploy --target T --seed S`` in a fresh process with an empty cache of latencies. The table shows for
each target the best speedup of all seeds, the worst one, the range of the accuracies on the test images, and the most
memory that a run had, in all of its processes together. Finished runs are kept in ``--out`` and are not repeated.
Speedups need a machine without other load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hnas.benchmarks.peers.limits import run_watched

_PERIOD = 0.25  # seconds between two readings of the memory: rare, because the runs measure latencies

Record = dict[str, Any]
TARGETS = ("openvino-cpu", "onnxruntime-cpu", "tflite-cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print a row for each target; return 1 if a run failed."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.seeds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="A,B", help="default: the three CPU targets")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 0 to N-1 (default: 10)")
    parser.add_argument("--budget", metavar="B", help="of each search, as in hnas-deploy (default: its own)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/seeds.jsonl"), metavar="FILE", help="one line for each run"
    )
    options = parser.parse_args(arguments)
    records: list[Record] = []
    for record in _runs(options.targets.split(","), options.seeds, options.budget, options.out):
        records.append(record)
        sys.stderr.write(f"{_line(record)}\n")
    sys.stdout.write("".join(f"{row}\n" for row in table(records)))
    return int(any("error" in record for record in records))


def table(records: Sequence[Record]) -> Iterator[str]:
    """Yield a Markdown table, a row for each target."""
    columns = ("speedup: best", "worst", "worst by best", "top-1, lowest to highest", "seconds, median", "most memory")
    yield f"| target | seeds | {' | '.join(columns)} |"
    yield "|---" * (2 + len(columns)) + "|"
    for target in dict.fromkeys(record["target"] for record in records):
        kept = [record for record in records if record["target"] == target and "speedup" in record]
        if kept:
            speeds = sorted(record["speedup"] for record in kept)
            accuracies = sorted(record["accuracy"] for record in kept)
            memory = max(record.get("pss_mb", 0) for record in kept)  # older records have another sum, or none
            seconds = statistics.median(record["seconds"] for record in kept)
            yield (
                f"| {target} | {len(kept)} | {speeds[-1]:.2f}x | {speeds[0]:.2f}x | {speeds[0] / speeds[-1]:.2f} "
                f"| {accuracies[0]:.2%} to {accuracies[-1]:.2%} | {seconds:.0f} "
                f"| {f'{memory / 1000:.2f} GB' if memory else 'not recorded'} |"
            )


def _runs(targets: Sequence[str], seeds: int, budget: str | None, out: Path) -> Iterator[Record]:
    """Yield the record of every run, from the file or from a new run."""
    known = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.is_file() else []
    whole = [record for record in known if "error" not in record]  # a failed run is tried again
    done = {(record["target"], record["seed"], record["budget"]): record for record in whole}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for target in targets:
            if (target, seed, budget) not in done:
                record = deploy(target, seed, budget)
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                done[target, seed, budget] = record
            yield done[target, seed, budget]


def deploy(target: str, seed: int, budget: str | None) -> Record:
    """Run ``hnas-deploy`` in a fresh process; return what it kept, or its last line as ``error``."""
    record: Record = {"target": target, "seed": seed, "budget": budget}
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from hnas.cli import deploy_main; sys.exit(deploy_main())"]
        command += ["--target", target, "--seed", str(seed), "--out", f"{folder}/run", "--json"]
        command += ["--budget", budget] if budget else []
        begun = time.monotonic()
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        pipe = subprocess.PIPE
        ended, memory = run_watched(command, _PERIOD, stdout=pipe, stderr=pipe, env=environment)
        record |= {"seconds": round(time.monotonic() - begun, 1), "pss_mb": round(memory / 1e6)}
    if ended.returncode:
        return {**record, "error": (ended.stderr.strip().splitlines() or ["no output"])[-1]}
    found = json.loads(ended.stdout)
    kept = next(row for row in found["rows"] if row["verdict"].startswith("kept"))
    interval = kept["speedup"]
    return {
        **record,
        "precision": kept["precision"],
        "speedup": interval["value"],
        "interval": [interval["low"], interval["high"]],
        "accuracy": kept["accuracy"],
        "load": os.getloadavg()[0],
    }


def _line(record: Record) -> str:
    name = f"{record['target']} seed {record['seed']}"
    if "error" in record:
        return f"{name}: {record['error']}"
    low, high = record["interval"]
    return (
        f"{name}: {record['speedup']:.2f}x [{low:.2f}, {high:.2f}] {record['precision']}, {record['accuracy']:.2%}, "
        f"{record['seconds']:.0f} s, load {record['load']:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
