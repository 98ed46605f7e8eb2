"""Run artifacts in a child process: the device's end of `hnas.export.remote.worker.Worker`.

``python -m hnas.export.device.serve_artifacts`` answers requests on stdin, one artifact at a time.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from time import monotonic, perf_counter_ns
from typing import Any, Callable

import numpy as np

from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact
from hnas.export.device.ends import time_ends
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.frames import PROTOCOL, Arrays, Frame, Header, dispatch, serve
from hnas.export.device.machine import Machine
from hnas.export.device.opening import limit_memory, open_runner
from hnas.export.device.records import encode
from hnas.export.device.signature import check_outputs, expected_outputs


class Served:
    """Hold the opened artifact and the call that is timed, between requests."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._artifact: Artifact | None = None
        self._call: Callable[[], object] | None = None
        self._bound: Arrays = ()

    def do_describe(self, header: Header, _: Arrays) -> Frame:
        """Return the machine and the versions of the runtime. Raise Unavailable if the runtime is missing."""
        runtime = runtimes.load(header["backend"])
        missing = runtime.missing()
        if missing is not None:
            raise Unavailable(missing)
        return {"machine": encode(Machine.here()), "versions": dict(runtime.versions())}, ()

    def do_open(self, header: Header, _: Arrays) -> Frame:
        """Open the artifact at ``path``, with at most ``memory_mb`` of memory.

        The reply has ``report``: the facts that the runner states, such as how its engine was built.
        """
        if header["protocol"] != PROTOCOL:
            asked = header["protocol"]
            mend = "install the same hnas on both machines"
            raise ExportError(f"the worker uses protocol {PROTOCOL}, not {asked}; {mend}")
        limit_memory(header["memory_mb"])
        artifact = Artifact.read(header["path"])
        self._runner = self._call = None  # free the memory of the previous artifact
        self._artifact = artifact
        wanted = replace(artifact, backend=header["backend"], threads=header["threads"])
        self._runner = open_runner(runtimes.load(header["backend"]), wanted)
        return {"report": dict(getattr(self._runner, "report", {}))}, ()

    def do_run(self, _: Header, arrays: Arrays) -> Frame:
        """Return the outputs for the inputs of the request."""
        assert self._artifact is not None
        outputs = self._runner(*arrays)
        return {}, check_outputs(outputs, expected_outputs(self._artifact, arrays))

    def do_bind(self, _: Header, arrays: Arrays) -> Frame:
        """Bind the inputs of the request for timing."""
        self._call, self._bound = self._runner.bind(*arrays), arrays
        return {}, ()

    def do_time(self, header: Header, _: Arrays) -> Frame:
        """Return the seconds of each call on the bound inputs."""
        assert self._call is not None
        if hasattr(self._runner, "times"):  # the runtime can only be timed by its own clock
            return {}, (np.array(self._runner.times(self._bound, header["runs"])),)
        times = time_calls(self._call, header["runs"], lead=header["lead"], seconds=header["seconds"])
        return {}, (np.array(times),)

    def do_ends(self, header: Header, arrays: Arrays) -> Frame:
        """Return the seconds of the parts of calls from end to end, [runs, 4]."""
        times = time_ends(self._runner, arrays, runs=header["runs"], pixels=header["pixels"], seconds=header["seconds"])
        return {}, (times,)


def time_calls(call: Callable[[], object], runs: int, *, lead: int = 0, seconds: float = float("inf")) -> list[float]:
    """Return the seconds of each of ``runs`` calls after ``lead`` untimed ones. Start no call after ``seconds``."""
    for _ in range(lead):
        call()
    times = []
    collecting = gc.isenabled()
    gc.disable()  # a collection would add to the time of a random call
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
    serve(dispatch(Served()))
