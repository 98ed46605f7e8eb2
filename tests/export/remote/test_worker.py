"""Whatever a runtime does in a worker, the parent gets outputs or an error of one line."""

from __future__ import annotations

import gc
import io
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.frames import pack_frame, unpack_frame
from hnas.export.device.serve_artifacts import time_calls
from hnas.export.remote import transports
from hnas.export.remote import worker as worker_module
from hnas.export.remote.worker import Worker
from tests.ending import wait_until_ended
from tests.export import fake_worker
from tests.export.fake_worker import fake_artifact

X = np.arange(3, dtype=np.float32).reshape(1, 3)


def open_worker(folder: Path, fake: str = "", **options: Any) -> Worker:
    notes = options.pop("notes", {})
    return Worker(fake_artifact(folder / "a", fake, **notes), transport=cast("Any", fake_worker), **options)


def fails(worker: Worker, *inputs: Any) -> str:
    """Return the message of the ExportError that a call raises; it must be one line."""
    with pytest.raises(ExportError) as caught:
        worker(*inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_outputs_and_times(tmp_path: Path) -> None:
    with open_worker(tmp_path) as worker:
        (y,) = worker(X)
        np.testing.assert_array_equal(y, 2 * X)
        assert y.dtype == X.dtype
        outputs = worker.outputs([(X, np.arange(5)), (np.array(3.0), np.zeros((0, 2), bool))])
        np.testing.assert_array_equal(outputs[0][1], 2 * np.arange(5))
        assert outputs[1][0].shape == ()
        assert outputs[1][1].shape == (0, 2)
        times = worker.time((X,), 7, lead=2)
        assert len(times) == 7
        assert min(times) > 0


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (TensorSpec("y", X.shape, "float32"), None),
        (TensorSpec("y", X.shape, "float64"), "the outputs are float32[1, 3], the artifact states float64[1, 3]"),
        (TensorSpec("y", (3,), "float32"), "the outputs are float32[1, 3], the artifact states float32[3]"),
    ],
)
def test_outputs_are_held_to_what_the_artifact_states(tmp_path: Path, stated: TensorSpec, says: str | None) -> None:
    artifact = fake_artifact(tmp_path / "a", outputs=(stated,))
    with Worker(artifact, transport=cast("Any", fake_worker)) as worker:
        if says is None:
            np.testing.assert_array_equal(worker(X)[0], 2 * X)
        else:
            assert says in fails(worker, X)


def test_inputs_of_any_layout_arrive(tmp_path: Path) -> None:
    big = np.arange(2_000_000, dtype=np.int16).reshape(2, 1000, 1000)
    with open_worker(tmp_path) as worker:
        for array in (big.transpose(2, 0, 1), big[:, ::2, ::-3], big.astype(">f4")):
            np.testing.assert_array_equal(worker(array)[0], 2 * array)


def test_threads_are_pinned(tmp_path: Path) -> None:
    with open_worker(tmp_path, "threads", threads=3) as worker:
        assert worker()[0].tolist() == [3, 3]
        assert worker.artifact.threads == 3


def test_the_same_inputs_are_sent_once_and_new_ones_again(tmp_path: Path) -> None:
    with open_worker(tmp_path, "calls") as worker:
        worker.time((X,), 3, lead=1)
        worker.time((X,), 3)
        worker.time((X.copy(),), 3)
        assert int(worker(X)[0]) == 11


def test_many_slow_calls_are_asked_for_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def five_at_most(header: Any, _: Any = ()) -> Any:
        asked.append(header)
        return {}, (np.full(min(5, header.get("runs", 0)), 0.01),)

    with open_worker(tmp_path, timeout=100.0) as worker:
        monkeypatch.setattr(worker, "ask", five_at_most)
        assert len(worker.time((X,), 12, lead=2)) == 12
    assert [(each["runs"], each["lead"], each["seconds"]) for each in asked[1:]] == [
        (12, 2, 25),
        (7, 0, 25),
        (2, 0, 25),
    ]


def test_a_piece_ends_after_its_seconds(tmp_path: Path) -> None:
    with open_worker(tmp_path, "slow") as worker:
        worker.ask({"do": "bind"}, (X,))
        assert len(worker.ask({"do": "time", "runs": 12, "lead": 0, "seconds": 0.0})[1][0]) == 1


