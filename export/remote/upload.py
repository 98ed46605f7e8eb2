"""An artifact on its way to a device: in pieces, from where an earlier attempt was cut, checked on arrival.

`hnas.export.device.serve_files` is the device's end, `hnas.export.device.frames` what they speak.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.device.artifact import RECORD, Artifact, digest_file
from hnas.export.device.errors import Disconnected, ExportError
from hnas.export.remote.process import Process

if TYPE_CHECKING:
    from hnas.export.device.frames import Header
    from hnas.export.remote.transports import Transport

PIECE = 2**18  # bytes of one request: a link of 2 KB/s still answers in time
PATIENCE = 4  # attempts in a row that bring nothing, with growing pauses between them


class Sender:
    """The way of artifacts to one host; a process there is kept for the next one."""

    def __init__(self, transport: Transport, *, timeout: float = 120.0, pause: float = 1.0) -> None:
        self._transport, self._timeout, self._pause = transport, timeout, pause
        self._process: Process | None = None
        self._sent = 0  # bytes that have arrived, over all attempts

    def close(self) -> None:
        """End the process there."""
        if self._process is not None:
            self._process.close()

    def place(self, path: Path) -> str:
        """Bring the artifact at ``path``, a folder or a bare model file, to the host; its path there.

        A connection that breaks is made again and goes on where it was, until PATIENCE attempts in a row bring nothing:
        Disconnected. ExportError when the disk there is full; what has arrived stays there for the next time.
        """
        artifact = Artifact.read(path)
        bare = artifact.notes.get("bare") is True
        names = [*artifact.files, *([] if bare else [RECORD])]
        files = [[n, (artifact.path / n).stat().st_size, digest_file(artifact.path, n)] for n in names]
        lines = "".join(f"{name} {sha}\n" for name, _, sha in sorted(files))
        request = {"digest": hashlib.sha256(lines.encode()).hexdigest(), "files": files}
        folder = self._persistently(artifact.path, request)
        return f"{folder}/{names[0]}" if bare else folder

    def _persistently(self, source: Path, request: Header) -> str:
        stalled = 0
        while True:
            before = self._sent
            try:
                return self._send(source, request)
            except Disconnected:
                stalled = stalled + 1 if self._sent == before else 1
                if stalled == PATIENCE:
                    raise
                time.sleep(self._pause * 2 ** (stalled - 1))

    def _send(self, source: Path, request: Header) -> str:
        """One attempt, over one connection."""
        ask = self._opened().ask
        for _ in range(2):
            found, _ = ask({"do": "begin", **request})
            if found["path"] is None:
                for (name, size, _), have in zip(request["files"], found["have"], strict=True):
                    self._write(source, request["digest"], name, range(have, max(size, 1), PIECE))
                found, _ = ask({"do": "finish", **request})
            if found["path"] is not None:
                return str(found["path"])
        raise ExportError(f"{self._transport.where}: {', '.join(found['spoiled'])} arrived changed, twice")

    def _write(self, source: Path, digest: str, name: str, offsets: range) -> None:
        with (source / name).open("rb") as file:
            file.seek(offsets.start)
            for offset in offsets:
                piece = np.frombuffer(file.read(PIECE), np.uint8)
                self._opened().ask({"do": "write", "digest": digest, "name": name, "offset": offset}, [piece])
                self._sent += len(piece)

    def _opened(self) -> Process:
        if self._process is None or not self._process.alive:
            self._process = Process(
                "the receiver",
                "hnas.export.device.serve_files",
                environment={},
                timeout=self._timeout,
                transport=self._transport,
            )
        return self._process
