"""Stand in for the adbd of a phone: the documented wire protocol over TCP, so that the real `adb` talks to it.

Messages and services as in the protocol.txt, services and shell-protocol files of AOSP's packages/modules/adb. Its
shell is this machine's, with /data/local/tmp in a folder of the test's.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

# A stand-in for TFLite's benchmark_model: its flags, the lines that it prints, max(x, 0). It logs every call.
TOOL = """#!{python}
import os, re, sys, time
import numpy
given = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "calls"), "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if "help" in given:
    sys.exit("usage: benchmark_model {more}")
print("STARTING!\\nLoaded model", given["graph"])
if open(given["graph"], "rb").read()[4:8] != b"TFL3":
    print("ERROR: Failed to load model"); print("ERROR: Benchmarking failed."); sys.exit(1)
x = numpy.fromfile(re.sub(r".*(?<!:):(?!:)", "", given["input_layer_value_files"]), numpy.float32)
print("Running benchmark for at least 5 iterations and at least 0 seconds but terminate if exceeding 150 seconds.")
print("count=5 first=310 curr=255 min=250 max=310 avg=268.2 std=22\\n")
print("Running benchmark for at least 1 iterations and at least 0 seconds but terminate if exceeding 150 seconds.")
print("count=1 curr=252 p5=252 median=252 p95=252\\n")
print("Inference timings in us: Init: 5579, First inference: 310, Warmup (avg): 268.2, Inference (avg): 252")
if "output_filepath" in given:
    open(given["output_filepath"], "wb").write(numpy.maximum(x, 0).tobytes())
"""

_HEADER = struct.Struct("<4s5I")
_VERSION, _LARGEST = 0x01000001, 1 << 18  # since this version no checksum is sent
_STDIN, _STDOUT, _STDERR, _EXIT, _END_OF_STDIN = range(5)


@dataclass
class Phone:
    """Serve a device on ``port``. ``cut_at``: bytes to shells after which the connection breaks; ``down``: for good.

    ``call_at``: bytes to shells after which ``call`` is called, before the next byte is taken.
    """

    folder: Path
    environment: dict[str, str]
    features: str = "shell_v2,cmd,stat_v2"
    port: int = 0
    sent: int = 0
    cut_at: int | None = None
    down: bool = False
    call_at: int | None = None
    call: Callable[[], object] = lambda: None
    _open: list[socket.socket] = field(default_factory=list)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.down:
                    client.close()
                    continue
                self._open.append(client)
                threading.Thread(target=_Connection(self, client).serve, daemon=True).start()

    def cut(self) -> None:
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)


class _Connection:
    def __init__(self, phone: Phone, client: socket.socket) -> None:
        self.phone, self.client = phone, client
        self.turn = threading.Lock()
        self.shells: dict[int, _Shell] = {}

    def serve(self) -> None:
        with suppress(OSError, EOFError), self.client:
            while True:
                command, first, second, size, _, _ = _HEADER.unpack(self.read(_HEADER.size))
                self.answer(command, first, second, self.read(size))
        for shell in list(self.shells.values()):
            shell.end()

    def answer(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command == b"CNXN":
            self.send(b"CNXN", _VERSION, _LARGEST, f"device::features={self.phone.features}".encode())
        elif command == b"OPEN":
            service = data.rstrip(b"\0").decode()
            kind, _, text = service.partition(":")
            if kind.split(",")[0] != "shell":
                self.send(b"CLSE", 0, first)
                return
            number = len(self.shells) + 1
            self.send(b"OKAY", number, first)
            self.shells[number] = _Shell(self, number, first, text)
        elif command == b"WRTE" and second in self.shells:
            self.phone.sent += len(data)
            if self.phone.cut_at is not None and self.phone.sent >= self.phone.cut_at:
                self.phone.cut_at = None
                raise EOFError
            if self.phone.call_at is not None and self.phone.sent >= self.phone.call_at:
                self.phone.call_at = None
                self.phone.call()
            self.send(b"OKAY", second, first)
            self.shells[second].take(data)
        elif command == b"OKAY" and second in self.shells:
            self.shells[second].ready.release()
        elif command == b"CLSE" and second in self.shells:
            self.shells[second].end()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        with self.turn:
            self.client.sendall(_HEADER.pack(command, first, second, len(data), 0, magic) + data)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.client.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


class _Shell:
    """Run one command: packets of the shell protocol in both directions, each write acknowledged before the next."""

    def __init__(self, connection: _Connection, number: int, theirs: int, text: str) -> None:
        self.connection, self.number, self.theirs = connection, number, theirs
        self.ready, self.rest = threading.Semaphore(1), b""
        phone = connection.phone
        self.process = subprocess.Popen(
            ["sh", "-c", text.replace("/data/local/tmp", str(phone.folder))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env=phone.environment, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        ends = [(_STDOUT, self.process.stdout), (_STDERR, self.process.stderr)]
        threads = [threading.Thread(target=self.forward, args=end, daemon=True) for end in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        with suppress(OSError):
            self.give(_EXIT, bytes([code % 256]))
            self.connection.send(b"CLSE", self.number, self.theirs)

    def forward(self, kind: int, stream: object) -> None:
        with suppress(OSError):
            while data := stream.read(1 << 16):
                self.give(kind, data)

    def give(self, kind: int, data: bytes) -> None:
        self.ready.acquire()
        self.connection.send(b"WRTE", self.number, self.theirs, struct.pack("<BI", kind, len(data)) + data)

    def take(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.rest += data
        while len(self.rest) >= 5:
            kind, size = struct.unpack("<BI", self.rest[:5])
            if len(self.rest) < 5 + size:
                return
            piece, self.rest = self.rest[5 : 5 + size], self.rest[5 + size :]
            with suppress(OSError, ValueError):  # it has ended
                if kind == _STDIN:
                    self.process.stdin.write(piece)
                elif kind == _END_OF_STDIN:
                    self.process.stdin.close()

    def end(self) -> None:
        """Close the pipes, as adbd does when the other side is gone."""
        self.ready.release()
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.close()


@contextmanager
def phone(folder: Path, environment: dict[str, str]) -> Iterator[Phone]:
    """Let a device listen during the block. ``folder`` is its /data/local/tmp."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Phone(folder, environment, port=listener.getsockname()[1])
        threading.Thread(target=found.serve, args=(listener,), daemon=True).start()
        try:
            yield found
        finally:
            found.down = True
            found.cut()
