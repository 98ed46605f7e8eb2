"""Run an artifact in a process of its own, here or on a device: a crash of its runtime does not end the caller.

``with Worker("net") as worker: outputs = worker(*inputs)``. The child is `hnas.export.device.serve_artifacts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hnas.export.device.artifact import Artifact, check_threads
from hnas.export.device.frames import PROTOCOL
from hnas.export.device.machine import Machine
from hnas.export.device.opening import memory_limit
from hnas.export.device.records import decode
from hnas.export.device.signature import NamedOutputs, name_outputs, order_inputs
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from hnas.export.remote.transports import Transport

Array: TypeAlias = np.ndarray[Any, Any]

_TIMEOUTS = {"tensorrt": 1800.0}  # seconds until an artifact is open: TensorRT builds an engine first
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


_OPENED: set[tuple[str, str]] = set()  # backend and digest of each artifact that a worker on this machine has opened


def open_first(artifact: Artifact) -> None:
    """Open ``artifact`` in a worker on this machine, unless one has opened it before: a broken file can end a process.

    Raises as `Worker`.
    """
    if (artifact.backend, artifact.digest) not in _OPENED:
        Worker(artifact, backend=artifact.backend).close()


class Worker(ChildProcess):
    """Run an artifact in a process of its own, as a Runner. A context manager, with the errors of a `ChildProcess`.

    Example: ``with Worker("net", timeout=30) as worker: (logits,) = worker(image)``.

    ``artifact``: an artifact, or the path of one.
    ``threads``: the number of threads of the runtime. Default: the artifact's.
    ``timeout``: seconds for each request. Default: 120; 1800 to open TensorRT, which builds an engine first.
    ``transport``: the machine, see `hnas.export.remote.transports.connect`. Default: this machine.
    ``memory_mb``: the limit of the memory that the process may allocate (data segment), in MB. Default: as
        `hnas.export.device.opening.memory_limit`.
    ``backend``: the runtime to use. Default: the artifact's note ``verify_with``, else its own backend.

    The attribute ``report`` holds facts that the runtime states about the artifact, such as how its engine was built.
    """

    def __init__(
        self,
        artifact: Artifact | Path | str,
        *,
        threads: int | None = None,
        timeout: float | None = None,
        transport: Transport = local,
        memory_mb: int | None = None,
        backend: str | None = None,
    ) -> None:
        artifact = _read(artifact)
        self.artifact, self.backend, self._wished = artifact, _runtime(artifact, backend), backend
        self.threads = artifact.threads if threads is None else threads
        check_threads(self.threads)
        self._patience = _TIMEOUTS.get(self.backend) if timeout is None else timeout
        place = transport.place(artifact.source)
        super().__init__(
            self._called(artifact),
            "hnas.export.device.serve_artifacts",
            environment=dict.fromkeys(_THREADS, str(self.threads)),
            timeout=120.0 if timeout is None else timeout,
            transport=transport,
            memory_mb=memory_mb or memory_limit(artifact, self.backend),
        )
        self._limited = memory_mb is not None
        try:
            self._open(artifact, place)
        except BaseException:
            self.close()
            raise

    def open(self, artifact: Artifact | Path | str) -> None:
        """Run another artifact of the same runtime in the same process, which saves the import of the runtime.

        After an error the process keeps running, and ``open`` can be called again.

        Raises:
            ValueError: the artifact needs another runtime.
            ExportError: the runtime cannot open the artifact.
        """
        artifact = _read(artifact)
        wanted = artifact.backend if self._wished == artifact.backend else _runtime(artifact, None)
        if wanted != self.backend:
            raise ValueError(f"this worker runs {self.backend}, {artifact.source} needs {wanted}")
        self._name = self._called(artifact)
        self._open(artifact, self._transport.place(artifact.source))

    def _open(self, artifact: Artifact, place: str) -> None:
        self._bound: tuple[Array, ...] | None = None
        if not self._limited:
            self._memory_mb = memory_limit(artifact, self.backend)
        request = {"path": place, "backend": self.backend, "threads": self.threads, "memory_mb": self._memory_mb}
        header = {"do": "open", "protocol": PROTOCOL, **request}
        self.report: dict[str, Any] = self.ask(header, timeout=self._patience)[0]["report"]
        self.artifact = replace(artifact, threads=self.threads)
        if self._transport is local:
            _OPENED.add((self.backend, artifact.digest))

    def _called(self, artifact: Artifact) -> str:
        return f"worker ({self.backend}, {artifact.precision}, {artifact.source.name})"

    def __call__(self, *inputs: Array, **named: Array) -> NamedOutputs:
        """Return the outputs, in the layout of the module, like a Runner: inputs in order or by name."""
        values = order_inputs(self.artifact, inputs, named)
        return name_outputs(self.artifact, self.ask({"do": "run"}, values)[1])

    def outputs(self, samples: Iterable[Sequence[Array]]) -> list[tuple[Array, ...]]:
        """Return the outputs for each sample."""
        return [self(*inputs) for inputs in samples]

    def bind(self, *inputs: Array, **named: Array) -> Callable[[], object]:
        """Return a function that sends the inputs and runs them once. ``time`` measures without the transfer."""
        values = order_inputs(self.artifact, inputs, named)
        return lambda: self.time(values, 1)

    def time(self, inputs: Sequence[Array], runs: int, *, lead: int = 0) -> list[float]:
        """Return the seconds of each of ``runs`` calls after ``lead`` untimed ones, measured in the child.

        The inputs are sent again only if other arrays are passed.
        """
        if self._bound is None or len(self._bound) != len(inputs) or any(map(_differ, self._bound, inputs)):
            self._bound = None
            self.ask({"do": "bind"}, inputs)
            self._bound = tuple(inputs)
        times: list[float] = []
        while len(times) < runs:  # in pieces, so that many slow calls do not reach the timeout
            request = {"do": "time", "runs": runs - len(times), "lead": lead, "seconds": self._timeout / 4}
            times += self.ask(request)[1][0].tolist()
            lead = 0
        return times

    def time_ends(self, arrays: Sequence[Array], runs: int, *, pixels: bool) -> Array:
        """Return the seconds of the parts of ``runs`` calls, see `hnas.export.device.ends.time_ends`."""
        request = {"do": "ends", "runs": runs, "pixels": pixels, "seconds": self._timeout / 4}
        return self.ask(request, arrays)[1][0]


def describe_machine(backend: str, transport: Transport = local) -> tuple[Machine, dict[str, str]]:
    """Return the machine of ``transport``, and the versions of the runtime of ``backend`` there.

    Raises:
        Unavailable: the machine does not have the runtime.
    """
    name = f"worker ({backend})"
    with ChildProcess(
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
