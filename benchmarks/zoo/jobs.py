"""Compile one network for one backend in a process of its own, with limits of time and memory: ``run_job(job)``.

The process is forked from a server that has imported the libraries, which saves most of the time.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from hnas.export.device.errors import one_line

Record = dict[str, Any]

SECONDS = 180  # of processor time
_PATIENCE = 5  # a busy machine may take this many times longer
_MEMORY = 10 * 2**30  # bytes of the data segment


@dataclass(frozen=True)
class ZooJob:
    """Name a network, a backend and a precision."""

    net: str
    backend: str
    precision: str


def run_job(job: ZooJob, *, seconds: int = SECONDS, work: Callable[[ZooJob], Record] | None = None) -> Record:
    """Return the record of a job. ``outcome`` is one of:

    1. right: the network is compiled, and the saved file passed its verification.
    2. refused: ValueError, ExportError or Unavailable.
    3. traceback: any other exception.
    4. crashed: the process died; timeout: it did not end in time.

    seconds: processor time of the process; a busy machine has five times as long.
    work: what the process does; default `_compile_net`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOAD])
    ours, theirs = context.Pipe(duplex=False)
    begun = monotonic()
    process = context.Process(target=_work, args=(theirs, job, seconds, work or _compile_net))
    process.start()
    theirs.close()
    record: Record = {"outcome": "timeout", "line": f"not finished in {seconds} s"}
    try:
        if ours.poll(seconds * _PATIENCE):
            record = ours.recv()
    except EOFError:
        process.join(10)
        code = process.exitcode or 0
        if code != -signal.SIGXCPU:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            record = {"outcome": "crashed", "line": f"the process died: {how}"}
    finally:
        process.kill()
        process.join()
        ours.close()
    return {**vars(job), **record, "seconds": round(monotonic() - begun, 1)}


_PRELOAD = "hnas.benchmarks.zoo.preload"


def _work(answer: Connection, job: ZooJob, seconds: int, work: Callable[[ZooJob], Record]) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    answer.send(_outcome(job, work))


def _outcome(job: ZooJob, work: Callable[[ZooJob], Record]) -> Record:
    from hnas import export

    try:
        return {"outcome": "right", **work(job)}
    except (ValueError, export.ExportError, export.Unavailable) as error:
        return {"outcome": "refused", "line": str(error)[:400]}
    except Exception as error:  # noqa: BLE001 - the record reports it
        return {"outcome": "traceback", "line": one_line(error, 400)}


def _compile_net(job: ZooJob) -> Record:
    """Compile the network of a job in this process, and return the figures of its verification."""
    import torch

    from hnas import export
    from hnas.benchmarks.zoo import architectures

    torch.set_num_threads(1)
    net = architectures.load(job.net)
    with TemporaryDirectory() as folder:
        artifact = export.compile(
            net.module,
            net.examples,
            path=Path(folder) / "artifact",
            device=f"{job.backend}-cpu",
            precision=job.precision,
            calibration=net.calibration if job.precision == "int8" else None,
            threads=1,
            options=export.CompileOptions(recover="none"),
        )
        found = artifact.notes["verification"]
        assert isinstance(found, dict)
        return {"sqnr_db": round(float(str(found["sqnr_db"])), 1)}
