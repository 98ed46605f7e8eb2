"""Test the parts of a call from end to end: the same input as `Preprocessing`, the same answer as a sort."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from hnas import hw_profiles
from hnas.data.images import Preprocessing
from hnas.deployment.ends import RUNS, EndToEnd, measure_ends, preprocessing_arrays
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device.ends import answer, prepare, time_ends
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
    assert times.shape == (4, 3)
    assert (times[:, 1] >= 0.02).all()  # the planted delay is seen in its own part
    assert np.median(times[:, [0, 2]]) < np.median(times[:, 1])
    assert len(time_ends(runner, preprocessing_arrays(RECORDS[0]), runs=4, pixels=True, seconds=0.0)) == 1


class _Worker:
    def __init__(self, **report: str) -> None:
        self.report = report

    def time_ends(self, arrays: object, runs: int, *, pixels: bool) -> np.ndarray:
        return np.tile([0.001, 0.003, 0.0005], (runs, 1))


def test_the_line_tells_all_parts_and_trtexec_has_none() -> None:
    found = measure_ends(_Worker(), [], pixels=True)  # type: ignore[arg-type]
    assert found is not None
    said = "end to end on the device 4.5 ms: prepare 1, run with copies 3, answer 0.5 (medians, n=30)"
    assert found.line() == said
    assert "prepare: not known" in EndToEnd(0, 1, 1, 3, pixels=False).line()
    assert measure_ends(_Worker(by="trtexec"), [], pixels=True) is None  # type: ignore[arg-type]


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
    assert found is not None
    assert inputs is not None
    assert min(found.prepare, found.run, found.answer) > 0
    assert (found.n, inputs.n) == (RUNS, RUNS)
