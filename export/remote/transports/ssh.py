"""Run workers on another machine by the system's OpenSSH, with the user's config, agent, keys and known hosts.

hnas need not be installed there: the first connection stores one file in ~/.cache/hnas. ssh never asks for a password.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from hnas.export.device.errors import Disconnected, Unavailable
from hnas.export.remote.bootstrap import install
from hnas.export.remote.process import Tail
from hnas.export.remote.scratch import Scratch
from hnas.export.remote.upload import Sender

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",  # a link that is cut silently is noticed within 15 s
    "ServerAliveCountMax": "3",
    "ControlPersist": "no",
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
_ADDRESS = re.compile(  # no part of an address can be read as an option
    r"ssh://(?:(?P<user>\w[\w.\\+-]*)@)?(?P<host>\w[\w.-]*|\[[\w:.%]+\])(?::(?P<port>\d{1,5}))?(?P<path>/.*)?"
)
_PATIENCE = 60.0  # seconds to connect: key exchange is slow on small boards


def connect(address: str) -> SshHost:
    """Connect to ``ssh://[user@]device[:port][/path/of/python]``. Raise Unavailable if that fails."""
    return SshHost(address)


class SshHost:
    """Run workers on one device over one connection. A broken connection is opened again.

    ``address``: ``ssh://pi@board`` for the device's ``python3``, ``ssh://pi@board/home/pi/venv/bin/python`` for another
    Python, ``ssh://pi@board/~/venv/...`` for one below the home folder.

    Raises:
        ValueError: ``address`` has another form.
        Unavailable: the device does not answer or refuses, or has no Python 3.8 or no numpy.
    """

    def __init__(self, address: str) -> None:
        self.where, self._target, self._python = _parse(address)
        if shutil.which("ssh") is None:
            raise Unavailable("ssh is not installed; install the OpenSSH client of this system")
        self._scratch = Scratch(parent=Path("/tmp"))  # noqa: S108 - the path of a socket must be short
        self._line: _Line | None = None
        self._program: str | None = None
        self._sender = Sender(self)
        try:
            self._install()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._sender.close()
        if self._line is not None:
            self._line.close()
        self._scratch.close()

    def start(self, module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start ``python -m module`` on the device, with pipes."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        command = " ".join([*settings, self._python, shlex.quote(self._install()), module])
        return subprocess.Popen(
            [*self._ssh(), _shell(f"{command}; exit $?")],  # the shell stays to report the signal of a crash
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def place(self, path: Path) -> str:
        """Upload the artifact at ``path``, unless it is there, and return its path on the device."""
        return self._sender.place(path)

    def lost(self, code: int) -> bool:
        """Return whether ssh failed (exit code 255) or was killed."""
        return code == 255 or code < 0

    def _ssh(self) -> list[str]:
        """Return the ssh command without the remote command. Open the connection if there is none."""
        if self._line is None or not self._line.alive:
            before = self._line
            if before is not None:
                before.close()
            try:
                self._line = _Line(self.where, self._target, self._scratch.path / "line")
            except Unavailable as error:
                raise (Disconnected(str(error)) if before else error) from None
        return ["ssh", "-S", str(self._line.socket), *_words(), *self._target]

    def _install(self) -> str:
        """Return the path of the program on the device. Install the program first if it is missing."""
        if self._program is not None:
            return self._program
        self._program = install(self.where, self._python, lambda text: [*self._ssh(), _shell(text)], self.lost)
        return self._program


class _Line:
    """Hold the connection that all commands to a host share: a process of ssh, which ends with this process."""

    def __init__(self, where: str, target: list[str], socket: Path) -> None:
        self.socket = socket
        socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["ssh", "-M", "-N", "-S", str(socket), *_words(), *target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _hang_up, self._process)
        tail = Tail(self._process)
        end = time.monotonic() + _PATIENCE
        while not socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise Unavailable(_refusal(where, tail.last_line()))
            time.sleep(0.02)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._finalizer()


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def _refusal(where: str, said: str) -> str:
    """Return a line that says why there is no connection, and what the user can do.

    ``said``: the last line of ssh on stderr.
    """
    by_hand = f"ssh {shlex.quote(where)}"
    if "Permission denied" in said:
        mend = f"{by_hand} must work without a password: add a key with ssh-copy-id, or start ssh-agent"
    elif "Host key verification" in said or "REMOTE HOST IDENTIFICATION" in said:
        mend = f"its host key is not known or has changed; connect once by hand: {by_hand}"
    else:
        mend = f"try it by hand: {by_hand}"
    return f"no connection to {where}: {said or 'no answer'}; {mend}"


def _parse(address: str) -> tuple[str, list[str], str]:
    """Return the name for errors, the arguments of ssh, and the Python quoted for a shell.

    Raises:
        ValueError: ``address`` is not an address of ssh.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or not address.isprintable():
        expected = "ssh://[user@]device[:port][/path/of/python], and no password"
        raise ValueError(f"host is {address!r}, expected {expected}")
    user, host, port, path = found["user"], found["host"], found["port"], (found["path"] or "").rstrip("/")
    python = f'"$HOME"{shlex.quote(path[2:])}' if path.startswith("/~/") else shlex.quote(path) if path else "python3"
    target = [*(["-p", port] if port else []), *(["-l", user] if user else []), "--", host.strip("[]")]
    return address.removesuffix(found["path"] or ""), target, python


def _words() -> list[str]:
    return [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]


def _shell(command: str) -> str:
    """Return a command that runs ``command`` in sh, whatever the login shell of the user is."""
    return f"exec sh -c {shlex.quote(command)}"
