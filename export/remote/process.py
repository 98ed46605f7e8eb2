"""Start a child process and send requests. A crash, a hang or invalid data of the child raises a one-line error."""

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
from hnas.export.device.frames import Frame, Header, pack_frame, unpack_frame

if TYPE_CHECKING:
    from hnas.export.remote.transports import Transport

_TAIL = 8192
_PIPE = 2**20


class ChildProcess:
    """Run ``python -m module``, started by ``transport``, and send requests to it. A context manager.

    1. The child raises: its message as ExportError (ValueError for wrong use, Unavailable for a missing package). The
       child keeps running.
    2. The child dies (crash, memory): ExportError with the signal and the last line of its stderr.
    3. No reply within ``timeout`` seconds: the child is killed; ExportError.
    4. The reply is not a frame: the child is killed; ExportError.
    5. The connection to its machine breaks: Disconnected.

    ``name``: the name of the child in errors.
    ``environment``: variables that are added to its environment.
    ``timeout``: seconds for each request.
    ``memory_mb``: the memory limit that the child was told, in MB. Errors name it where memory may be the cause.
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
        """Return whether the process can take requests."""
        return self._finalizer.alive

    @property
    def pid(self) -> int:
        """Return the number of the process on this machine; that of ssh or adb for another one."""
        return self._process.pid

    def close(self) -> None:
        """End the process. A second call does nothing."""
        self._finalizer()
        self._stderr.join(timeout=1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, header: Header, arrays: Sequence[np.ndarray[Any, Any]] = (), *, timeout: float | None = None
    ) -> Frame:
        """Send a request, and return the reply: its header and its arrays. An interruption (Ctrl-C) ends the process.

        ``timeout``: seconds for this request. Default: those of the process.

        Raises:
            ExportError, ValueError, Unavailable, Disconnected: see the cases of the class.
        """
        if not self.alive:
            raise ExportError(f"{self._title} is closed")
        message, limit = pack_frame(header, arrays), self._timeout if timeout is None else timeout
        with self._lock:
            try:
                reply, outputs = _exchange(self._process, message, monotonic() + limit)
            except TimeoutError:  # case 3
                self._finalizer()
                what = f"{self._title} gave no answer to {header['do']!r} in {limit:g} s"
                raise ExportError(what) from None
            except (EOFError, OSError):  # cases 2 and 5
                raise self._death(header["do"]) from None
            except (ValueError, MemoryError) as error:  # case 4; MemoryError: impossible sizes
                self._finalizer()
                raise ExportError(f"{self._title} broke the protocol: {str(error) or 'MemoryError'}") from None
            except BaseException:
                self._finalizer()
                raise
        if "error" in reply:  # case 1
            limited = self._memory_mb and re.search("memory|alloc", reply["error"], re.IGNORECASE)
            place = f"{self._transport.where}: " if self._transport.where else ""
            text = place + reply["error"] + (f" (memory limit {self._memory_mb} MB)" if limited else "")
            raise {"Unavailable": Unavailable, "ValueError": ValueError}.get(reply["type"], ExportError)(text)
        return reply, outputs

    @property
    def _title(self) -> str:
        return self._name + (f" on {self._transport.where}" if self._transport.where else "")

    def _death(self, doing: str) -> ExportError:
        """Return the error that says in one line why the process ended."""
        self._finalizer()
        code = self._process.returncode
        words = self._stderr.last_line()
        last = f": {words}" if words else ""
        if self._transport.lost(code):
            return Disconnected(f"the connection to {self._transport.where} was lost on {doing!r}{last}")
        how = f"exited with {code}"
        with suppress(ValueError):  # a shell in between ends with 128 plus the signal
            how = f"died with {signal.Signals(-code if code < 0 else code - 128).name}"
        limit = f" (memory limit {self._memory_mb} MB)" if self._memory_mb else ""
        return ExportError(f"{self._title} {how} on {doing!r}{limit}{last}")


def _widen(process: subprocess.Popen[bytes]) -> None:
    """Enlarge the buffers of the pipes to 1 MiB where the system allows it, to save context switches."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close stdin, which ends a healthy child at once. Kill a child that does not end."""
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
    """Read the stderr of a process in a thread, so that the process never blocks. Keep the last 8 KiB."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True, name="stderr of a worker")
        self._process, self._text = process, b""
        self.start()

    def run(self) -> None:
        """Read until the process closes its stderr."""
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while chunk := stream.read(_TAIL):
                self._text = (self._text + chunk)[-_TAIL:]

    def last_line(self) -> str:
        """Return the last line of stderr that is not empty, cut to 200 characters."""
        self.join(timeout=1.0)
        lines = [line.strip() for line in self._text.decode("utf-8", "replace").splitlines()]
        return printable(next((line for line in reversed(lines) if line), ""))[:200]


def _exchange(process: subprocess.Popen[bytes], message: bytes, deadline: float) -> Frame:
    """Send ``message`` and return the reply.

    Raises:
        TimeoutError: there is no reply at ``deadline`` (seconds of ``monotonic``).
        EOFError, OSError: the process ended.
    """
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

    return unpack_frame(read)