def test_a_crash_is_one_line_with_last_words(tmp_path: Path) -> None:
    with open_worker(tmp_path, "crash") as worker:
        last = "worker (fake, fp32, a) died with SIGSEGV on 'run' (memory limit 2048 MB): about to go"
        assert fails(worker, X) == last
        assert fails(worker, X).endswith("is closed")


def test_an_exit_is_one_line(tmp_path: Path) -> None:
    with open_worker(tmp_path, "exit") as worker:
        assert fails(worker, X) == "worker (fake, fp32, a) exited with 7 on 'run' (memory limit 2048 MB)"


def test_a_hang_is_killed(tmp_path: Path) -> None:
    with open_worker(tmp_path, "hang") as worker:
        worker._timeout = 0.5
        assert fails(worker, X) == "worker (fake, fp32, a) gave no answer to 'run' in 0.5 s"
        assert worker._process.poll() is not None


def test_a_death_from_outside_is_one_line(tmp_path: Path) -> None:
    with open_worker(tmp_path) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        assert "died with SIGKILL" in fails(worker, X)


def test_noise_breaks_no_frame(tmp_path: Path) -> None:
    with open_worker(tmp_path, "noise") as worker:
        for _ in range(3):
            np.testing.assert_array_equal(worker(X)[0], 2 * X)


def test_an_error_of_the_runtime_leaves_the_worker_alive(tmp_path: Path) -> None:
    with open_worker(tmp_path, "raise") as worker:
        assert fails(worker, X) == "RuntimeError: kernel 'x' failed"
        assert fails(worker, X) == "RuntimeError: kernel 'x' failed"


def test_wrong_inputs_are_a_value_error(tmp_path: Path) -> None:
    with open_worker(tmp_path, "value") as worker, pytest.raises(ValueError, match=r"expected \(1, 3\)"):
        worker(X)
    with open_worker(tmp_path / "b") as worker, pytest.raises(ValueError, match="cannot go to a worker"):
        worker(np.array(["text"]))


def test_memory_is_limited_when_asked(tmp_path: Path) -> None:
    with open_worker(tmp_path, "memory", memory_mb=1000) as worker:
        assert fails(worker, X).endswith("(memory limit 1000 MB)")


def test_opening_fails_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^fake cannot open .*/a: RuntimeError: cannot read the model$"):
        open_worker(tmp_path / "1", "bad")
    with pytest.raises(Unavailable, match="pip install"):
        open_worker(tmp_path / "2", backend="absent")
    with pytest.raises(ValueError, match="no backend 'nope'; known"):
        open_worker(tmp_path / "3", backend="nope")
    with pytest.raises(FileNotFoundError, match="no artifact"):
        Worker(tmp_path / "4")


@pytest.mark.parametrize("location", ["../weights.bin", "{outside}", "gone.bin"])
def test_external_data_outside_of_its_folder_is_one_line(tmp_path: Path, location: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    outside, model = tmp_path / "weights.bin", tmp_path / "net" / "model.onnx"
    outside.write_bytes(bytes(4 * 1024))
    model.parent.mkdir()
    weights = onnx.TensorProto(name="w", data_type=1, dims=[1024], data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location.format(outside=outside))
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1024]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    with pytest.raises(ValueError, match=r"not a plain path inside the folder|gone\.bin is missing") as caught:
        Worker(model)
    assert "\n" not in str(caught.value)


