"""Test that a CPU sees the rounding and the overflows of fp16 in a typed file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.device.engine_types import TYPES
from hnas.export.onnx import casts
from hnas.export.remote.worker import Worker

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
halving = pytest.importorskip("tests.export.onnx.test_halving")

NOTES = {"verify_with": "onnxruntime", TYPES: {"fp32": {}}}
RNG = np.random.default_rng(0)
SAMPLES = [(scale * RNG.standard_normal((1, 8)).astype(np.float32),) for scale in (1, 40)]


def opened(path: Path, model: Any, notes: Any = NOTES, *, worker: bool = False) -> Any:
    onnx.save(model, path / "model.onnx")
    ends = [(TensorSpec(name, (1, 8), "float32"),) for name in "xy"]
    files = digest_files(path, "model.onnx")
    artifact = Artifact(path, "tensorrt", "fp16", "jetson", 1, ends[0], ends[1], files, notes=notes)
    artifact.write()
    return Worker(artifact) if worker else runtimes.load("onnxruntime").load(artifact)


def test_an_overflow_between_two_nodes_is_seen(tmp_path: Path) -> None:
    nodes = [("MatMul", "x big", "h", {}), ("Mul", "h small", "h_raw", {}), ("MatMul", "h_raw a", "y", {})]
    constants = {"big": 2000 * halving.EYE, "small": np.float32(5e-4), "a": halving.EYE}
    typed = casts.write_types(halving.model(nodes, constants), ())
    (usual, *_), (large, *_) = SAMPLES
    np.testing.assert_allclose(opened(tmp_path, typed)(usual)[0], usual, rtol=3e-3)
    assert not np.isfinite(opened(tmp_path, typed)(large)[0]).all()
    with opened(tmp_path, typed, worker=True) as worker:  # as the verification opens it
        assert not np.isfinite(worker(large)[0]).all()
    skipped = opened(tmp_path, typed, {})(large)[0]
    np.testing.assert_allclose(skipped, large, rtol=3e-3)  # the planted failure: the runtime alone does not see it


def test_the_result_is_that_of_the_simulation(tmp_path: Path) -> None:
    weights = RNG.standard_normal((8, 8)).astype(np.float32)
    plain = halving.model(halving.PLAIN, {"a": weights})
    for given in (plain, halving.quantised(np.full(8, 1e-2, np.float32))):
        got = opened(tmp_path, casts.write_types(given, ()))(*SAMPLES[0])[0]
        want = halving.run(casts.write_types(given, (), simulate=True), *SAMPLES[0])
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
        assert np.array_equal(got, got.astype(np.float16))


def test_a_branch_reads_the_rounded_value(tmp_path: Path) -> None:
    info = [onnx.helper.make_tensor_value_info("o", 1, [1, 8])]
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["h"], ["o"])], "b", [], info)
    nodes = [("MatMul", "x a", "h", {}), ("If", "c", "y", {"then_branch": body, "else_branch": body})]
    given = halving.model(nodes, {"a": halving.EYE, "c": np.bool_(True)})
    got = opened(tmp_path, casts.write_types(given, ()))(*SAMPLES[0])[0]
    np.testing.assert_allclose(got, np.maximum(SAMPLES[0][0], 0), rtol=2e-3)
