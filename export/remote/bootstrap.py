"""Install the program that `hnas.export.remote.portable` packs on a device, by one command of the Python there."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from collections.abc import Callable

from hnas.export.device.errors import Disconnected, ExportError, Unavailable
from hnas.export.remote.portable import build_zip

# Runs on any Python of the device: takes the program from stdin, unless the device has it already.
_INSTALL = """
import sys
def end(word, text):
    sys.stdout.write("hnas %s %s\\n" % (word, text))
    sys.exit()
if sys.version_info < (3, 8):
    end("old", "%d.%d" % sys.version_info[:2])
try:
    import numpy
except ImportError:
    end("bare", sys.executable)
import hashlib, os
wanted = sys.argv[1]
home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
path = os.path.join(home, "hnas", "device-%s.pyz" % wanted[:16])
def whole(data):
    return hashlib.sha256(data).hexdigest() == wanted
try:
    with open(path, "rb") as file:
        there = whole(file.read())
except OSError:
    there = False
if not there:
    data = sys.stdin.buffer.read()
    if not whole(data):
        end("cut", len(data))
    part = "%s.%d" % (path, os.getpid())
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError as error:
        if os.path.exists(part):
            os.unlink(part)
        end("unwritten", error)
end("ready", path)
"""


def install(where: str, python: str, command: Callable[[str], list[str]], lost: Callable[[int], bool]) -> str:
    """Install the program on the device ``where`` and return its path there.

    ``where``: the name of the device, for errors.
    ``python``: the command that starts Python on the device, quoted for its shell.
    ``command``: takes a shell command of the device, and returns the local command that runs it there.
    ``lost``: returns whether an exit code means that the connection broke.

    Raises:
        Unavailable: the device has no such Python, a Python before 3.8, or no numpy.
        Disconnected: the connection broke.
        ExportError: the device cannot store the program.
    """
    data = build_zip()
    text = f"{python} -c {shlex.quote(_INSTALL)} {hashlib.sha256(data).hexdigest()}"
    done = subprocess.run(command(text), input=data, capture_output=True, check=False)
    last = last_line(done.stderr)
    said = re.findall(r"^hnas (\w+) (.*)$", done.stdout.decode("utf-8", "replace"), re.MULTILINE)
    match said[-1] if said else ("", ""):
        case ("ready", path):
            return str(path)
        case ("old", version):
            mend = f"name another one: {where}/path/of/python3"
            raise Unavailable(f"{where} has Python {version}, 3.8 or newer is needed; {mend}")
        case ("bare", name):
            raise Unavailable(f"numpy is not installed for {name} on {where}; pip install numpy there")
        case ("unwritten", reason):
            raise ExportError(f"{where} cannot store the program of hnas: {reason}")
    if done.returncode in (126, 127):
        mend = f"install Python 3.8 or newer, or name one: {where}/path/of/python3"
        raise Unavailable(f"{where} has no {shlex.split(python)[-1]}; {mend}")
    if lost(done.returncode) or said:
        raise Disconnected(f"the connection to {where} was lost" + (f": {last}" if last else ""))
    raise Unavailable(f"{python} on {where} ended with {done.returncode}: {last or 'no reason given'}")


def last_line(text: bytes) -> str:
    """Return the last line of ``text`` that is not empty, cut to 200 characters."""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
