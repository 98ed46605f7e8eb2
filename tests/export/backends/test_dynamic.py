"""Test artifacts with a dynamic batch: every size computes what the module does, and a baked size is caught."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hnas import export, hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.compiling import sizes
from hnas.export.device import trtexec
from hnas.export.device.artifact import Artifact
from hnas.export.device.dynamic import DynamicSize
from hnas.export.device.errors import ExportError
from hnas.export.graph import dynamic
from hnas.export.graph.fusion import fuse_safely
from hnas.export.graph.program import capture
from tests.conftest import need
from tests.export.graph.test_dynamic import BATCH, Plain, Reader, X


def made(kind, backend, folder: Path, asked=BATCH):
    captured = capture(kind().eval(), X, asked)
    program, _ = fuse_safely(captured, backend)
    device = "jetson" if backend == "tensorrt" else f"{backend}-cpu"
    device = "onnxruntime-cpu" if backend == "reference" else device
    return captured, make_artifact(backend, program, folder, precision="fp32", device=hw_profiles.load(device))


@pytest.mark.parametrize("kind", [Plain, Reader])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "reference"])
def test_every_size_in_the_range_runs(kind, backend, tmp_path):
    need(backend, backends.load(backend).missing())
    captured, artifact = made(kind, backend, tmp_path, {"x": {0: "batch=1..6"}})
    runner = export.load(artifact)
    for count in (1, 4, 6, 2):
        x = torch.randn(count, 3, 8, 8).numpy()
        for want, have in zip(captured.arrays(x), runner(x), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the inputs have a batch of 7, the artifact takes a batch of 1 to 6"):
        runner(np.zeros((7, 3, 8, 8), np.float32))


def test_a_program_that_does_not_know_the_note_runs_the_size_of_the_examples(tmp_path):
    need("onnxruntime", backends.load("onnxruntime").missing())
    _, artifact = made(Plain, "onnxruntime", tmp_path)
    old = replace(artifact, notes={})
    assert export.load(old)(X.numpy())["scores"].shape == (1, 5)
    with pytest.raises(ValueError, match="the artifact takes float32"):
        export.load(old)(np.zeros((2, 3, 8, 8), np.float32))


def test_compile_verifies_several_sizes_and_catches_a_fixed_one(tmp_path, monkeypatch):
    need("onnxruntime", backends.load("onnxruntime").missing())
    options = export.CompileOptions(dynamic={"x": {0: "batch"}})
    artifact = export.compile(Reader(), X, device="onnxruntime-cpu", path=tmp_path / "net", options=options)
    assert DynamicSize.of(artifact) == DynamicSize("batch", 1, None, (0,), (0, 0, 0))
    # The converter now sees fixed sizes, while the record and the file's inputs promise open ones.
    monkeypatch.setattr(dynamic, "example_call", lambda program: (program.inputs, None))
    with pytest.raises(ExportError):
        export.compile(Reader(), X, device="onnxruntime-cpu", path=tmp_path / "fixed", options=options)
    assert not (tmp_path / "fixed").exists()


def test_tflite_refuses_and_names_who_takes_it(tmp_path):
    need("tflite", backends.load("tflite").missing())
    options = export.CompileOptions(dynamic={"x": {0: "batch"}})
    with pytest.raises(ValueError, match=r"tflite takes no dynamic size; onnxruntime, openvino, .* do") as caught:
        export.compile(Plain(), X, device="tflite-cpu", path=tmp_path / "net", options=options)
    assert "\n" not in str(caught.value)


def test_tensorrt_gets_a_profile(tmp_path):
    _, artifact = made(Plain, "tensorrt", tmp_path)
    command = artifact.notes["build"]["command"]
    assert "--minShapes=x:1x3x8x8 --optShapes=x:1x3x8x8 --maxShapes=x:8x3x8x8" in command
    size = DynamicSize.of(Artifact.read(tmp_path))
    assert size.high == 8
    assert trtexec.profile_shapes(artifact.inputs, size) == {"x": [(1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8)]}
    assert trtexec.shape_flags(artifact.inputs, None) == []
    dims = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 8, 8]


@pytest.mark.parametrize("kind", [Plain, Reader])
@pytest.mark.parametrize("recover", ["none", "round"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_is_right_at_three_sizes(backend, recover, kind, tmp_path):
    need(backend, backends.load(backend).missing())
    options = export.CompileOptions(dynamic={"x": {0: "batch=1..6"}}, recover=recover)
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    artifact = export.compile(
        kind(),
        X,
        device=f"{backend}-cpu",
        precision="int8",
        calibration=[images],
        path=tmp_path / "net",
        options=options,
    )
    assert artifact.notes["sizes"] == [1, 3, 6]
    net, runner = kind().eval(), export.load(artifact)
    for count in (1, 3, 6):
        with torch.no_grad():
            expected = net(images[:count])
        want = (expected["scores"] if kind is Plain else expected[0]).numpy()
        have = runner(images[:count].numpy())[0]
        assert np.square(have - want).mean() < 0.01 * np.square(want).mean()  # 20 dB


def test_int8_that_is_wrong_at_one_size_is_refused(tmp_path, monkeypatch):
    need("onnxruntime", backends.load("onnxruntime").missing())
    outputs = sizes.Worker.outputs

    def wrong(worker, samples):
        found = outputs(worker, samples)
        return [tuple(np.zeros_like(y) for y in each) for each in found] if len(samples[0][0]) == 6 else found

    monkeypatch.setattr(sizes.Worker, "outputs", wrong)
    options = export.CompileOptions(dynamic={"x": {0: "batch=1..6"}}, recover="none")
    with pytest.raises(ExportError, match="onnxruntime is wrong for a batch of 6: int8 fails") as caught:
        export.compile(
            Plain(),
            X,
            device="onnxruntime-cpu",
            precision="int8",
            calibration=[torch.randn(16, 3, 8, 8)],
            path=tmp_path / "net",
            options=options,
        )
    assert "\n" not in str(caught.value)
