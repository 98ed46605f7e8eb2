"""Train on the folders of ``folders.py`` and write one line of results for each part, so that a stopped run continues.

Every part gets the same processor time, not the same time by the clock: so a busy machine favours none. A probe of one
epoch says how many epochs fit. The plain CNN trains for as long as the supernet took, evaluations included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hnas import report
from hnas.benchmarks.own_images.folders import write_folders

_RESULTS = "results.jsonl"
_STARTS = ("pretrained", "scratch")
_SHARE = 0.9  # of the processor time for training steps; the rest is for the evaluations at the end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.own_images", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of images, supernets and results")
    parser.add_argument("--stamps", type=Path, help="/usr/share/tuxpaint/stamps of tuxpaint-stamps-default")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor minutes of a training (default 3)")
    parser.add_argument("--starts", nargs="+", choices=_STARTS, default=_STARTS)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(given.threads)
    folders = write_folders(given.out, given.stamps)
    known = _read(given.out / _RESULTS)
    for kind, folder in folders.items():
        for start in given.starts:
            key = f"{kind}/{start}/{given.minutes:g}"
            if key not in known:
                known[key] = measure(folder, given.out / key.replace("/", "-"), start, given.minutes * 60)
                with (given.out / _RESULTS).open("a") as file:
                    file.write(json.dumps({"key": key, **known[key]}) + "\n")
    _print(known)
    return 0


def measure(folder: Path, out: Path, start: str, seconds: float) -> dict[str, Any]:
    """Train a supernet and a plain CNN on ``folder`` for ``seconds`` of processor time; return what was seen."""
    from hnas import recipes
    from hnas.recipes.baseline import train_plain_cnn
    from hnas.recipes.length import peak_memory
    from hnas.recipes.parts import open_task_of
    from hnas.recipes.run import RunOptions, run_recipe
    from hnas.recipes.schema import decode_recipe

    recipe = recipes.load("images")
    scratch = start == "scratch"

    def train(epochs: float) -> tuple[dict[str, Any], float]:
        shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
        options = RunOptions(epochs=epochs, scratch=scratch)
        return _timed(lambda: run_recipe(recipe, folder, out, options))

    _, one = train(1.0)
    epochs = max(1.0, _SHARE * seconds / one)
    record, spent = train(epochs)
    task = open_task_of(decode_recipe(recipes.Recipe("images", recipe.space, recipe.data, recipe.train)), folder)
    size = max(record["recipe"]["space"]["resolutions"])
    cnn, _ = _timed(lambda: train_plain_cnn(task, size=size, cpu_seconds=spent, split="test"))
    return {
        "accuracy": {**record["accuracy"], "plain CNN": round(cnn, 4)},
        "epochs": round(epochs, 2),
        "cpu_seconds": round(spent, 1),
        "wall_seconds": record["seconds"],
        "memory_mb": peak_memory(),
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
    columns = ("folder, start, minutes", *names, "processor s", "by the clock, s", "MB")
    rows = [
        (
            key,
            *(f"{found['accuracy'][name]:.1%}" for name in names),
            *(f"{found[name]:.0f}" for name in ("cpu_seconds", "wall_seconds", "memory_mb")),
        )
        for key, found in known.items()
    ]
    report.print_table(columns, rows, right=columns[1:])
