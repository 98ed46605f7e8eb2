"""Try small programs on backends in a process of its own, because a converter may crash or never end.

``with RefusalTest(monotonic() + 10, "openvino", "fp32") as test: test.refusal(program)``. The process runs
``python -m hnas.export.diagnosis.refusals``.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING, Self

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve
from hnas.export.proof.verification import check
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from hnas.export.graph.program import Program


class RefusalTest:
    """Try programs on one backend, one after the other, within a time limit. A context manager.

    end: the time limit, in seconds of ``monotonic``. A process that has not answered by then is ended.
    """

    def __init__(self, end: float, backend: str, precision: str) -> None:
        self._end, self._backend, self._precision = end, backend, precision
        self._child = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def refusal(self, program: Program) -> str | None:
        """Return why the backend does not take ``program``, or None if its file computes the right values.

        1. Its converter or its runtime raises an error: the error, in one line.
        2. Its converter or its runtime crashes: the signal.
        3. Its file computes other values: the largest error.

        Raises:
            Unavailable: a package of the backend is missing.
            TimeoutError: the time is over.
            ExportError: the program cannot go to another process.
        """
        from hnas.export.graph.wire import pack

        packed, tensors = pack(program)
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError("the time is over")
        if not self._child.alive:
            self._child = self._start()
        request = {"do": "test", "backend": self._backend, "precision": self._precision, "program": packed}
        try:
            return str(self._child.ask(request, tensors, timeout=left)[0]["refusal"]) or None
        except Unavailable:
            raise
        except ExportError as error:
            if monotonic() >= self._end:
                raise TimeoutError("the time is over") from None
            return str(error)  # case 2

    def _start(self) -> ChildProcess:
        return ChildProcess("the test of an operator", __spec__.name, environment={}, timeout=60.0, transport=local)


class _RefusalAnswers:
    """Answer the requests of ``RefusalTest``."""

    def do_test(self, header: Header, arrays: Arrays) -> Frame:
        """Compile, open and run a program. The reply says why that fails; empty if it does not."""
        from hnas.export.graph.fusion import fuse, passes_for
        from hnas.export.graph.wire import unpack

        program, name, precision = unpack(header["program"], arrays), header["backend"], header["precision"]
        inputs = tuple(value.numpy() for value in program.inputs)
        try:
            with TemporaryDirectory() as folder:
                made = make_artifact(
                    name,
                    fuse(program, passes_for(name)),
                    Path(folder),
                    precision=precision,
                    device=hw_profiles.local_devices()[name],
                    calibration=[inputs] if precision == "int8" else None,
                )
                found = check([program.arrays(*inputs)], [backends.load(name).load(made)(*inputs)], precision)  # case 3
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - converters and runtimes may raise anything
            return {"refusal": str(error) if isinstance(error, ExportError) else one_line(error)}, ()  # case 1
        return {"refusal": "" if found.passed else found.line()}, ()


if __name__ == "__main__":
    import torch  # noqa: F401 - imported before the first request, while the parent records values

    serve(dispatch(_RefusalAnswers()))
