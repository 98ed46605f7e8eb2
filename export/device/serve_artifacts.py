"""The worker's child: one artifact after another in its runtime, on the machine that runs it (plain Python 3.8, numpy).

``python -m hnas.export.device.serve_artifacts`` serves a parent's `hnas.export.remote.worker.Worker` over its stdin and
stdout.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Mapping

import numpy as np

from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact, Tensor
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.frames import PROTOCOL, Arrays, Frame, Header, dispatch, serve
from hnas.export.device.machine import Machine
from hnas.export.device.records import encode
from hnas.export.device.signature import hold

if TYPE_CHECKING:
    from hnas.export.device.runtimes import Runtime


class Served:
    """What the child holds between requests: the runner, and the call that is timed."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._outputs: tuple[Tensor, ...] = ()  # what the artifact states
        self._call: Callable[[], object] | None = None
        self._bound: Arrays = ()

    def do_describe(self, header: Header, _: Arrays) -> Frame:
        """What this machine is, and the versions of the runtime; Unavailable where that is missing."""
        return {"machine": encode(Machine.here()), "versions": dict(_installed(header["backend"]).versions())}, ()

    def do_open(self, header: Header, _: Arrays) -> Frame:
        """Open the artifact at ``path``, within ``memory_mb``; ``report`` is what its runtime has to say of it."""
        if header["protocol"] != PROTOCOL:
            asked = header["protocol"]
            raise ExportError(f"the worker speaks protocol {PROTOCOL}, not {asked}; install the same hnas at both ends")
        if header["memory_mb"] is not None:
            limit_memory(header["memory_mb"])
        artifact = Artifact.read(header["path"])
        self._runner = self._call = None  # an artifact that was open makes room
        self._outputs = artifact.outputs
        runtime = _installed(header["backend"])
        try:
            self._runner = runtime.load(replace(artifact, backend=header["backend"], threads=header["threads"]))
        except ExportError:
            raise
        except Exception as error:  # a runtime's own words seldom name the file
            what = f"{header['backend']} cannot open {artifact.source}{_other(artifact.versions, runtime)}"
            reason = one_line(error, 1000).replace(f"{artifact.path}/", "")
            short = reason if len(reason) <= 200 else f"{reason[:100]} ... {reason[-95:]}"  # what is wrong comes last
            raise ExportError(f"{what}: {short}") from error
        return {"report": dict(getattr(self._runner, "report", {}))}, ()

    def do_run(self, _: Header, arrays: Arrays) -> Frame:
        """The outputs for the inputs that came."""
        return {}, hold(self._runner(*arrays), self._outputs)

    def do_bind(self, _: Header, arrays: Arrays) -> Frame:
        """Make the inputs that came those that are timed."""
        self._call, self._bound = self._runner.bind(*arrays), arrays
        return {}, ()

    def do_time(self, header: Header, _: Arrays) -> Frame:
        """Seconds of each call on the bound inputs."""
        assert self._call is not None
        if hasattr(self._runner, "times"):  # a runtime that can only be timed by its own clock
            return {}, (np.array(self._runner.times(self._bound, header["runs"])),)
        times = time_calls(self._call, header["runs"], lead=header["lead"], seconds=header["seconds"])
        return {}, (np.array(times),)


def limit_memory(megabytes: int) -> None:
    """Let this process allocate no more than that, from now on."""
    import resource

    limit = int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # RLIMIT_AS would count what runtimes only reserve


def _installed(backend: str) -> Runtime:
    runtime = runtimes.load(backend)
    missing = runtime.missing()
    if missing is not None:
        raise Unavailable(missing)
    return runtime


def _other(built: Mapping[str, str], runtime: Runtime) -> str:
    """Empty, or that the artifact was made with another version of its runtime than the one that is here."""
    here = {name: version for name, version in runtime.versions().items() if built.get(name, version) != version}
    words = [f"made with {name} {built[name]}, here is {version}" for name, version in here.items()]
    return f" ({'; '.join(words)})" if words else ""


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
    serve(dispatch(Served()))
