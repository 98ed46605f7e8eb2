"""Convert networks in a child process. A converter that crashes, hangs or uses all memory does not end the caller.

``with Compiler(timeout=300) as compiler: ...``. The child is `hnas.export.compiling.conversion`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hnas.export.compiling.conversion import EAGER as _EAGER
from hnas.export.compiling.conversion import convert
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.device.records import JSON, encode
from hnas.export.onnx.source import OnnxSource
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.scratch import Scratch
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from hnas.export.device.frames import Header
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.export.remote.transports import Transport
    from hnas.hw_profiles import Device

Array = np.ndarray[Any, Any]

_PIECE = 32 * 2**20  # bytes of tensors in one message, so that a large network is not in memory three times
_MOST = 200  # conversions by one process; converters leak memory, OpenVINO's about 1 MB for each conversion
_MODULE = "hnas.export.compiling.conversion"


class Compiler:
    """Convert networks in a child process that serves many conversions. A context manager.

    Example::

        with Compiler(timeout=300, memory_mb=4000) as compiler:
            compile(net, x, path="net", options=CompileOptions(compiler=compiler))

    ``timeout``: seconds for each conversion.
    ``memory_mb``: the limit of the memory that the process may allocate (data segment), in MB. Default: no limit.
    ``transport``: starts the process. Default: on this machine.

    The process starts at the first conversion or at ``start``. If it dies, the next conversion starts another.

    Raises:
        ValueError: ``timeout`` or ``memory_mb`` is not above 0.
    """

    def __init__(self, *, timeout: float = 900.0, memory_mb: int | None = None, transport: Transport = local) -> None:
        if not timeout > 0 or (memory_mb is not None and memory_mb < 1):
            raise ValueError(f"timeout and memory_mb must be above 0, got {timeout:g} and {memory_mb}")
        self._timeout, self._memory_mb, self._transport = timeout, memory_mb, transport
        self._lock = threading.RLock()
        self._process: ChildProcess | None = None
        self._scratch: Scratch | None = None
        self._served = 0  # conversions of this process
        self._held = ""  # the digest of the samples that the process has

    def start(self) -> None:
        """Start the process if there is none. Do not wait until it is ready. It imports torch, which modules need."""
        with self._lock:
            self._living({_EAGER: "torch"})

    def close(self) -> None:
        """End the process. A later conversion starts another."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None
            if self._scratch is not None:
                self._scratch.close()
                self._scratch = None

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
        """Convert in the child process, to the same bytes as `hnas.export.compiling.conversion.convert`.

        A program with custom operators is converted in this process, because the child does not know them.

        Raises:
            ExportError: as `convert`; or the process died, did not answer in time, or wrote no valid artifact.
            Unavailable: a package of the backend is not installed.
        """
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
        }
        with self._lock:
            self._serve(request, tensors, calibration)
        try:
            return Artifact.read(folder)
        except (ValueError, FileNotFoundError) as error:
            raise ExportError(f"{name} wrote no artifact of {called} in {precision}: {error}") from None

    def _serve(self, request: Header, tensors: Sequence[Array], calibration: Samples | None) -> None:
        """Send the program and the samples, and let the process compile. Close the process if its memory ran out."""
        if self._served >= _MOST:
            self.close()
        torchless = "onnx" in request["program"]
        process = self._living({} if torchless else {_EAGER: "torch"})
        self._served += 1
        try:
            for index, piece in enumerate(_pieces(tensors)):
                process.ask({"do": "tensors", "first": index == 0}, piece)
            if calibration is not None:
                self._send(process, calibration)
            limits = {"memory_mb": self._memory_mb, "cores": None if torchless else _torch_threads()}
            process.ask({"do": "compile", **request, **limits})
        except ExportError as error:
            if process.alive and "(memory limit" in str(error):  # too little memory is left for another conversion
                process.close()
            what = f"{request['backend']} cannot compile"
            if process.alive or str(error).startswith(what):
                raise
            raise ExportError(f"{what} {request['called']} to {request['precision']}: {error}") from None

    def _living(self, environment: Mapping[str, str]) -> ChildProcess:
        """Return the process. ``environment`` is added to that of a process which has to be started."""
        if self._process is None or not self._process.alive:
            self.close()
            self._served, self._held = 0, ""
            self._scratch = Scratch()  # a converter that is killed cannot remove its temporary files
            self._process = ChildProcess(
                "the compiler",
                _MODULE,
                environment={"TMPDIR": str(self._scratch.path), **environment},
                timeout=self._timeout,
                transport=self._transport,
                memory_mb=self._memory_mb,
            )
        return self._process

    def _send(self, process: ChildProcess, samples: Samples) -> None:
        """Send the samples, unless the process has them from the last conversion."""
        digest = _digest(samples)
        if digest == self._held:
            return
        self._held = ""
        for index, sample in enumerate(samples):
            process.ask({"do": "sample", "first": index == 0}, sample)
        self._held = digest


def limited_compiler() -> Compiler:
    """Return a compiler, not started yet, with 15 minutes for each conversion and half of the machine's memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return Compiler(memory_mb=max(2048, total // 2))


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _packed(program: Program | OnnxSource) -> tuple[JSON, Sequence[Array]]:
    """Return a program as JSON and tensors. For an ONNX file, return its record: the child reads the file."""
    if isinstance(program, OnnxSource):
        return {"onnx": encode(program)}, ()
    from hnas.export.graph.wire import pack

    return pack(program)


def _pieces(tensors: Sequence[Array]) -> Iterator[list[Array]]:
    """Yield the tensors in lists of at least ``_PIECE`` bytes, except the last; one empty list if there are none."""
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
