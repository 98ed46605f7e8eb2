"""Run a model at the defaults of its runtime, in a process of its own: ``Unpinned(artifact)``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.device.artifact import Artifact
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve
from hnas.export.device.runtimes.tflite import to_runtime
from hnas.export.device.serve_artifacts import time_calls
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.transports import local


class Unpinned(ChildProcess):
    """A worker for `export.compare_many`, which runs the model of an artifact at the defaults of its runtime."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = replace(artifact, threads=os.cpu_count() or 1)
        pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.artifact.threads))
        name = f"{artifact.backend} at its defaults"
        super().__init__(name, __name__, environment=pools, timeout=120.0, transport=local)
        try:
            self.ask({"do": "open", "path": str(artifact.source)})
        except BaseException:
            self.close()
            raise
        self._bound = False

    def time(self, inputs: Sequence[NDArray[Any]], runs: int, *, lead: int = 0) -> list[float]:
        """Return the seconds of each of ``runs`` calls."""
        if not self._bound:
            self.ask({"do": "bind"}, inputs)
            self._bound = True
        times: list[float] = self.ask({"do": "time", "runs": runs, "lead": lead})[1][0].tolist()
        return times


class _Serving:
    """The requests that the process answers."""

    def do_open(self, header: Header, _: Arrays) -> Frame:
        """Open an artifact."""
        self.artifact = Artifact.read(header["path"])
        return {}, ()

    def do_bind(self, _: Header, arrays: Arrays) -> Frame:
        """Bind the inputs of the call that is timed."""
        self.call = _CALLS[self.artifact.backend](self.artifact, arrays)
        return {}, ()

    def do_time(self, header: Header, _: Arrays) -> Frame:
        """Return the seconds of each call."""
        return {}, (np.array(time_calls(self.call, header["runs"], lead=header["lead"])),)


def _onnxruntime(artifact: Artifact, arrays: Arrays) -> Callable[[], object]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact.model))
    fed = dict(zip([value.name for value in session.get_inputs()], arrays, strict=True))
    return lambda: session.run(None, fed)


def _openvino(artifact: Artifact, arrays: Arrays) -> Callable[[], object]:
    import openvino

    request = openvino.Core().compile_model(artifact.model, "CPU").create_infer_request()
    fed = dict(enumerate(arrays))
    return lambda: request.infer(fed)


def _tflite(artifact: Artifact, arrays: Arrays) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    opened = Interpreter(str(artifact.model))
    opened.allocate_tensors()
    values = to_runtime(arrays, artifact.notes.get("layout"))
    for detail, value in zip(opened.get_input_details(), values, strict=True):
        opened.set_tensor(detail["index"], value)
    invoke: Callable[[], object] = opened.invoke
    return invoke


_CALLS: dict[str, Callable[[Artifact, Arrays], Callable[[], object]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tflite": _tflite,
}

if __name__ == "__main__":
    serve(dispatch(_Serving()))
