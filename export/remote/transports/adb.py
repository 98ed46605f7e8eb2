"""Run workers on a phone by `adb`: in a Python of the phone, or by TFLite's benchmark_model if there is none.

hnas need not be installed there. All files that it stores are in /data/local/tmp/hnas.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hnas.export.device.errors import Disconnected, ExportError, Unavailable
from hnas.export.remote.bootstrap import install, last_line
from hnas.export.remote.transports import local
from hnas.export.remote.upload import Sender

FOLDER = "/data/local/tmp"  # the shell user of a phone may write and execute here
_TOOLS = ("hnas/benchmark_model", "benchmark_model", "android_aarch64_benchmark_model")
_TERMUX = "/data/data/com.termux/files"
_ADDRESS = re.compile(r"adb://(?P<serial>[\w.:\[\]%-]*)(?P<path>/.*)?")  # no part can be read as an option
_STATES = {
    "unauthorized": "unlock it, and allow USB debugging for this computer",
    "authorizing": "unlock it, and allow USB debugging for this computer",
    "offline": "plug it in again, or: adb reconnect offline",
    "no permissions": "this user may not open the USB device; add a udev rule (Debian's adb brings them)",
}
_PATIENCE = 60.0  # seconds for a command of a shell of the phone
_PROBE = """
import sys, numpy
from importlib.util import find_spec
runtimes = ("ai_edge_litert", "tflite_runtime", "onnxruntime")
sys.exit(sys.version_info < (3, 8) or not any(map(find_spec, runtimes)))
"""


class Python(NamedTuple):
    """Describe a Python of a phone: ``path`` (a word of a shell), environment ``settings`` and ``launcher``."""

    path: str
    settings: str = ""
    launcher: str = ""

    def words(self, environment: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return the command that starts it, for a shell."""
        more = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        return " ".join(filter(None, [self.launcher, "env", self.settings, *more, self.path]))


def connect(address: str) -> AdbHost:
    """Connect to ``adb://SERIAL[/path/of/python]``, or to the only phone by ``adb://``. Raise Unavailable if absent."""
    return AdbHost(address)


