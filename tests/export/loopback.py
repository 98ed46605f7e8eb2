"""Run a real sshd on this machine with its own keys and config, behind a link that a test can cut."""

from __future__ import annotations

import getpass
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv XDG_CACHE_HOME={cache} {environment}
"""
CLIENT = """
Host *
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/client
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  HostKeyAlias loopback
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Link:
    """Forward TCP from ``port`` to ``target``, count the bytes to the server, and cut on demand."""

    target: int
    port: int = field(default_factory=free_port)
    sent: int = 0
    cut_at: int | None = None  # bytes from now on
    down: bool = False  # new connections are closed at once
    down_when_cut: bool = False
    _open: list[socket.socket] = field(default_factory=list)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def serve(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            with self._turn:  # a cut comes before or after a connection is opened
                if self.down:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open += [client, server]
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError), client, server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client:
                        self.sent += len(data)
                        if self.cut_at is not None and self.sent >= self.cut_at:
                            self.cut_at, self.down = None, self.down_when_cut
                            return

    def cut_after(self, size: int, *, down: bool = False) -> None:
        """Break the connection after ``size`` more bytes. ``down``: and accept no other one."""
        self.cut_at, self.down_when_cut = self.sent + size, down

    def cut(self) -> None:
        with self._turn:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._open.clear()


@dataclass
class Loopback:
    """Describe the device: its cache folder, its link, and the folder whose ``ssh`` has the keys."""

    link: Link
    cache: Path
    bin: Path
    folder: Path

    @property
    def address(self) -> str:
        return "ssh://board"


def _listening(folder: Path, settings: dict[str, object]) -> tuple[subprocess.Popen[bytes], int]:
    """Start sshd, wait until it accepts connections, and return its port. Another port where somebody took the first.

    Raise TimeoutError after two minutes.
    """
    assert SSHD is not None
    end = time.monotonic() + 120
    while time.monotonic() < end:
        port = free_port()
        (folder / "sshd").write_text(SERVER.format(port=port, **settings))
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd"], stderr=log)
        while server.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return server, port
            time.sleep(0.05)
        server.kill()
        server.wait()
    raise TimeoutError(f"sshd accepts no connection: {(folder / 'log').read_text()[-500:]}")


@contextmanager
def loopback(folder: Path, **environment: str) -> Iterator[Loopback]:
    """Let ``ssh board`` work during the block, with ``bin`` first on PATH."""
    assert SSHD is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "known").write_text(f"loopback {(folder / 'host.pub').read_text()}")
    cache = folder / "cache"
    words = " ".join(f"{name}={value}" for name, value in environment.items())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it to drop the rights of root
    server, port = _listening(folder, {"folder": folder, "cache": cache, "environment": words})
    link = Link(port)
    try:
        link.serve()
        (folder / "config").write_text(CLIENT.format(port=link.port, user=getpass.getuser(), folder=folder))
        (folder / "bin").mkdir()
        script = folder / "bin" / "ssh"
        script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        script.chmod(0o755)
        yield Loopback(link, cache / "hnas", folder / "bin", folder)
    finally:
        link.cut()
        server.terminate()
        server.wait()
