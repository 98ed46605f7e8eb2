"""Conversion in a process of its own: a converter that crashes, hangs or eats the memory takes nobody with it.

`Compiler` is the parent's end, `hnas.export.compiling.conversion` the child's.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.device.records import JSON, encode
from hnas.export.onnx.source import OnnxSource
from hnas.export.remote.process import Process
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.export.remote.transports import Transport
    from hnas.hw_profiles import Device

Array = np.ndarray[Any, Any]

_PIECE = 32 * 2**20  # bytes of tensors in one message, so that a large network is not held three times
_MOST = 200  # conversions of one process: converters leak, OpenVINO's about a megabyte each
_MODULE = "hnas.export.compiling.conversion"


class Compiler:
    """Backends' conversions in a process that serves many of them; a context manager.

    The process starts with the first conversion, or with ``start``, which does not wait for it. One that died is
    replaced by the next conversion. ``timeout`` is in seconds, for each conversion; ``memory_mb`` limits what the
    process may allocate (data segment; None: no limit).
    """

    def __init__(self, *, timeout: float = 900.0, memory_mb: int | None = None, transport: Transport = local) -> None:
        if not timeout > 0 or (memory_mb is not None and memory_mb < 1):
            raise ValueError(f"timeout and memory_mb must be above 0, got {timeout:g} and {memory_mb}")
        self._timeout, self._memory_mb, self._transport = timeout, memory_mb, transport
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._served = 0  # conversions that the process was asked for
        self._held = ""  # the digest of the calibration that the process has

    def start(self) -> None:
        """Start the process if there is none; returns before it is ready."""
        with self._lock:
            self._living()

    def close(self) -> None:
        """End the process; calling twice is fine, and a later conversion starts another."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def convert(
        self,
        name: str,
        program: Program | OnnxSource,
        folder: Path,
        *,
        precision: str,
        device: Device,
        threads: int,
        calibration: Samples | None,
        called: str = "the program",
    ) -> Artifact:
        """As `compiling.convert`, to the same bytes; the death of the process is an ExportError in one line, too.

        A program with operators that are not torch's own is converted in this process, which knows them.
        """
        import torch

        from hnas.export.compiling.conversion import convert

        try:
            packed, tensors = _packed(program)
        except ExportError:
            return convert(
                name,
                program,
                folder,
                precision=precision,
                device=device,
                threads=threads,
                calibration=calibration,
                called=called,
            )
        request = {
            "backend": name,
            "program": packed,
            "path": str(folder.absolute()),
            "precision": precision,
            "device": encode(device),
            "threads": threads,
            "calibrated": calibration is not None,
            "called": called,
            "memory_mb": self._memory_mb,
            "cores": torch.get_num_threads(),
        }
        with self._lock:
            if self._served >= _MOST:
                self.close()
            process = self._living()
            self._served += 1
            try:
                for index, piece in enumerate(_pieces(tensors)):
                    process.ask({"do": "tensors", "first": index == 0}, piece)
                if calibration is not None:
                    self._send(process, calibration)
                process.ask({"do": "compile", **request})
            except ExportError as error:
                if process.alive and "(memory limit" in str(error):  # what is left of its memory is too little
                    process.close()
                if process.alive or str(error).startswith(f"{name} cannot compile"):
                    raise
                raise ExportError(f"{name} cannot compile {called} to {precision}: {error}") from None
        try:
            return Artifact.read(folder)
        except (ValueError, FileNotFoundError) as error:
            raise ExportError(f"{name} wrote no artifact of {called} in {precision}: {error}") from None

    def _living(self) -> Process:
        if self._process is None or not self._process.alive:
            self.close()
            self._served, self._held = 0, ""
            self._process = Process(
                "the compiler",
                _MODULE,
                environment={},
                timeout=self._timeout,
                transport=self._transport,
                memory_mb=self._memory_mb,
            )
        return self._process

    def _send(self, process: Process, samples: Samples) -> None:
        """The calibration, unless it is the one that the process has from the last conversion."""
        digest = _digest(samples)
        if digest == self._held:
            return
        self._held = ""
        for index, sample in enumerate(samples):
            process.ask({"do": "sample", "first": index == 0}, sample)
        self._held = digest


def _packed(program: Program | OnnxSource) -> tuple[JSON, Sequence[Array]]:
    """What of a program travels; an ONNX file stays where it lies."""
    if isinstance(program, OnnxSource):
        return {"onnx": encode(program)}, ()
    from hnas.export.graph.wire import pack

    return pack(program)


def _pieces(tensors: Sequence[Array]) -> Iterator[list[Array]]:
    """The tensors in order, in lists of at least ``_PIECE`` bytes but for the last; one list where there are none."""
    piece: list[Array] = []
    for tensor in tensors:
        piece.append(tensor)
        if sum(each.nbytes for each in piece) >= _PIECE:
            yield piece
            piece = []
    yield piece


def _digest(samples: Samples) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for value in sample:
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        digest.update(b"|")
    return digest.hexdigest()
