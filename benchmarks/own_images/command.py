"""Train on the folders of ``folders.py`` and write one line of results for each part, so that a stopped run continues.

Every part gets the same processor time, not the same time by the clock: so a busy machine favours none. A training is
that of ``hnas-train --recipe images --minutes N``, in processor minutes. The plain CNN then trains for as long as the
supernet took, evaluations included; it is the goal of the start from scratch alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from hnas import report
from hnas.benchmarks.own_images.folders import write_folders

_RESULTS = "results.jsonl"
_STARTS = ("pretrained", "scratch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.own_images", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of images, supernets and results")
    parser.add_argument("--stamps", type=Path, help="/usr/share/tuxpaint/stamps of tuxpaint-stamps-default")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor minutes of a training (default 3)")
    parser.add_argument("--starts", nargs="+", choices=_STARTS, default=_STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,), help="seeds of the trainings (default 0)")
    parser.add_argument("--kinds", nargs="+", choices=("easy", "hard"), default=("easy", "hard"))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(given.threads)
    folders = write_folders(given.out, given.stamps)
    known = _read(given.out / _RESULTS)
    for kind, folder in folders.items():
        for start, seed in product(given.starts, given.seeds if kind in given.kinds else ()):
            key = f"{kind}/{start}/{given.minutes:g}/{seed}"
            if key not in known:
                known[key] = measure(folder, given.out / key.replace("/", "-"), start, given.minutes, seed)
                with (given.out / _RESULTS).open("a") as file:
                    file.write(json.dumps({"key": key, **known[key]}) + "\n")
    _print(known)
    return 0


def measure(folder: Path, out: Path, start: str, minutes: float, seed: int) -> dict[str, Any]:
    """Train on ``folder`` for ``minutes`` of processor time, from scratch also a plain CNN; return what was seen."""
    from hnas import recipes
    from hnas.recipes.baseline import train_plain_cnn
    from hnas.recipes.length import peak_memory
    from hnas.recipes.parts import open_task_of
    from hnas.recipes.run import RunOptions, run_recipe
    from hnas.recipes.schema import decode_recipe

    recipe, scratch = recipes.load("images"), start == "scratch"
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
    options = RunOptions(minutes=minutes, scratch=scratch, seed=seed, clock=time.process_time)
    record, spent = _timed(lambda: run_recipe(recipe, folder, out, options))
    memory, accuracy = peak_memory(), record["accuracy"]
    if scratch:
        task = open_task_of(decode_recipe(replace(recipe, pretrained={})), folder)
        size = max(recipe.space["resolutions"])
        cnn, _ = _timed(lambda: train_plain_cnn(task, size=size, cpu_seconds=spent, split="test"))
        accuracy = {**accuracy, "plain CNN": round(cnn, 4)}
    return {
        "accuracy": accuracy,
        "epochs": record["epochs"],
        "space": {key: record["recipe"]["space"][key] for key in ("name", "resolutions")},
        "cpu_seconds": round(spent, 1),
        "wall_seconds": record["seconds"],
        "memory_mb": memory,
        "test_images": record["images"]["test"],
        "pretrained": record["recipe"].get("pretrained", {}).get("name"),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the answer of ``work`` and the processor time that it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def _read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return {record.pop("key"): record for record in records}


def _print(known: dict[str, dict[str, Any]]) -> None:
    names = ("largest", "smallest", "plain CNN")
    columns = ("folder, start, minutes, seed", *names, "processor s", "by the clock, s", "MB")
    rows = [
        (
            key,
            *(f"{found['accuracy'][name]:.1%}" if name in found["accuracy"] else "-" for name in names),
            *(f"{found[name]:.0f}" for name in ("cpu_seconds", "wall_seconds", "memory_mb")),
        )
        for key, found in known.items()
    ]
    report.print_table(columns, rows, right=columns[1:])
