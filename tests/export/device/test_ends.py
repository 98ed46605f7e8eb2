"""Test the parts of a call from end to end: the same input as `Preprocessing`, the same answer as a sort."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnas import hw_profiles
from hnas.data.images import Preprocessing
from hnas.deployment.ends import RUNS, EndToEnd, measure_ends, preprocessing_arrays
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device.ends import PARTS, answer, prepare, time_ends
from hnas.export.device.runtimes import tensorrt
from hnas.export.graph.program import capture
from hnas.export.remote.worker import Worker

RECORDS = [
    Preprocessing((28, 28), (28, 28), (0.3,), (0.2,)),
    Preprocessing((40, 30), (20, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)),
]


@pytest.mark.parametrize("preprocessing", RECORDS)
def test_the_device_prepares_what_the_network_was_trained_on(preprocessing: Preprocessing) -> None:
    arrays = preprocessing_arrays(preprocessing)
    np.testing.assert_allclose(prepare(*arrays), preprocessing(arrays[0]), rtol=1e-5, atol=1e-5)
    assert prepare(*arrays).shape == (1, preprocessing.channels, *preprocessing.size)


def test_the_answer_is_the_best_classes() -> None:
    scores = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    (best,) = answer([scores])
    np.testing.assert_array_equal(best, np.argsort(-scores, axis=1)[:, :5])
    assert answer([np.float32([1, 3, 2])])[0].tolist() == [[1, 2, 0]]


def test_each_part_has_its_own_time() -> None:
    def runner(x: np.ndarray) -> list[np.ndarray]:
        assert x.shape == (1, 1, 28, 28)
        time.sleep(0.02)
        return [x.reshape(1, -1)]

    times = time_ends(runner, preprocessing_arrays(RECORDS[0]), runs=4, pixels=True)
    assert times.shape == (4, len(PARTS))
    assert (times[:, 2] >= 0.02).all()  # the planted delay is seen in its own part
    assert np.median(times[:, [0, 3]]) < np.median(times[:, 2])
    assert not times[:, 1].any()  # this runner times no copies
    assert len(time_ends(runner, preprocessing_arrays(RECORDS[0]), runs=4, pixels=True, seconds=0.0)) == 1


class _Copier:
    """A runner that takes 0.02 s, of which the copies are half."""

    copied = 0.0

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.02)
        self.copied = 0.01
        return [x.reshape(1, -1)]


def test_copies_that_a_runner_times_are_a_part_of_their_own() -> None:
    times = time_ends(_Copier(), preprocessing_arrays(RECORDS[0]), runs=2, pixels=True)
    assert times[:, 1].tolist() == pytest.approx([0.01] * 2)
    assert (times[:, 2] >= 0.01 - 1e-6).all()  # the call without its copies


class _Tool:
    """A runner that starts a tool for each call, and has the times of its parts by the tool's clock."""

    calls = 0

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        self.calls += 1
        assert x.shape == (1, 1, 28, 28)
        return [x.reshape(1, -1)]

    def part_times(self, inputs: Sequence[np.ndarray], runs: int) -> list[tuple[float, float]]:
        assert [x.shape for x in inputs] == [(1, 1, 28, 28)]
        return [(0.25, 0.5)] * runs


@pytest.mark.parametrize("pixels", [True, False])
def test_a_tool_is_started_once_and_times_its_own_parts(pixels: bool) -> None:
    tool = _Tool()
    arrays = preprocessing_arrays(RECORDS[0]) if pixels else (np.zeros((1, 1, 28, 28), np.float32),)
    times = time_ends(tool, arrays, runs=4, pixels=pixels)
    assert tool.calls == 1
    assert times[:, 1:3].tolist() == [[0.25, 0.5]] * 4
    assert (times[:, [0, 3]] > 0).all()  # preparing and answering are timed here


class _Worker:
    def __init__(self, copies: float) -> None:
        self.copies = copies

    def time_ends(self, arrays: object, runs: int, *, pixels: bool) -> np.ndarray:
        return np.tile([0.001, self.copies, 0.003, 0.0005], (runs, 1))


def test_the_line_tells_all_parts() -> None:
    found = measure_ends(_Worker(0.0), [], pixels=True)
    said = "end to end on the device 4.5 ms: prepare 1, run with copies 3, answer 0.5 (medians, n=30)"
    assert found.line() == said
    found = measure_ends(_Worker(0.002), [], pixels=True)
    assert "device 6.5 ms: prepare 1, copies 2, run 3, answer 0.5 (medians, n=30)" in found.line()
    assert "prepare: not known" in EndToEnd(0, 1, 1, 3, pixels=False).line()


@pytest.mark.slow
def test_a_worker_times_the_parts_where_the_artifact_runs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 26 * 26, 10)).eval()
    program = capture(net, torch.randn(1, 1, 28, 28))
    device = hw_profiles.load("onnxruntime-cpu")
    artifact = make_artifact("onnxruntime", program, tmp_path, precision="fp32", device=device)
    with Worker(artifact) as worker:
        found = measure_ends(worker, preprocessing_arrays(RECORDS[0]), pixels=True)
        inputs = measure_ends(worker, [np.zeros((1, 1, 28, 28), np.float32)], pixels=False)
    assert min(found.prepare, found.run, found.answer) > 0
    assert (found.n, inputs.n) == (RUNS, RUNS)


def test_copies_are_timed_without_checks_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves by 1 in a copy, by 100 in any other work."""
    now = [0.0]

    def passes(seconds: float) -> Callable[..., Any]:
        return lambda *_: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(tensorrt, "perf_counter", lambda: now[0])
    monkeypatch.setattr(tensorrt.cudart, "copy", passes(1.0))
    runner = object.__new__(tensorrt._TensorRt)
    tensors = SimpleNamespace(inputs=[SimpleNamespace(name="x")], outputs=[])
    runner.artifact, runner._places, runner._size = tensors, {"x": 0, "y": 0}, object()
    runner._context = SimpleNamespace(set_input_shape=passes(100), execute_async_v3=lambda _: True)
    runner._stream, runner._wait = 0, passes(100)

    def checked(*_: Any) -> list[Any]:
        passes(100)()
        return [np.zeros(2)]

    monkeypatch.setattr(tensorrt, "read_inputs", checked)
    output = SimpleNamespace(name="y", shape=(2,), dtype="float32")
    monkeypatch.setattr(tensorrt, "expected_outputs", lambda *_: [output])
    monkeypatch.setattr(tensorrt, "name_outputs", lambda *_: None)
    for _ in range(2):
        runner(np.zeros(2))
        assert runner.copied == 2.0
