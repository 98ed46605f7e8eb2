"""A study is a list of parts, and a finished part is a file: what was killed goes on where it stopped.

A part's file is named after everything that decides its result, so a part of another setting is never taken for it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hnas.files import read_json, write_json

Result: TypeAlias = dict[str, Any]
# (folder of the images or None, seed, **setting) -> a JSON object; a function of a module, so that a process finds it.
Run: TypeAlias = Callable[..., Result]


@dataclass(frozen=True)
class Part:
    """One run with one seed.

    text: the setting as sorted JSON. work: how much of it there is, in units of ``run``, for the estimate. timed: it
    measures time, so nothing else runs beside it. work and timed decide no result and are not in its name.
    """

    run: Run
    seed: int
    text: str
    work: float = field(default=1.0, compare=False)
    timed: bool = field(default=False, compare=False)

    @property
    def setting(self) -> Mapping[str, Any]:
        """What ``run`` is called with."""
        found: Mapping[str, Any] = json.loads(self.text)
        return found

    @property
    def name(self) -> str:
        """run, seed and a digest of all that decides the result, the versions of hnas and torch among it."""
        identity = [self.run.__module__, self.run.__name__, self.seed, self.text, *versions().items()]
        return f"{self.run.__name__}-{self.seed}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"


def part(run: Run, seed: int, *, work: float = 1.0, timed: bool = False, **setting: Any) -> Part:
    """The part that calls ``run`` with ``setting``, which JSON can hold."""
    return Part(run, seed, json.dumps(setting, sort_keys=True), work, timed)


def versions() -> dict[str, str]:
    """What a result may depend on besides its setting."""
    return {"hnas": importlib.metadata.version("hnas"), "torch": torch.__version__.partition("+")[0]}


class Parts:
    """Results of finished parts in ``folder``; ``images`` is the folder of the data set, None for what needs none.

    workers: processes that work at parts side by side, each with one thread; 1 works in this process.
    """

    def __init__(self, folder: Path, images: Path | None, workers: int = 1, console: Console | None = None) -> None:
        self.folder, self.images, self.workers = folder, images, workers
        self.console = console or Console(stderr=True)
        self._found: dict[Part, Result] = {}
        self._pool: ProcessPoolExecutor | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, wanted: Part) -> Result:
        result: Result = self._record(wanted)["result"]
        return result

    def __contains__(self, wanted: object) -> bool:
        return isinstance(wanted, Part) and self._record(wanted) is not None

    def seconds(self, wanted: Iterable[Part]) -> float:
        """How long these finished parts took, one after the other."""
        return sum(float(self._record(each)["seconds"]) for each in wanted)

    def complete(self, wanted: Sequence[Part], title: str = "") -> None:
        """Run what is missing of ``wanted``; a part that fails leaves the others, RuntimeError names the first."""
        missing = [each for each in dict.fromkeys(wanted) if each not in self]
        failed: list[str] = []
        with self._progress() as progress:
            bar = progress.add_task(title, total=len(missing))
            for name, error in self._run(missing):
                if error:
                    failed.append(f"{name}: {error}")
                progress.advance(bar)
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise RuntimeError(f"part {failed[0]}{more}; what is finished is kept, run again to go on")

    def estimate(
        self, needed: Sequence[Part], quick: Sequence[Part], later: Mapping[str, float] | None = None
    ) -> float:
        """Seconds that the rest of ``needed`` will take, by the pace of its finished parts or of the first quick one.

        later: run -> work that is to come besides. A quick part pays for what a long one does once, so the estimate is
        rather too high.
        """
        later, seconds = later or {}, 0.0
        left = [each for each in dict.fromkeys(needed) if each not in self]
        for name in dict.fromkeys([*(each.run.__name__ for each in left), *later]):
            done = [each for each in needed if each.run.__name__ == name and each in self]
            if not done and (probe := next((each for each in quick if each.run.__name__ == name), None)):
                self.complete([probe], f"timing {name}")
                done = [probe]
            pace = median(float(self._record(each)["seconds"]) / each.work for each in done) if done else 0.0
            own = [each for each in left if each.run.__name__ == name]
            side_by_side = 1 if any(each.timed for each in (*done, *own)) else self.workers
            seconds += pace * (sum(each.work for each in own) + later.get(name, 0.0)) / side_by_side
        return seconds

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _run(self, missing: Sequence[Part]) -> Iterator[tuple[str, str]]:
        """(name, error or nothing) of each as it ends; those that measure time come last and alone."""
        shared = [each for each in missing if self.workers > 1 and not each.timed]
        if shared:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
                self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=end_with_parent)
            futures = {self._pool.submit(work, each, self.images, self.folder): each for each in shared}
            for future in as_completed(futures):
                error = future.exception()
                yield futures[future].name, _line(error) if error else ""
        for each in missing:
            if each not in shared:
                try:
                    work(each, self.images, self.folder)
                except (ArithmeticError, LookupError, OSError, RuntimeError, ValueError) as error:
                    yield each.name, _line(error)
                else:
                    yield each.name, ""

    def _record(self, wanted: Part) -> Any:
        """What the part's file holds, None where it is missing or broken: it is run again."""
        if wanted not in self._found:
            try:
                record = read_json(self.folder / f"{wanted.name}.json")
            except (FileNotFoundError, ValueError):
                return None
            if not isinstance(record.get("result"), dict) or "seconds" not in record:
                return None
            self._found[wanted] = record
        return self._found[wanted]

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True)


def end_with_parent() -> None:
    """End this process with the one that started it, however that ends: nobody else would wait for its parts."""

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(each: Part, images: Path | None, folder: Path) -> None:
    """Run a part with one thread and write its file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    begun = time.monotonic()
    try:
        result = each.run(images, each.seed, **each.setting)
    finally:
        torch.set_num_threads(before)
    record = {
        "run": each.run.__name__,
        "seed": each.seed,
        "setting": each.setting,
        "versions": versions(),
        "work": each.work,
        "seconds": round(time.monotonic() - begun, 3),
        "result": result,
    }
    write_json(folder / f"{each.name}.json", record)


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
