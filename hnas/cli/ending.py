"""Turn the failure of a command into one line and an exit code. Call `guarded(program, work)`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

DEBUG = "HNAS_DEBUG"
USAGE, UNAVAILABLE, INTERRUPTED = 2, 3, 130
INTERNAL = 70  # sysexits.h: an internal software error
_CONTINUES = "; the same command with --resume continues"
_OURS = "hnas"


def guarded(
    program: str,
    work: Callable[[], int],
    *,
    resumes: bool = False,
    failed: Callable[[str, int], None] | None = None,
) -> int:
    """Run ``work`` and return its exit code. Print a failure as one line on standard error and return its code.

    With HNAS_DEBUG in the environment, the traceback is printed before the line.

    resumes: whether the command has --resume.
    failed: called with the line and the exit code of a failure.
    """
    try:
        return work()
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # a command never ends with a traceback
        from hnas.export.device.errors import printable

        line, code = describe_failure(error, resumes)
        line = printable(line)  # the names of files may have control characters, which a terminal obeys
        if os.environ.get(DEBUG):
            import traceback

            traceback.print_exception(error)
        print(f"{program}: {line}", file=sys.stderr)  # noqa: T201 - the one place where a command prints its failure
        if failed is not None:
            failed(line, code)
        return code


def describe_failure(error: BaseException, resumes: bool = False) -> tuple[str, int]:
    """Return the line and the exit code of a failure.

    1. Ctrl-C: 130. The line mentions --resume if the command has it.
    2. A package other than hnas is missing: 3.
    3. An error type of hnas, such as ``ExportError``: its ``code``, or 1. If it is ``resumable``, the line mentions
       --resume.
    4. ValueError or OSError (wrong use, or wrong files): 2.
    5. Out of memory: 1.
    6. Any other error (KeyError, TypeError, errors of torch) is a fault of the program: 70.
    """
    if isinstance(error, KeyboardInterrupt):  # case 1
        return f"interrupted{_CONTINUES if resumes else ''}", INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and (error.name or _OURS).partition(".")[0] != _OURS:  # case 2
        return f"{error.name} is not installed; pip install 'hnas[search]' (hnas-deploy doctor says more)", UNAVAILABLE
    if isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] == _OURS:  # case 3
        again = resumes and getattr(error, "resumable", False)
        return str(error) + (_CONTINUES if again else ""), int(getattr(error, "code", 1))
    if isinstance(error, ValueError | OSError):  # case 4
        return " ".join(str(error).splitlines()), USAGE
    if isinstance(error, MemoryError):  # case 5
        return "out of memory; smaller images, batches or fewer threads need less", 1
    from hnas.export.device.errors import one_line  # case 6

    hint = "" if os.environ.get(DEBUG) else f" with what {DEBUG}=1 shows"
    return f"internal error, please report it{hint}: {one_line(error)}", INTERNAL
