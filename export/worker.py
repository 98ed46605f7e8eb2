"""One process, one artifact, one runtime: a runtime that crashes, hangs or prints takes nobody with it.

`Worker` is the parent's end, `main` the child's (``python -m export.worker``). They speak in frames over the child's
stdin and stdout: magic, sizes, a JSON header, the raw bytes of the arrays. No pickle, and any pipe will do, so that a
transport may put the child on another machine.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from export.artifact import Artifact, Tensor
from export.errors import ExportError, Unavailable, one_line
from export.signature import hold
from export.transports import local

if TYPE_CHECKING:
    from export.transports import Transport

Array: TypeAlias = np.ndarray[Any, Any]
Header: TypeAlias = dict[str, Any]
Frame: TypeAlias = tuple[Header, tuple[Array, ...]]

PROTOCOL = 1
_PREFIX = struct.Struct(">4sIQ")  # magic, bytes of the header, bytes of the arrays
_MAGIC = b"hnas"
_LARGEST = 2**34
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_TAIL = 8192


class Worker:
    """A Runner in a process of its own; a context manager.

    1. The runtime raises: its message as ExportError (ValueError for inputs that do not fit, Unavailable if the runtime
       is missing); the worker lives on, unless it had not yet opened the artifact.
    2. The process dies (crash, memory): one ExportError line with the signal and its last words.
    3. No answer within ``timeout`` seconds: the process is killed; ExportError.

    ``backend`` opens the artifact with another runtime than the one that it was built for; by default its note
    ``verify_with`` decides. ``memory_mb`` limits what the process may allocate (data segment; None: no limit).
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
        if not isinstance(artifact, Artifact):
            artifact = Artifact.read(artifact)
        self.artifact = artifact if threads is None else replace(artifact, threads=threads)
        self.backend = str(backend or artifact.notes.get("verify_with") or artifact.backend)
        self._timeout, self._memory_mb = timeout, memory_mb
        self._name = f"worker ({self.backend}, {artifact.precision}, {artifact.source.name})"
        self._bound: tuple[Array, ...] | None = None
        self._lock = threading.Lock()
        place = transport.place(artifact.source)
        self._process = transport.start("export.worker", dict.fromkeys(_THREADS, str(self.artifact.threads)))
        self._stderr = _Tail(self._process)
        self._finalizer = weakref.finalize(self, _end, self._process)
        request = {"path": place, "backend": self.backend, "threads": self.artifact.threads, "memory_mb": memory_mb}
        try:
            self._ask({"do": "open", "protocol": PROTOCOL, **request})
        except BaseException:
            self.close()
            raise

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """The outputs for ``inputs``, both in the module's own layout."""
        return self._ask({"do": "run"}, inputs)[1]

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
            self._ask({"do": "bind"}, inputs)
            self._bound = tuple(inputs)
        times: list[float] = []
        while len(times) < runs:  # in pieces, so that many slow calls are not mistaken for a hang
            request = {"do": "time", "runs": runs - len(times), "lead": lead, "seconds": self._timeout / 4}
            times += self._ask(request)[1][0].tolist()
            lead = 0
        return times

    def close(self) -> None:
        """End the process; calling twice is fine."""
        self._finalizer()
        self._stderr.join(timeout=1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, header: Header, arrays: Sequence[Array] = ()) -> Frame:
        """The worker's answer to one request, or the error it stands for; an interrupted exchange ends the worker."""
        if not self._finalizer.alive:
            raise ExportError(f"{self._name} is closed")
        message = _pack(header, arrays)
        with self._lock:
            try:
                reply, outputs = _exchange(self._process, message, monotonic() + self._timeout)
            except TimeoutError:
                self._finalizer()
                raise ExportError(f"{self._name} gave no answer to {header['do']!r} in {self._timeout:g} s") from None
            except (EOFError, OSError):
                raise ExportError(self._obituary(header["do"])) from None
            except ValueError as error:
                self._finalizer()
                raise ExportError(f"{self._name} broke the protocol: {error}") from None
            except BaseException:
                self._finalizer()
                raise
        if "error" in reply:
            limited = self._memory_mb and re.search("memory|alloc", reply["error"], re.IGNORECASE)
            text = reply["error"] + (f" (memory limit {self._memory_mb} MB)" if limited else "")
            raise {"Unavailable": Unavailable, "ValueError": ValueError}.get(reply["type"], ExportError)(text)
        return reply, outputs

    def _obituary(self, doing: str) -> str:
        """Why the process is gone, in one line."""
        self._finalizer()
        code = self._process.returncode
        how = f"exited with {code}" if code >= 0 else f"died with {signal.Signals(-code).name}"
        limit = f" (memory limit {self._memory_mb} MB)" if self._memory_mb else ""
        words = self._stderr.last_line()
        return f"{self._name} {how} on {doing!r}{limit}" + (f": {words}" if words else "")


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


def _differ(a: Array, b: Array) -> bool:
    return a is not b


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes, which ends a healthy worker at once, and kill one that is not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


