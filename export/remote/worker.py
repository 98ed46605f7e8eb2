"""One process, one artifact at a time, one runtime: a runtime that crashes, hangs or prints takes nobody with it.

`Worker` is the parent's end, `hnas.export.device.serve_artifacts` the child's; `hnas.export.device.frames` is what they
speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hnas.export.device.artifact import Artifact
from hnas.export.device.frames import PROTOCOL
from hnas.export.device.machine import Machine
from hnas.export.device.records import decode
from hnas.export.remote.process import Process
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from hnas.export.remote.transports import Transport

Array: TypeAlias = np.ndarray[Any, Any]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Worker(Process):
    """A Runner in a process of its own, with the errors of a `Process`; a context manager.

    ``backend`` opens the artifact with another runtime than the one that it was built for; by default its note
    ``verify_with`` decides. ``report`` is what the runtime says of the artifact, such as how its engine was built.
    ``memory_mb`` limits what the process may allocate (data segment; None: no limit).
    """

    def __init__(
        self,
        artifact: Artifact | Path | str,
        *,
        threads: int | None = None,
        timeout: float = 120.0,
        transport: Transport = local,
        memory_mb: int | None = None,
        backend: str | None = None,
    ) -> None:
        artifact = _read(artifact)
        self.artifact, self.backend, self._wished = artifact, _runtime(artifact, backend), backend
        self.threads = threads or artifact.threads
        place = transport.place(artifact.source)
        super().__init__(
            self._called(artifact),
            "hnas.export.device.serve_artifacts",
            environment=dict.fromkeys(_THREADS, str(self.threads)),
            timeout=timeout,
            transport=transport,
            memory_mb=memory_mb,
        )
        try:
            self._open(artifact, place)
        except BaseException:
            self.close()
            raise

    def open(self, artifact: Artifact | Path | str) -> None:
        """Let the same process run another artifact, of the same runtime, from now on; its import is not paid twice.

        Where that fails the process lives on, and another ``open`` may follow.
        """
        artifact = _read(artifact)
        wanted = artifact.backend if self._wished == artifact.backend else _runtime(artifact, None)
        if wanted != self.backend:
            raise ValueError(f"this worker runs {self.backend}, {artifact.source} wants {wanted}")
        self._name = self._called(artifact)
        self._open(artifact, self._transport.place(artifact.source))

    def _open(self, artifact: Artifact, place: str) -> None:
        self._bound: tuple[Array, ...] | None = None
        request = {"path": place, "backend": self.backend, "threads": self.threads, "memory_mb": self._memory_mb}
        self.report: dict[str, Any] = self.ask({"do": "open", "protocol": PROTOCOL, **request})[0]["report"]
        self.artifact = replace(artifact, threads=self.threads)

    def _called(self, artifact: Artifact) -> str:
        return f"worker ({self.backend}, {artifact.precision}, {artifact.source.name})"

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """The outputs for ``inputs``, both in the module's own layout."""
        return self.ask({"do": "run"}, inputs)[1]

    def outputs(self, batch: Iterable[Sequence[Array]]) -> list[tuple[Array, ...]]:
        """The outputs for each element of ``batch``."""
        return [self(*inputs) for inputs in batch]

    def bind(self, *inputs: Array) -> Callable[[], object]:
        """One call of the runtime over the pipe; to time the runtime alone use ``time``."""
        return lambda: self.time(inputs, 1)

    def time(self, inputs: Sequence[Array], runs: int, *, lead: int = 0) -> list[float]:
        """Seconds of each of ``runs`` calls, taken next to the runtime after ``lead`` calls that are not.

        The inputs travel once for as long as the same arrays are passed.
        """
        if self._bound is None or len(self._bound) != len(inputs) or any(map(_differ, self._bound, inputs)):
            self._bound = None
            self.ask({"do": "bind"}, inputs)
            self._bound = tuple(inputs)
        times: list[float] = []
        while len(times) < runs:  # in pieces, so that many slow calls are not mistaken for a hang
            request = {"do": "time", "runs": runs - len(times), "lead": lead, "seconds": self._timeout / 4}
            times += self.ask(request)[1][0].tolist()
            lead = 0
        return times


def describe(backend: str, transport: Transport = local) -> tuple[Machine, dict[str, str]]:
    """What the machine behind ``transport`` is, and its versions of ``backend``; Unavailable where it has none."""
    name = f"worker ({backend})"
    with Process(
        name, "hnas.export.device.serve_artifacts", environment={}, timeout=120.0, transport=transport
    ) as process:
        found, _ = process.ask({"do": "describe", "backend": backend})
    machine = decode(Machine, found["machine"], f"{transport.where or 'this machine'}")
    return machine, {str(name): str(version) for name, version in found["versions"].items()}


def _read(artifact: Artifact | Path | str) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else Artifact.read(artifact)


def _runtime(artifact: Artifact, wished: str | None) -> str:
    return str(wished or artifact.notes.get("verify_with") or artifact.backend)


def _differ(a: Array, b: Array) -> bool:
    return a is not b