def test_the_note_verify_with_names_the_runtime(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        open_worker(tmp_path / "1", notes={"verify_with": "absent"})
    with open_worker(tmp_path / "2", notes={"verify_with": "absent"}, backend="fake") as worker:
        assert worker.backend == "fake"


def test_a_broken_protocol_is_one_line(tmp_path: Path) -> None:
    with open_worker(tmp_path, "frame") as worker:
        assert "broke the protocol: no frame starts with b'garb'" in fails(worker, X)


def test_one_process_opens_artifact_after_artifact(tmp_path: Path) -> None:
    with open_worker(tmp_path / "1", "calls") as worker:
        process = worker._process.pid
        worker.time((X,), 3)
        for fake in ("bad", "worse"):
            with pytest.raises(ExportError, match="cannot read the model") as caught:
                worker.open(fake_artifact(tmp_path / fake, "bad"))
            assert "\n" not in str(caught.value)
        worker.open(fake_artifact(tmp_path / "2", "calls"))
        assert int(worker(X)[0]) == 1  # a new runner
        assert worker._process.pid == process
        with pytest.raises(ValueError, match=r"this worker runs fake, .* needs absent"):
            worker.open(fake_artifact(tmp_path / "3", verify_with="absent"))


def test_no_process_stays_behind(tmp_path: Path) -> None:
    worker = open_worker(tmp_path)
    process = worker._process
    del worker
    gc.collect()
    assert process.poll() == 0


def test_a_dead_parent_ends_a_busy_worker(tmp_path: Path) -> None:
    artifact = fake_artifact(tmp_path / "a", "hang")
    code = (
        "import os, sys, threading, time, numpy\n"
        "from hnas.export.remote.worker import Worker\n"
        "from tests.export import fake_worker\n"
        "worker = Worker(sys.argv[1], transport=fake_worker)\n"
        "def die():\n"
        "    while b'hanging' not in worker._stderr._text:\n"
        "        time.sleep(0.01)\n"
        "    os._exit(9)\n"
        "print(worker._process.pid, flush=True)\n"
        "threading.Thread(target=die).start()\n"
        "worker(numpy.zeros(3))\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact.path)],
        capture_output=True, text=True, cwd=root, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    pid = int(done.stdout)
    wait_until_ended(pid)


def test_neither_end_imports_torch() -> None:
    modules = "hnas.export.remote.worker, hnas.export.proof.timing, hnas.export.bundle.bundle"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


ARRAYS = hnp.arrays(st.sampled_from(["f4", "f2", "i8", "?", "u1"]), hnp.array_shapes(min_dims=0, min_side=0))


@given(st.lists(ARRAYS, max_size=3))
def test_frames_round_trip(arrays: list[Any]) -> None:
    stream = io.BytesIO(pack_frame({"do": "x"}, arrays))
    header, again = unpack_frame(lambda size: bytearray(stream.read(size)))
    assert header == {"do": "x"}
    assert not stream.read()
    for a, b in zip(arrays, again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape


@pytest.mark.parametrize(
    "header", ["[]", "{}", "nonsense", '{"arrays": 3}', '{"arrays": [["<f4", [4.0]]]}', '{"arrays": [["?!", [4]]]}']
)
def test_a_hostile_header_is_no_frame(header: str) -> None:
    text = header.encode()
    stream = io.BytesIO(struct.pack(">4sIQ", b"hnas", len(text), 16) + text + bytes(16))
    with pytest.raises(ValueError, match=r".+"):
        unpack_frame(lambda size: bytearray(stream.read(size)))


def test_time_calls_counts() -> None:
    seen: list[int] = []
    assert len(time_calls(lambda: seen.append(1), 5, lead=2)) == 5
    assert len(seen) == 7
    assert len(time_calls(lambda: seen.append(1), 5, seconds=-1)) == 1
    assert gc.isenabled()


def test_transports_are_files() -> None:
    assert "local" in transports.names()
    assert transports.load("local").place(Path("/tmp")) == "/tmp"
    with pytest.raises(ValueError, match="no transport 'pigeon'; known: "):
        transports.load("pigeon")


def test_only_the_opening_has_the_long_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, float | None] = {}

    def ask(self: Any, header: Any, arrays: Any = (), *, timeout: float | None = None) -> Any:
        asked[header["do"]] = self._timeout if timeout is None else timeout
        return {"report": {}, "seconds": [0.0] * header.get("runs", 0)}, [np.zeros(1)]

    monkeypatch.setattr(Worker, "ask", ask)
    monkeypatch.setattr(worker_module, "_TIMEOUTS", {"fake": 1800.0})
    with open_worker(tmp_path / "1") as worker:
        worker.ask({"do": "run"})
    assert (asked["open"], asked["run"]) == (1800.0, 120.0)
    with open_worker(tmp_path / "2", timeout=7.0) as worker:
        worker.ask({"do": "run"})
    assert (asked["open"], asked["run"]) == (7.0, 7.0)
