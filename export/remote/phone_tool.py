"""Run artifacts on a phone without Python: a child process on this machine runs ``benchmark_model`` on the phone.

``python -m hnas.export.remote.phone_tool`` answers the requests of `hnas.export.device.serve_artifacts`. The flags and
the output of the tool are described in its README (tensorflow/lite/tools/benchmark). Each time is that of one call in a
new process after warm-up calls, in whole microseconds. Outputs require a tool with the flag ``--output_filepath``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any

import numpy as np

from hnas.export.device.artifact import Artifact, digest_file
from hnas.export.device.errors import Disconnected, ExportError, Unavailable
from hnas.export.device.frames import PROTOCOL, Arrays, Frame, Header, dispatch, serve
from hnas.export.device.machine import Machine
from hnas.export.device.records import encode
from hnas.export.device.runtimes import tflite
from hnas.export.device.signature import check_inputs, check_outputs
from hnas.export.remote.transports import adb
from hnas.export.remote.upload import PATIENCE

KEPT = 8  # models that are cached on the phone (LRU)
_WARMUP = 5  # calls before the one that is timed
PIECE = 2**22  # bytes of one transfer
_FACTS = "getprop ro.product.manufacturer; getprop ro.product.model; getprop ro.build.version.release; uname -m; nproc"


class _Tool:
    """Hold the model on the phone and the inputs that are timed, between requests."""

    def __init__(self, phone: adb.Phone, path: str) -> None:
        self._phone, self._path = phone, shlex.quote(path)
        self._net: tflite.TfLite | None = None
        self._model, self._threads, self._input_flags = "", 1, ""
        self._folder = f"{adb.FOLDER}/hnas/tool"

    def do_describe(self, header: Header, _: Arrays) -> Frame:
        """Return the description of the phone. The version is the sha256 of the tool, because the tool states none."""
        _check_backend(header["backend"])
        sha = self._phone.shell(f"sha256sum < {self._path}").decode()[:12]
        facts = self._phone.shell(_FACTS).decode("utf-8", "replace").splitlines()
        maker, model, release, kind, cores = (facts + [""] * 5)[:5]
        machine = Machine(f"{maker} {model}".strip(), int(cores or 1), f"Android {release} {kind}", "none")
        return {"machine": encode(machine), "versions": {"benchmark_model": f"sha256 {sha}"}}, ()

    def do_open(self, header: Header, _: Arrays) -> Frame:
        """Upload the model of the artifact at ``path``. ``report`` says how times are measured."""
        if header["protocol"] != PROTOCOL:
            raise ExportError(f"the worker uses protocol {PROTOCOL}, not {header['protocol']}")
        _check_backend(header["backend"])
        missing = tflite.missing()
        if missing is not None:
            raise Unavailable(f"the order of the inputs is read on this machine, but {missing}")
        artifact = Artifact.read(header["path"])
        self._net = tflite.TfLite(artifact)
        self._model, self._threads, self._input_flags = self._upload(artifact), int(header["threads"]), ""
        return {"report": {"by": "benchmark_model", "clock": f"one call of a process, after {_WARMUP}"}}, ()

    def do_bind(self, _: Header, arrays: Arrays) -> Frame:
        """Bind the inputs of the request for timing."""
        self._input_flags = self._upload_inputs(arrays)
        return {}, ()

    def do_time(self, header: Header, _: Arrays) -> Frame:
        """Return the seconds of each call on the bound inputs, by the tool's clock."""
        times: list[float] = []
        end = monotonic() + header["seconds"]
        while len(times) < header["runs"] and (not times or monotonic() < end):
            count = min(header["runs"] - len(times), 5 if times else 1)  # a slow network must not reach the timeout
            loop = f"i=0; while [ $i -lt {count} ]; do {self._command()} || exit 70; i=$((i + 1)); done"
            times += read_tool_times(self._phone.shell(loop + " 2>&1").decode("utf-8", "replace"))
        return {}, (np.array(times),)

    def do_run(self, _: Header, arrays: Arrays) -> Frame:
        """Return the outputs for the inputs of the request. Raise Unavailable if the tool cannot write them."""
        assert self._net is not None
        usage = self._phone.shell(f"{self._path} --help 2>&1; true")
        if b"output_filepath" not in usage:
            mend = "push a newer one, or use a Python with a TFLite runtime there"
            raise Unavailable(f"this benchmark_model gives no outputs, so nothing can be verified with it; {mend}")
        self._input_flags = self._upload_inputs(arrays)
        out = f"{self._folder}/{os.getpid()}.out"
        data = self._phone.shell(f"{self._command()} --output_filepath={out} >&2; cat {out}; rm -f {out}")
        return {}, check_outputs(self._split(data), self._net.artifact.outputs)

    def _command(self) -> str:
        flags = f"--graph={self._model} --num_threads={self._threads} --use_xnnpack=true --num_runs=1 --min_secs=0"
        warmup = f"--warmup_runs={_WARMUP} --warmup_min_secs=0"
        return f"touch {self._model}; {self._path} {flags} {warmup} {self._input_flags}"

    def _upload(self, artifact: Artifact) -> str:
        """Upload the model, resume interrupted uploads, check the sha256, and return the path of the model there."""
        sha = digest_file(artifact.path, artifact.model.name)
        path = f"{self._folder}/{sha}.tflite"
        size = artifact.model.stat().st_size
        ready = f'[ -f {path} ] && [ "$(sha256sum < {path} | cut -c1-64)" = {sha} ]'
        older = "; ".join(
            f"ls -t {self._folder}/*.{kind} 2>/dev/null | tail -n +{kept} | while read f; do rm -f $f; done"
            for kind, kept in (("tflite", KEPT), ("bin", 8 * KEPT))
        )
        fresh = f"{older}; touch {path}.part; echo part $(wc -c < {path}.part)"
        begin = f"mkdir -p {self._folder}; if {ready}; then touch {path}; echo whole; else {fresh}; fi"
        stalled = 0
        while stalled < PATIENCE:
            try:
                said = self._phone.shell(begin).decode()
                if said.startswith("whole"):
                    return path
                have = int(said.split()[1])
                stalled += have >= size  # complete, but with another sha256
                with artifact.model.open("rb") as file:
                    file.seek(have)
                    while piece := file.read(PIECE):
                        self._phone.shell(f"cat >> {path}.part", piece)
                        stalled = 0
                check = ready.replace(path, f"{path}.part")
                self._phone.shell(f"if {check}; then mv {path}.part {path}; else rm -f {path}.part; fi")
            except Disconnected:
                stalled += 1
                if stalled == PATIENCE:
                    raise
                sleep(2.0 ** (stalled - 1))
        raise ExportError(f"{artifact.model.name} arrived damaged {PATIENCE} times")

    def _upload_inputs(self, arrays: Sequence[np.ndarray[Any, Any]]) -> str:
        """Upload the inputs in the layout of the runtime, and return the flags of the tool that name them."""
        assert self._net is not None
        values = tflite.to_runtime(check_inputs(arrays, self._net.artifact.inputs), self._net._layout)
        names, shapes, files = {}, {}, {}
        for index, value in zip(self._net._inputs, values, strict=True):
            names[index] = self._detail("input", index)["name"]
            shapes[index] = ",".join(map(str, value.shape))
            files[index] = f"{self._folder}/{os.getpid()}-{index}.bin"
            self._phone.shell(f"cat > {files[index]}", value.tobytes())
        order = [detail["index"] for detail in self._net._interpreter.get_input_details()]
        if any("," in names[index] for index in order):
            raise ExportError("benchmark_model cannot be given an input whose name has a comma")
        flags = {
            "input_layer": ",".join(names[index] for index in order),
            "input_layer_shape": ":".join(shapes[index] for index in order),
            "input_layer_value_files": ",".join(f"{names[i].replace(':', '::')}:{files[i]}" for i in order),
        }
        return " ".join(f"--{name}={shlex.quote(value)}" for name, value in flags.items())

    def _split(self, data: bytes) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the outputs in the order of the module. ``data`` has them in the order of the model."""
        assert self._net is not None
        found, start = {}, 0
        for detail in self._net._interpreter.get_output_details():
            shape, kind = tuple(detail["shape"]), np.dtype(detail["dtype"])
            size = int(np.prod(shape)) * kind.itemsize
            found[detail["index"]] = np.frombuffer(data[start : start + size].ljust(size, b"\0"), kind).reshape(shape)
            start += size
        if start != len(data):
            raise ExportError(f"benchmark_model wrote {len(data)} bytes of outputs, expected {start}")
        return tuple(found[index] for index in self._net._outputs)

    def _detail(self, end: str, index: int) -> dict[str, Any]:
        details: list[dict[str, Any]] = getattr(self._net._interpreter, f"get_{end}_details")()  # type: ignore[union-attr]
        return next(detail for detail in details if detail["index"] == index)


def read_tool_times(text: str) -> list[float]:
    """Return the seconds of the timed call of each run in ``text``. Raise ExportError with its last line if none.

    The call is the last ``count=1 curr=MICROSECONDS`` before the summary ("Inference timings in us: ...").
    """
    *runs, rest = re.split(r"Inference timings in us: Init: .*", text)
    times = [re.findall(r"\bcount=1 curr=(\d+)", run)[-1:] for run in runs]
    if not runs or not all(times):
        lines = [line.strip() for line in rest.splitlines() if line.strip()]
        raise ExportError(f"benchmark_model gave no time: {(lines or ['it printed nothing'])[-1][:200]}")
    return [int(found[0]) * 1e-6 for found in times]


def _check_backend(backend: str) -> None:
    if backend != "tflite":
        raise Unavailable(f"the phone has TFLite's benchmark_model and no Python with a runtime; {backend} needs one")


if __name__ == "__main__":
    serve(dispatch(_Tool(adb.Phone(os.environ["HNAS_PHONE"]), os.environ["HNAS_TOOL"])))
