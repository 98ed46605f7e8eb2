"""End what waits for a store for too long, from another thread: ``with Watchdog(connection.close, 30.0): ...``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Self


class Watchdog:
    """Call ``end`` once unless `feed` or `stop` is called within ``patience`` seconds, again and again.

    Example: ``with Watchdog(lambda: connection.shutdown(SHUT_RDWR), 30.0): connection.recv(1)``.

    ``end``: what makes the waiting call return. Its OSError and ValueError are ignored: the call has already ended.
    ``fired``: whether it was called.
    """

    def __init__(self, end: Callable[[], object], patience: float) -> None:
        self.fired = False
        self._end, self._patience, self._stopped = end, patience, Event()
        self.feed()
        Thread(target=self._run, daemon=True).start()

    def feed(self) -> None:
        """Start the time again."""
        self._deadline = time.monotonic() + self._patience

    def stop(self) -> None:
        """Let the thread end. ``end`` is not called any more."""
        self._stopped.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopped.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self.fired = True
                with suppress(OSError, ValueError):
                    self._end()
                return
