"""The worker's child: one artifact after another in its runtime, on the machine that runs it (plain Python 3.8, numpy).

``python -m export.serving`` serves a parent's `export.worker.Worker` over its stdin and stdout.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from time import monotonic, perf_counter_ns
from typing import Any, Callable

import numpy as np

from export.artifact import Artifact, Tensor
from export.errors import ExportError, Unavailable, one_line
from export.frames import PROTOCOL, Arrays, Frame, Header, serve
from export.signature import hold


class Served:
    """What the child holds between requests: the runner, and the call that is timed."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._outputs: tuple[Tensor, ...] = ()  # what the artifact states
        self._call: Callable[[], object] | None = None

    def answer(self, header: Header, arrays: Arrays) -> Frame:
        """The reply to one request; a failure is a reply, too."""
        try:
            return {}, getattr(self, f"_do_{header['do']}")(header, arrays)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is one line for the parent
            told = isinstance(error, (ExportError, ValueError)) and str(error)
            kind = next((t.__name__ for t in (Unavailable, ExportError, ValueError) if isinstance(error, t)), "")
            return {"error": str(error).splitlines()[0] if told else one_line(error), "type": kind}, ()

    def _do_open(self, header: Header, _: Arrays) -> Arrays:
        if header["protocol"] != PROTOCOL:
            asked = header["protocol"]
            raise ExportError(f"the worker speaks protocol {PROTOCOL}, not {asked}; install the same hnas at both ends")
        if header["memory_mb"] is not None:
            import resource

            limit = int(header["memory_mb"]) * 2**20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # RLIMIT_AS would count what runtimes only reserve
        from export import backends

        artifact = Artifact.read(header["path"])
        self._runner = self._call = None  # an artifact that was open makes room
        self._outputs = artifact.outputs
        backend = backends.load(header["backend"])
        missing = backend.missing()
        if missing is not None:
            raise Unavailable(missing)
        try:
            self._runner = backend.load(replace(artifact, backend=header["backend"], threads=header["threads"]))
        except ExportError:
            raise
        except Exception as error:  # a runtime's own words seldom name the file
            raise ExportError(f"{header['backend']} cannot open {artifact.source}: {one_line(error)}") from error
        return ()

    def _do_run(self, _: Header, arrays: Arrays) -> Arrays:
        return hold(self._runner(*arrays), self._outputs)

    def _do_bind(self, _: Header, arrays: Arrays) -> Arrays:
        self._call = self._runner.bind(*arrays)
        return ()

    def _do_time(self, header: Header, _: Arrays) -> Arrays:
        assert self._call is not None
        return (np.array(time_calls(self._call, header["runs"], lead=header["lead"], seconds=header["seconds"])),)


def time_calls(call: Callable[[], object], runs: int, *, lead: int = 0, seconds: float = float("inf")) -> list[float]:
    """Seconds of each of ``runs`` calls after ``lead`` untimed ones; none is started once ``seconds`` are over."""
    for _ in range(lead):
        call()
    times = []
    collecting = gc.isenabled()
    gc.disable()  # a collection would be booked on whichever call it hits
    try:
        end = monotonic() + seconds
        for _ in range(runs):
            start = perf_counter_ns()
            call()
            times.append((perf_counter_ns() - start) * 1e-9)
            if monotonic() > end:
                break
    finally:
        if collecting:
            gc.enable()
    return times


if __name__ == "__main__":
    serve(Served().answer)