class _Tail(threading.Thread):
    """The last of what a process writes to stderr, read so that a chatty one never blocks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True, name="stderr of a worker")
        self._process, self._text = process, b""
        self.start()

    def run(self) -> None:
        """Read to the end, keep the tail."""
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while chunk := stream.read(_TAIL):
                self._text = (self._text + chunk)[-_TAIL:]

    def last_line(self) -> str:
        """The last line that says something, at most 200 characters."""
        self.join(timeout=1.0)
        lines = [line.strip() for line in self._text.decode("utf-8", "replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")[:200]


def _pack(header: Header, arrays: Sequence[Array]) -> bytes:
    """One frame."""
    plain = [np.asarray(array, order="C") for array in arrays]
    for array in plain:
        _check_dtype(array.dtype)
    described = {**header, "arrays": [[array.dtype.str, list(array.shape)] for array in plain]}
    text = json.dumps(described).encode()
    body = [array.tobytes() for array in plain]
    return b"".join([_PREFIX.pack(_MAGIC, len(text), sum(map(len, body))), text, *body])


def _unpack(read: Callable[[int], bytes]) -> Frame:
    """The frame that ``read(n)``, which gives exactly n bytes, delivers; ValueError if it is none."""
    magic, n_text, n_body = _PREFIX.unpack(read(_PREFIX.size))
    if magic != _MAGIC or n_text > _LARGEST or n_body > _LARGEST:
        raise ValueError(f"no frame starts with {magic!r}")
    header = json.loads(read(n_text))
    body, start, arrays = memoryview(read(n_body)), 0, []
    for name, shape in header.pop("arrays"):
        dtype = np.dtype(name)
        _check_dtype(dtype)
        size = dtype.itemsize * prod(shape)
        arrays.append(np.frombuffer(body[start : start + size], dtype).reshape(shape).copy())
        start += size
    if start != n_body:
        raise ValueError(f"the arrays of a frame have {n_body} bytes, its header says {start}")
    return header, tuple(arrays)


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} cannot go to a worker; numbers and bool can")


def _exchange(process: subprocess.Popen[bytes], message: bytes, deadline: float) -> Frame:
    """Send ``message``, read one frame; TimeoutError at ``deadline``, EOFError or OSError if the process is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(sink, False)

    def wait(reading: list[int], writing: list[int]) -> None:
        poll = select.poll()  # select() cannot take descriptors above 1023
        for fd in reading:
            poll.register(fd, select.POLLIN)
        for fd in writing:
            poll.register(fd, select.POLLOUT)
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
            raise TimeoutError

    left = memoryview(message)
    while left:
        wait([], [sink])
        left = left[os.write(sink, left[: 1 << 16]) :]

    def read(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            wait([source], [])
            chunk = os.read(source, min(size - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    return _unpack(read)


# ---------------------------------------------------------------------------------------------- the child's end


class _Served:
    """What the child holds between requests: the runner, and the call that is timed."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._outputs: tuple[Tensor, ...] = ()  # what the artifact states
        self._call: Callable[[], object] | None = None

    def answer(self, header: Header, arrays: tuple[Array, ...]) -> Frame:
        """The reply to one request; a failure is a reply, too."""
        try:
            return {}, getattr(self, f"_do_{header['do']}")(header, arrays)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is one line for the parent
            told = isinstance(error, (ExportError, ValueError)) and str(error)
            kind = next((t.__name__ for t in (Unavailable, ExportError, ValueError) if isinstance(error, t)), "")
            return {"error": str(error).splitlines()[0] if told else one_line(error), "type": kind}, ()

    def _do_open(self, header: Header, _: tuple[Array, ...]) -> tuple[Array, ...]:
        if header["protocol"] != PROTOCOL:
            asked = header["protocol"]
            raise ExportError(f"the worker speaks protocol {PROTOCOL}, not {asked}; install the same hnas at both ends")
        if header["memory_mb"] is not None:
            import resource

            limit = int(header["memory_mb"]) * 2**20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # RLIMIT_AS would count what runtimes only reserve
        from export import backends

        artifact = Artifact.read(header["path"])
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

    def _do_run(self, _: Header, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return hold(self._runner(*arrays), self._outputs)

    def _do_bind(self, _: Header, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self._call = self._runner.bind(*arrays)
        return ()

    def _do_time(self, header: Header, _: tuple[Array, ...]) -> tuple[Array, ...]:
        assert self._call is not None
        return (np.array(time_calls(self._call, header["runs"], lead=header["lead"], seconds=header["seconds"])),)


def main() -> None:
    """Serve one parent until its end of the pipe closes, which ends this process even in the middle of a call."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # runtimes print to descriptor 1; frames have their own
    requests: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    stream = os.fdopen(source, "rb")

    def read(size: int) -> bytes:
        data = stream.read(size)
        if len(data) < size:
            os._exit(0)  # the parent closed or died
        return data

    def receive() -> None:
        try:
            while True:
                requests.put(_unpack(read))
        finally:
            os._exit(1)  # what came was no frame

    threading.Thread(target=receive, daemon=True).start()
    served = _Served()
    while True:
        message = memoryview(_pack(*served.answer(*requests.get())))
        sys.stdout.flush()
        while message:
            message = message[os.write(sink, message) :]


if __name__ == "__main__":
    main()
