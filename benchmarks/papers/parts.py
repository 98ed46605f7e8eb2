"""Run the parts of a study, and keep each finished part in a file, so that a stopped study continues.

Call ``StudyParts(folder, images).complete(parts)``. The file name of a part has a digest of everything that decides the
result, so that parts with different settings have different files.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hnas.files import read_json, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result: TypeAlias = dict[str, Any]
# (folder of the images or None, seed, setting) -> a JSON object. A function of a module, so that a process finds it.
Run: TypeAlias = Callable[[Path | None, int, Any], Result]
S = TypeVar("S", bound="DataclassInstance")


@dataclass(frozen=True)
class StudyPart:
    """One run with one seed.

    run: the function that computes the result.
    setting: the record that ``run`` is called with.
    text: the setting as sorted JSON, which identifies the part.
    work: the amount of work, in a unit that only depends on ``run``, for the estimate of the time.
    timed: whether the part measures time, so that nothing may run beside it.

    ``work`` and ``timed`` do not decide the result and are not in the name.
    """

    run: Run
    seed: int
    setting: Any = field(compare=False)
    text: str
    work: float = field(default=1.0, compare=False)
    timed: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """Return run, seed and a digest of all that decides the result, with the versions of hnas and torch."""
        identity = [self.run.__module__, self.run.__name__, self.seed, self.text, *result_versions().items()]
        return f"{self.run.__name__}-{self.seed}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"


def part(
    run: Callable[[Path | None, int, S], Result], seed: int, setting: S, *, work: float = 1.0, timed: bool = False
) -> StudyPart:
    """Return the part that calls ``run`` with ``setting``, a frozen record whose fields JSON can hold."""
    return StudyPart(run, seed, setting, json.dumps(asdict(setting), sort_keys=True), work, timed)


def result_versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    return {"hnas": importlib.metadata.version("hnas"), "torch": torch.__version__.partition("+")[0]}


class StudyParts:
    """The results of finished parts in ``folder``.

    images: the folder of the data set; None for studies that need none.
    workers: processes that run parts side by side, each with one thread; 1 runs the parts in this process.
    """

    def __init__(self, folder: Path, images: Path | None, workers: int = 1, console: Console | None = None) -> None:
        self.folder, self.images, self.workers = folder, images, workers
        self.console = console or Console(stderr=True)
        self._found: dict[StudyPart, Result] = {}
        self._pool: ProcessPoolExecutor | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, wanted: StudyPart) -> Result:
        result: Result = self._record(wanted)["result"]
        return result

    def __contains__(self, wanted: object) -> bool:
        return isinstance(wanted, StudyPart) and self._record(wanted) is not None

    def seconds(self, wanted: Iterable[StudyPart]) -> float:
        """Return how many seconds these finished parts took, one after the other."""
        return sum(float(self._record(each)["seconds"]) for each in wanted)

    def complete(self, wanted: Sequence[StudyPart], title: str = "") -> None:
        """Run every part of ``wanted`` that is not finished.

        Raises:
            RuntimeError: a part failed; the message names the first. The other parts are still run and kept.
        """
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
            raise RuntimeError(f"part {failed[0]}{more}; finished parts are kept, run again to continue")

    def estimate(
        self, needed: Sequence[StudyPart], quick: Sequence[StudyPart], later: Mapping[str, float] | None = None
    ) -> float:
        """Return the seconds that the unfinished parts of ``needed`` will take.

        The pace is that of the finished parts of ``needed``, or of the first quick part. A quick part has the same
        fixed costs as a long part, so the estimate from quick parts is rather too high.

        later: name of a run -> work of its parts that are not known yet.
        """
        later = later or {}
        left = [each for each in dict.fromkeys(needed) if each not in self]
        names = dict.fromkeys([*(each.run.__name__ for each in left), *later])
        return sum(self._seconds_of_run(name, needed, left, quick, later.get(name, 0.0)) for name in names)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _seconds_of_run(
        self,
        name: str,
        needed: Sequence[StudyPart],
        left: Sequence[StudyPart],
        quick: Sequence[StudyPart],
        later: float,
    ) -> float:
        """Return the seconds of the parts ``left`` with one run function, and of ``later`` more work."""
        done = [each for each in _of_run(name, needed) if each in self]
        if not done and (probes := _of_run(name, quick)):
            done = probes[:1]
            self.complete(done, f"timing {name}")
        pace = median(float(self._record(each)["seconds"]) / each.work for each in done) if done else 0.0
        own = _of_run(name, left)
        side_by_side = 1 if any(each.timed for each in (*done, *own)) else self.workers
        return pace * (sum(each.work for each in own) + later) / side_by_side

    def _run(self, missing: Sequence[StudyPart]) -> Iterator[tuple[str, str]]:
        """Run parts; yield (name, error or nothing) of each. Parts that measure time run last, one at a time."""
        shared = [each for each in missing if self.workers > 1 and not each.timed]
        if shared:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
                self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=end_with_parent)
            futures = {self._pool.submit(run_part, each, self.images, self.folder): each for each in shared}
            for future in as_completed(futures):
                error = future.exception()
                yield futures[future].name, _line(error) if error else ""
        for each in missing:
            if each not in shared:
                try:
                    run_part(each, self.images, self.folder)
                except (ArithmeticError, LookupError, OSError, RuntimeError, ValueError) as error:
                    yield each.name, _line(error)
                else:
                    yield each.name, ""

    def _record(self, wanted: StudyPart) -> Any:
        """Return the content of the part's file; None where it is missing or broken, so that the part runs again."""
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
    """End this process when its parent ends, also after a kill. Otherwise it would run on alone."""

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_part(each: StudyPart, images: Path | None, folder: Path) -> None:
    """Run a part with one thread and write its file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    begun = time.monotonic()
    try:
        result = each.run(images, each.seed, each.setting)
    finally:
        torch.set_num_threads(before)
    record = {
        "run": each.run.__name__,
        "seed": each.seed,
        "setting": json.loads(each.text),
        "versions": result_versions(),
        "work": each.work,
        "seconds": round(time.monotonic() - begun, 3),
        "result": result,
    }
    write_json(folder / f"{each.name}.json", record)


def _of_run(name: str, parts: Iterable[StudyPart]) -> list[StudyPart]:
    return [each for each in parts if each.run.__name__ == name]


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
