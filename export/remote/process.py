"""A child process that answers requests: whatever happens to it is one line here, and nobody else is harmed."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hnas.export.device.errors import Disconnected, ExportError, Unavailable, printable
from hnas.export.device.frames import Frame, Header, pack, unpack

if TYPE_CHECKING:
    from hnas.export.remote.transports import Transport

_TAIL = 8192
_PIPE = 2**20


class Process:
    """``python -m module``, started by ``transport``; a context manager.

    1. It raises: its message as ExportError (ValueError for wrong use, Unavailable if a package is missing there); it
       lives on.
    2. It dies (crash, memory): one ExportError line with the signal and its last words.
    3. No answer within ``timeout`` seconds: it is killed; ExportError.
    4. It answers garbage: it is killed; ExportError.
    5. The connection to its machine breaks: Disconnected.

    ``memory_mb`` is what it was told to limit itself to; it is named where memory may have been the cause.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *,
        environment: Mapping[str, str],
        timeout: float,
        transport: Transport,
        memory_mb: int | None = None,
    ) -> None:
        self._name, self._timeout, self._memory_mb, self._transport = name, timeout, memory_mb, transport
        self._lock = threading.Lock()
        self._process = transport.start(module, environment)
        _widen(self._process)
        self._stderr = Tail(self._process)
        self._finalizer = weakref.finalize(self, _end, self._process)

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._finalizer.alive

    def close(self) -> None:
        """End the process; calling twice is fine."""
        self._finalizer()
        self._stderr.join(timeout=1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, header: Header, arrays: Sequence[np.ndarray[Any, Any]] = ()) -> Frame:
        """The worker's answer to one request, or the error it stands for; an interrupted exchange ends the worker."""
        if not self.alive:
            raise ExportError(f"{self._title} is closed")
        message = pack(header, arrays)
        with self._lock:
            try:
                reply, outputs = _exchange(self._process, message, monotonic() + self._timeout)
            except TimeoutError:
                self._finalizer()
                what = f"{self._title} gave no answer to {header['do']!r} in {self._timeout:g} s"
                raise ExportError(what) from None
            except (EOFError, OSError):
                raise self._obituary(header["do"]) from None
            except (ValueError, MemoryError) as error:  # the latter: sizes that nobody has
                self._finalizer()
                raise ExportError(f"{self._title} broke the protocol: {str(error) or 'MemoryError'}") from None
            except BaseException:
                self._finalizer()
                raise
        if "error" in reply:
            limited = self._memory_mb and re.search("memory|alloc", reply["error"], re.IGNORECASE)
            place = f"{self._transport.where}: " if self._transport.where else ""
            text = place + reply["error"] + (f" (memory limit {self._memory_mb} MB)" if limited else "")
            raise {"Unavailable": Unavailable, "ValueError": ValueError}.get(reply["type"], ExportError)(text)
        return reply, outputs

    @property
    def _title(self) -> str:
        return self._name + (f" on {self._transport.where}" if self._transport.where else "")

    def _obituary(self, doing: str) -> ExportError:
        """Why the process is gone, in one line."""
        self._finalizer()
        code = self._process.returncode
        words = self._stderr.last_line()
        last = f": {words}" if words else ""
        if self._transport.lost(code):
            return Disconnected(f"the connection to {self._transport.where} was lost on {doing!r}{last}")
        how = f"exited with {code}"
        with suppress(ValueError):  # a shell in between says 128 and the signal
            how = f"died with {signal.Signals(-code if code < 0 else code - 128).name}"
        limit = f" (memory limit {self._memory_mb} MB)" if self._memory_mb else ""
        return ExportError(f"{self._title} {how} on {doing!r}{limit}{last}")


def _widen(process: subprocess.Popen[bytes]) -> None:
    """Let a megabyte wait in each pipe where the system allows it: tensors then take few turns of the two processes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)


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


class Tail(threading.Thread):
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
        return printable(next((line for line in reversed(lines) if line), ""))[:200]


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
        left = left[os.write(sink, left[:_PIPE]) :]

    def read(size: int) -> bytearray:
        data = bytearray(size)
        left = memoryview(data)
        while left:
            wait([source], [])
            came = os.readv(source, [left[:_PIPE]])
            if not came:
                raise EOFError
            left = left[came:]
        return data

    return unpack(read)
