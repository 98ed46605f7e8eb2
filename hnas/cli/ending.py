"""How a command ends: one line and an exit code for what a user can mend, another for what only we can."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

DEBUG = "HNAS_DEBUG"
USAGE, UNAVAILABLE, INTERRUPTED = 2, 3, 130
INTERNAL = 70  # sysexits.h: an internal software error
_CONTINUES = "; the same command with --resume continues"
_OURS = ("hnas", "export", "benchmarks", "hw_profiles")


def guarded(
    program: str,
    work: Callable[[], int],
    *,
    resumes: bool = False,
    failed: Callable[[str, int], None] | None = None,
) -> int:
    """Run ``work`` and give its exit code, or that of its failure, which is one line on standard error.

    With HNAS_DEBUG in the environment the traceback stands before the line. ``resumes``: the command has --resume.
    ``failed(line, code)`` is told of a failure.
    """
    try:
        return work()
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # a command never ends with a traceback
        line, code = ending(error, resumes)
        if os.environ.get(DEBUG):
            import traceback

            traceback.print_exception(error)
        print(f"{program}: {line}", file=sys.stderr)  # noqa: T201 - the one place where a command speaks of its failure
        if failed is not None:
            failed(line, code)
        return code


def ending(error: BaseException, resumes: bool = False) -> tuple[str, int]:
    """The line and the exit code of a failure.

    1. Ctrl-C: 130.
    2. A package of others is missing: 3.
    3. An error type of our own, such as ``ExportError``: its code, 1 where it has none; ``resumable`` is told as in 1.
    4. ValueError, OSError: wrong use or a world that does not fit, 2.
    5. No memory: 1.
    6. Anything else (KeyError, TypeError, what torch raises, ...) is a fault of the program: 70.
    """
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{_CONTINUES if resumes else ''}", INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and (error.name or _OURS[0]).partition(".")[0] not in _OURS:
        return f"{error.name} is not installed; pip install 'hnas[search]' (hnas-deploy doctor says more)", UNAVAILABLE
    if isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] in _OURS:
        again = resumes and getattr(error, "resumable", False)
        return str(error) + (_CONTINUES if again else ""), int(getattr(error, "code", 1))
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).splitlines()), USAGE
    if isinstance(error, MemoryError):
        return "out of memory; smaller images, batches or fewer threads need less", 1
    from hnas.export.device.errors import one_line

    hint = "" if os.environ.get(DEBUG) else f" with what {DEBUG}=1 shows"
    return f"internal error, please report it{hint}: {one_line(error)}", INTERNAL
