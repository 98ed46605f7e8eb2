"""The programs of a card run without hnas and say what hnas says; the configuration of Triton is one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hnas.data.images import Preprocessing
from hnas.deployment.classifier import load
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle, write_bundle
from hnas.export.bundle.card import describe
from hnas.export.bundle.snippets import cpp_snippet, model_server_config, runtime_snippet, triton_config
from hnas.export.device.artifact import Artifact
from tests.benchmarks import bundles
from tests.conftest import need


def block(card: str, language: str, section: str) -> str:
    """Return the fenced block of a section of a card."""
    found = re.search(rf"## {section}.*?```{language}\n(.*?)```", card, re.DOTALL)
    assert found, f"no block of {language} in {section}"
    return found[1]


def bundled(tmp_path: Path, artifact: Artifact, preprocessing: Preprocessing, shape: tuple[int, ...]) -> Path:
    """Write a bundle of an artifact with ten classes."""
    manifest = replace(
        bundles.manifest(artifact, 0.5, "0" * 64),
        speedup=None,
        target=artifact.device,
        input=bundles.Input(shape, "float32", "NCHW", preprocessing.to_json()),
    )
    return write_bundle(tmp_path / "bundle", manifest, artifact=artifact).path


def run(program: str, folder: Path, *words: str) -> str:
    assert "hnas" not in program
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def photo(path: Path, seed: int, size: tuple[int, int] = (40, 52)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize("size", [(28, 28), (20, 24)])
def test_onnxruntime_says_what_hnas_says(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("onnxruntime")
    artifact = bundles.network(tmp_path / "net", 4, side=28) if size == (28, 28) else _open_sided(tmp_path, size)
    steps = Preprocessing((28, 28), size, (0.4,), (0.3,))
    folder = bundled(tmp_path, artifact, steps, (1, 1, *size))
    program = block((folder / "README.md").read_text(), "python", "Use without hnas")
    seen = set()
    for seed in range(3):
        image = photo(tmp_path / f"{seed}.png", seed)
        said = run(program.replace("print(json", "print(repr(outputs[0].tolist()))\nprint(json"), folder, str(image))
        scores, label = said.splitlines()
        expected = load(folder)._run(steps(steps.read(image)[None]))[0]
        assert np.allclose(np.array(eval(scores)), expected, atol=1e-4)  # printed just now
        assert label == load(folder).predict(image)[0][0]
        seen.add(scores)
    assert len(seen) == 3, "the image does not matter"


def _open_sided(tmp_path: Path, size: tuple[int, int]) -> Artifact:
    """Return the same network for another input: its convolutions and its mean take any size."""
    onnx = pytest.importorskip("onnx")
    artifact = bundles.network(tmp_path / "net", 4)
    model = onnx.load(artifact.model)
    for at, side in zip((2, 3), size, strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[at].dim_value = side
    onnx.save(model, artifact.model)
    inputs = (replace(artifact.inputs[0], shape=(1, 1, *size)),)
    changed = replace(artifact, inputs=inputs, files=bundles.digest_files(artifact.path, "model.onnx"))
    changed.write()
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "precision"),
    [("onnxruntime-cpu", "int8"), ("openvino-cpu", "fp32"), ("openvino-cpu", "int8"), ("tflite-cpu", "fp32"),
     ("tflite-cpu", "int8")],
)  # fmt: skip
def test_every_runtime_says_what_hnas_says(tmp_path: Path, device: str, precision: str) -> None:
    torch: Any = pytest.importorskip("torch")
    from hnas import export, hw_profiles

    backend = hw_profiles.load(device).backend
    need(backend, backends.load(backend).missing())
    layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net = torch.nn.Sequential(*layers, torch.nn.Linear(8, 10)).eval()
    steps = Preprocessing((24, 28), (24, 28), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    images = [photo(tmp_path / f"{seed}.png", seed) for seed in range(8)]
    samples = [(torch.from_numpy(steps(steps.read(image)[None])),) for image in images]
    calibration = samples if precision == "int8" else None
    artifact = export.compile(
        net, samples[0], device=device, precision=precision, calibration=calibration, path=tmp_path / "net"
    )
    folder = bundled(tmp_path, artifact, steps, (1, 3, 24, 28))
    program = block((folder / "README.md").read_text(), "python", "Use without hnas")
    said = run(program.replace("print(json", "print(repr(outputs[0].tolist()))\nprint(json"), folder, str(images[0]))
    scores, label = said.splitlines()[-2:]
    expected = load(folder)._run(steps(steps.read(images[0])[None]))[0]
    assert np.allclose(np.array(eval(scores)), expected, atol=1e-4)  # printed just now
    assert label == load(folder).predict(images[0])[0][0]


def test_a_network_without_images_runs_on_zeros(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    artifact = bundles.network(tmp_path / "net", 4)
    manifest = replace(bundles.manifest(artifact, 0.5, "0" * 64), speedup=None, input=None)
    folder = write_bundle(tmp_path / "bundle", manifest, artifact=artifact).path
    assert run(block((folder / "README.md").read_text(), "python", "Use without hnas"), folder) == "[(1, 10)]"


@pytest.mark.parametrize("value", [None, 5, "x", [1], [1, float("nan")], ["a", "b"], [True, True], {"a": 1}])
def test_steps_that_cannot_be_are_left_out(tmp_path: Path, value: object) -> None:
    artifact = bundles.network(tmp_path / "net", 4)
    manifest = bundles.manifest(artifact, 0.5, "0" * 64)
    assert "Image" in runtime_snippet(manifest, artifact)
    for key in ("base", "size", "mean", "std"):
        steps = {**bundles.PREPROCESSING.to_json(), key: value if value != [1] or key in ("base", "size") else None}
        spoilt = replace(manifest, input=replace(manifest.input, preprocessing=steps))
        assert "Image" not in runtime_snippet(spoilt, artifact)


def test_no_text_of_a_bundle_leaves_its_block(tmp_path: Path) -> None:
    artifact = bundles.network(tmp_path / "net", 4)
    evil = 'x"\n```\n# owned\n"'
    named = replace(artifact, inputs=(replace(artifact.inputs[0], name=evil),))
    text = triton_config(replace(bundles.manifest(artifact, 0.5, "0" * 64), name="a```b"), named)
    assert "\n```" not in text
    assert '"x\\"\\n```\\n# owned\\n\\""' in text


def test_the_configuration_of_triton_is_one_and_names_the_tensors_of_the_file(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    artifact = bundles.network(tmp_path / "net", 4)
    config = triton_config(bundles.manifest(artifact, 0.5, "0" * 64), artifact)
    session = ort.InferenceSession(str(artifact.model), providers=["CPUExecutionProvider"])
    names = re.findall(r'\{ name: "(\w+)" data_type: TYPE_FP32', config)
    assert names == [each.name for each in (*session.get_inputs(), *session.get_outputs())]
    grpc = pytest.importorskip(
        "tritonclient.grpc", reason="tritonclient is not installed; pip install tritonclient[grpc]"
    )
    from google.protobuf import text_format

    found = text_format.Parse(config, grpc.model_config_pb2.ModelConfig())
    assert (found.backend, found.max_batch_size, found.default_model_filename) == ("onnxruntime", 0, "model.onnx")
    assert list(found.input[0].dims) == [1, 1, 28, 28]
    assert found.parameters["intra_op_thread_count"].string_value == "1"


@pytest.fixture
def compiler(tmp_path: Path) -> dict[str, str]:
    """Return an environment with g++, and this Python as ``python``."""
    openvino = pytest.importorskip("openvino")
    if shutil.which("g++") is None:
        pytest.skip("no g++; apt-get install g++")
    if not (Path(openvino.__file__).parent / "include" / "openvino" / "openvino.hpp").is_file():
        pytest.skip("this build of openvino has no headers; its wheel on PyPI has them")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_openvino_in_cpp_says_what_hnas_says(tmp_path: Path, compiler: dict[str, str]) -> None:
    import openvino

    artifact = bundles.network(tmp_path / "net", 4, backend="openvino")
    openvino.save_model(openvino.Core().read_model(artifact.model), artifact.path / "model.xml", compress_to_fp16=False)
    artifact = replace(artifact, files=bundles.digest_files(artifact.path, "model.xml", "model.bin"))
    artifact.write()
    folder = bundled(tmp_path, artifact, bundles.PREPROCESSING, (1, 1, 28, 28))
    card = (folder / "README.md").read_text()
    work = tmp_path / "work"
    work.mkdir()
    (work / "run.cpp").write_text(block(card, "cpp", "Use without hnas, in C"))

    def shell(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=work, env=compiler, capture_output=True, text=True, check=False, timeout=240)

    built = shell("bash", "-euc", block(card, "bash", "Use without hnas, in C"))
    assert built.returncode == 0, built.stderr
    image = np.random.default_rng(0).normal(size=(1, 1, 28, 28)).astype(np.float32)
    image.tofile(work / "x.bin")
    (work / "long.bin").write_bytes(image.tobytes() + b"x")
    done = shell("./run", str(folder), "x.bin")
    assert (done.returncode, done.stdout) == (0, "f32 [1,10]\n"), done.stderr
    outputs = np.fromfile(work / "output0.bin", np.float32)
    assert np.allclose(outputs, load(folder)._run(image)[0], atol=1e-5)
    for words in ((), ("run.cpp",), ("long.bin",)):
        refused = shell("./run", str(folder), *words)
        assert (refused.returncode, refused.stderr) == (2, "input 0 is a file of 3136 bytes\n"), words


def test_the_options_of_cpp_are_those_of_the_artifact(tmp_path: Path) -> None:
    artifact = replace(bundles.network(tmp_path / "net", 4, backend="openvino"), precision="w8", threads=3)
    manifest = bundles.manifest(artifact, 0.5, "0" * 64)
    text = cpp_snippet(manifest, artifact)
    for line in (
        '{"INFERENCE_PRECISION_HINT", "f32"}', '{"INFERENCE_NUM_THREADS", 3}', '{"DYNAMIC_QUANTIZATION_GROUP_SIZE", 0}'
    ):  # fmt: skip
        assert line in text
    assert "GROUP_SIZE" not in cpp_snippet(manifest, replace(artifact, precision="int8"))
    open_batch = (replace(artifact.inputs[0], shape=(0, 1, 28, 28)),)
    for other in ({"backend": "onnxruntime"}, {"precision": "fp16"}, {"inputs": ()}, {"inputs": open_batch}):
        assert cpp_snippet(manifest, replace(artifact, **other)) == ""


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8"])
def test_openvino_takes_the_options_of_the_model_server(tmp_path: Path, precision: str) -> None:
    openvino = pytest.importorskip("openvino")
    artifact = replace(bundles.network(tmp_path / "net", 4), backend="openvino", precision=precision, threads=2)
    manifest = replace(bundles.manifest(artifact, 0.5, "0" * 64), name='a"b')
    card = describe(manifest, artifact)
    (entry,) = json.loads(block(card, "json", "OpenVINO Model Server"))["model_config_list"]
    assert set(entry) == {"config"}  # the server refuses what it does not know
    assert set(entry["config"]) == {"name", "base_path", "plugin_config"}
    assert entry["config"]["name"] == manifest.name
    given = entry["config"]["plugin_config"]
    compiled = openvino.Core().compile_model(artifact.model, "CPU", given)
    assert {name: str(compiled.get_property(name)) for name in given} == {
        **given, "INFERENCE_PRECISION_HINT": "<Type: 'float32'>"
    }  # fmt: skip
    assert model_server_config(manifest, replace(artifact, backend="onnxruntime")) == ""
    assert model_server_config(manifest, replace(artifact, precision="fp16")) == ""


def test_the_card_of_an_old_bundle_and_of_another_backend_has_no_program(tmp_path: Path) -> None:
    artifact = bundles.network(tmp_path / "net", 4)
    manifest = bundles.manifest(artifact, 0.5, "0" * 64)
    assert runtime_snippet(manifest, replace(artifact, backend="reference")) == ""
    assert runtime_snippet(manifest, replace(artifact, inputs=())) == ""
    assert triton_config(manifest, replace(artifact, backend="tflite")) == ""
    folder = bundled(tmp_path, artifact, bundles.PREPROCESSING, (1, 1, 28, 28))
    assert read_bundle(folder).digest
