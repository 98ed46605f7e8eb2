"""Define the errors that export raises when the caller is not at fault. Each message is one line.

``code`` is the exit code of a command that ends with the error.
"""

import re
from contextlib import contextmanager
from typing import Iterator


class ExportError(RuntimeError):
    """Signal that a network could not be captured, compiled, run or verified.

    Example: ``except export.ExportError as error: print(error)``. The message is one line that names the cause.
    """

    code: int = 1


class Unfaithful(ExportError):
    """Signal that an artifact runs, but its outputs differ too much from the network's. A higher precision may help."""


class Unavailable(ExportError):
    """Signal that a runtime or a device is missing. The message says how to install it.

    Example: ``except export.Unavailable as error: pytest.skip(str(error))``.
    """

    code: int = 3


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Turn a missing third-party package in the block into Unavailable, with the ``extra`` that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "hnas").partition(".")[0]
        if package == "hnas":  # a fault of the program
            raise
        raise Unavailable(f"{package} is not installed; pip install 'hnas[{extra}]'") from error


class Disconnected(Unavailable):
    """Signal that the connection to a device broke. The same call may succeed when the device is back."""

    resumable = True  # a command that can resume tells the user


# Lines of OpenVINO that name its own source files, not a cause.
_OWN_SOURCE = re.compile(r"Exception from |Check '.*' failed at |FrontEnd API failed with ")


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the type and the first informative line of a third-party error, in at most ``limit`` characters."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    lines = [line for line in lines if not _OWN_SOURCE.match(line)] or lines
    text = f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped: third-party errors may repeat names from untrusted files."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
