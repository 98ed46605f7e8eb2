"""Upload artifacts to a device in pieces, resume interrupted uploads, and check the hashes on arrival.

``Sender(transport).place(path)``. The device's end is `hnas.export.device.serve_files`.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.device.artifact import RECORD, Artifact, digest_file
from hnas.export.device.errors import Disconnected, ExportError
from hnas.export.remote.process import ChildProcess

if TYPE_CHECKING:
    from hnas.export.device.frames import Header
    from hnas.export.remote.transports import Transport

PIECE = 2**18  # bytes of one request: at 2 KB/s the reply still comes before the timeout
PATIENCE = 4  # attempts without progress, with growing pauses between them


class Sender:
    """Upload artifacts to one host. The receiving process on the host is reused.

    ``timeout``: seconds for each request.
    ``pause``: seconds before the first retry. Each further pause is twice as long.
    """

    def __init__(self, transport: Transport, *, timeout: float = 120.0, pause: float = 1.0) -> None:
        self._transport, self._timeout, self._pause = transport, timeout, pause
        self._process: ChildProcess | None = None
        self._sent = 0  # bytes that arrived, over all attempts

    def close(self) -> None:
        """End the process on the host."""
        if self._process is not None:
            self._process.close()

    def place(self, path: Path) -> str:
        """Upload the artifact at ``path``, a folder or a bare model file, and return its path on the host.

        A broken connection is opened again, and the upload is resumed. Bytes that arrived are kept for the next call.

        Raises:
            Disconnected: PATIENCE attempts in a row made no progress.
            ExportError: the disk of the host is full, or a file arrived damaged twice.
        """
        artifact = Artifact.read(path)
        bare = artifact.notes.get("bare") is True
        names = [*artifact.files, *([] if bare else [RECORD])]
        files = [[n, (artifact.path / n).stat().st_size, digest_file(artifact.path, n)] for n in names]
        lines = "".join(f"{name} {sha}\n" for name, _, sha in sorted(files))
        request = {"digest": hashlib.sha256(lines.encode()).hexdigest(), "files": files}
        folder = self._retry(artifact.path, request)
        return f"{folder}/{names[0]}" if bare else folder

    def _retry(self, source: Path, request: Header) -> str:
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
        """Upload over one connection. Start at the byte where the last attempt ended."""
        ask = self._opened().ask
        for _ in range(2):
            found, _ = ask({"do": "begin", **request})
            if found["path"] is None:
                for (name, size, _), have in zip(request["files"], found["have"], strict=True):
                    self._write(source, request["digest"], name, range(have, max(size, 1), PIECE))
                found, _ = ask({"do": "finish", **request})
            if found["path"] is not None:
                return str(found["path"])
        raise ExportError(f"{self._transport.where}: {', '.join(found['spoiled'])} arrived damaged twice")

    def _write(self, source: Path, digest: str, name: str, offsets: range) -> None:
        with (source / name).open("rb") as file:
            file.seek(offsets.start)
            for offset in offsets:
                piece = np.frombuffer(file.read(PIECE), np.uint8)
                self._opened().ask({"do": "write", "digest": digest, "name": name, "offset": offset}, [piece])
                self._sent += len(piece)

    def _opened(self) -> ChildProcess:
        if self._process is None or not self._process.alive:
            self._process = ChildProcess(
                "the receiver",
                "hnas.export.device.serve_files",
                environment={},
                timeout=self._timeout,
                transport=self._transport,
            )
        return self._process
