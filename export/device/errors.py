"""What export raises when the world, not the caller, is at fault: one line each, with the exit code of a command."""

import re


class ExportError(RuntimeError):
    """A module could not be captured, compiled, run or verified; the message says in one line which and why."""

    code: int = 1


class Unfaithful(ExportError):
    """An artifact was made and runs, but does not compute what the network does: its precision may be to blame."""


class Unavailable(ExportError):
    """The runtime or device is not here; the message holds the line that would install it."""

    code: int = 3


class Disconnected(Unavailable):
    """A device was there and is gone: nothing was decided, and the same may work when it is back."""

    resumable = True  # a command that can resume says so


def one_line(error: BaseException, limit: int = 200) -> str:
    """The error's type and first telling line, cut to ``limit`` characters: foreign errors run over pages."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours are for terminals
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception from ")] or lines  # OpenVINO's own source files
    text = f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """The text with what a terminal would obey written out: names from files end up in foreign errors."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
