"""Keep results as JSON lines; the last line of a job counts: ``ResultsFile(path).add(record)``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hnas.benchmarks.zoo.jobs import Record, ZooJob


class ResultsFile:
    """Hold the results of a sweep. A sweep that is started again continues.

    path: the file; it is made when the first result is added.
    about: date, machine and versions of the last sweep; empty if there was none.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, ""
        self._found: dict[ZooJob, Record] = {}
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        for line in lines:
            if line.endswith("}"):  # a sweep that was killed may leave half a line
                self._keep(json.loads(line))

    def _keep(self, record: Record) -> None:
        if "about" in record:
            self.about = record["about"]
        else:
            self._found[ZooJob(record["net"], record["backend"], record["precision"])] = record

    def add(self, record: Record) -> None:
        """Append a result, or ``{"about": line}``, to the file."""
        self._keep(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def get(self, job: ZooJob) -> Record | None:
        """Return the result of a job, or None."""
        return self._found.get(job)

    @property
    def records(self) -> Sequence[Record]:
        """Return the latest result of each job, sorted."""
        return sorted(self._found.values(), key=lambda each: (each["net"], each["precision"], each["backend"]))