class Phone:
    """Run commands in a shell of the device that `adb` lists by ``serial``."""

    def __init__(self, serial: str) -> None:
        self.serial, self.where = serial, f"adb://{serial}"

    def words(self, text: str) -> list[str]:
        """Return the command that runs ``text`` in a shell of the phone, with unchanged bytes in its three pipes.

        adb itself exits with 0 or 1 if the connection breaks. So 64 is added to the exit codes 0 and 1 of a command.
        """
        return ["adb", "-s", self.serial, "shell", "-T", f"({text}); c=$?; exit $((c < 2 ? c + 64 : c))"]

    def lost(self, code: int) -> bool:
        """Return whether the exit code of a command of ``words`` means that the connection broke."""
        return code in (0, 1, 255) or code < 0

    def shell(self, text: str, data: bytes = b"") -> bytes:
        """Run ``text`` with ``data`` as its input and return its output. Raise ExportError or Disconnected."""
        try:
            done = subprocess.run(self.words(text), input=data, capture_output=True, check=False, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Disconnected(f"{self.where} gave no answer in {_PATIENCE:g} s") from None
        said = last_line(done.stderr)
        if self.lost(done.returncode):
            raise Disconnected(f"the connection to {self.where} was lost" + (f": {said}" if said else ""))
        if done.returncode != 64:
            raise ExportError(said or last_line(done.stdout) or f"a command there ended with {done.returncode}")
        return done.stdout


class AdbHost:
    """Run workers on one phone.

    1. The phone has Python 3.8 or newer with numpy and a runtime: it runs `hnas.export.device`, as over ssh.
    2. The phone has TFLite's ``benchmark_model`` below ``FOLDER``: see `hnas.export.remote.phone_tool`.

    Raises:
        ValueError: ``address`` is not an address of adb.
        Unavailable: adb or the phone is missing, or neither case applies.
    """

    def __init__(self, address: str) -> None:
        serial, wished = _parse(address)
        self._phone = Phone(_choose(serial))
        self.where = self._phone.where
        if "shell_v2" not in _adb("-s", self._phone.serial, "features").split():
            raise Unavailable(f"{self.where} has no binary shell; Android 7 or newer is needed")
        self._python, self.tool = self._found(wished)
        self._program: str | None = None
        self._sender = Sender(self)
        if self._python:
            self._install()

    def close(self) -> None:
        """End the process on the phone."""
        self._sender.close()

    def start(self, module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start ``python -m module`` on the phone (case 1), or a process here that runs the tool there (case 2)."""
        self._connected()
        if not self._python:
            there = {"HNAS_PHONE": self._phone.serial, "HNAS_TOOL": self.tool}
            return local.start("hnas.export.remote.phone_tool", {**environment, **there})
        words = f"{self._python.words(environment)} {shlex.quote(self._install())} {module}"
        return subprocess.Popen(
            self._phone.words(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def place(self, path: Path) -> str:
        """Upload the artifact at ``path`` (case 1), or return ``path``, as the tool's process uploads it (case 2)."""
        return self._sender.place(path) if self._python else str(path.resolve())

    def lost(self, code: int) -> bool:
        """Return whether the exit code of a process of ``start`` means that the connection broke."""
        return self._phone.lost(code) if self._python else False

    def _install(self) -> str:
        assert self._python is not None
        if self._program is None:
            self._program = install(self.where, self._python.words(), self._phone.words, self._phone.lost)
        return self._program

    def _connected(self) -> None:
        """Raise Disconnected unless adb still lists the phone. Connect again to a phone on the network first."""
        serial = self._phone.serial
        if _devices().get(serial) != "device" and ":" in serial:
            _adb("connect", serial)
        state = _devices().get(serial, "gone")
        if state != "device":
            raise Disconnected(f"{self.where} is {state}; {_STATES.get(state, 'plug it in and run it again')}")

    def _found(self, wished: str) -> tuple[Python | None, str]:
        """Return the Python (or None) and the path of the tool (or ""). Raise Unavailable if the phone has neither.

        wished: the path of the Python to use; "" searches.
        """
        here = f"XDG_CACHE_HOME={FOLDER}"
        if wished:
            return Python(shlex.quote(wished), here), ""
        pythons = [
            Python(f"{FOLDER}/python/bin/python3", here),
            Python("python3", here),
            Python(
                f"{_TERMUX}/usr/bin/python3", f"HOME={_TERMUX}/home", "run-as com.termux"
            ),  # a debug build allows adb
        ]
        tests = [f"{python.words()} -c {shlex.quote(_PROBE)} >/dev/null 2>&1 </dev/null" for python in pythons]
        ways = "".join(f"if {test}; then echo hnas python {i}; else " for i, test in enumerate(tests))
        tools = " ".join(f"{FOLDER}/{tool}" for tool in _TOOLS)
        look = f"for t in {tools}; do if [ -x $t ]; then echo hnas tool $t; fi; done"
        said = self._phone.shell(f"{ways} :; {'fi; ' * len(tests)}{look}").decode("utf-8", "replace")
        python, tool = (re.search(rf"^hnas {kind} (\S+)", said, re.MULTILINE) for kind in ("python", "tool"))
        if python is None and tool is None:
            lacks = "no Python 3.8 with numpy and a TFLite runtime"
            mend = f"adb push benchmark_model {FOLDER}, adb shell chmod +x {FOLDER}/benchmark_model"
            raise Unavailable(f"{self.where} has {lacks}, and no {FOLDER}/benchmark_model of TFLite; {mend}")
        return pythons[int(python[1])] if python else None, tool[1] if tool else ""


def _parse(address: str) -> tuple[str, str]:
    """Return the serial and the path of the Python; "" for a missing part. Raise ValueError for any other text."""
    found = _ADDRESS.fullmatch(address)
    if found is None or found["serial"].startswith("-") or not address.isprintable():
        raise ValueError(f"host is {address!r}, expected adb://[serial][/path/of/python]")
    return found["serial"], found["path"] or ""


def _choose(serial: str) -> str:
    """Return the serial of the phone to use. Raise Unavailable if there is none; the message says why."""
    if shutil.which("adb") is None:
        raise Unavailable("adb is not installed; apt-get install adb, or Android's SDK platform tools")
    listed = _devices()
    if serial and serial not in listed and ":" in serial:  # a phone on the network
        _adb("connect", serial)
        listed = _devices()
    if not listed:
        raise Unavailable("adb sees no device; plug it in and turn on USB debugging, or: adb connect HOST:PORT")
    if not serial and len(listed) > 1:
        raise Unavailable(f"adb sees {len(listed)} devices; name one: {', '.join(f'adb://{name}' for name in listed)}")
    serial = serial or next(iter(listed))
    if serial not in listed:
        raise Unavailable(f"adb sees no device {serial!r}; known: {', '.join(listed)}")
    if listed[serial] != "device":
        mend = _STATES.get(listed[serial], "start Android on it")
        raise Unavailable(f"adb://{serial} is {listed[serial]}; {mend}")
    return serial


def _devices() -> dict[str, str]:
    """Return the state of every device that adb lists, by its serial."""
    found = re.findall(r"^(\S+)\s+(no permissions|\w+)", _adb("devices"), re.MULTILINE)
    return {serial: state for serial, state in found if serial not in ("List", "*")}


def _adb(*words: str) -> str:
    """Run ``adb`` and return its output. Raise Unavailable if it fails or does not answer."""
    try:
        done = subprocess.run(["adb", *words], capture_output=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"adb {words[0]} gave no answer in {_PATIENCE:g} s; try: adb kill-server") from None
    if done.returncode and words[0] != "connect":
        raise Unavailable(f"adb {words[0]} failed: {last_line(done.stderr)}")
    return done.stdout.decode("utf-8", "replace")
