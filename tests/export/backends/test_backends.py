"""Every backend computes at the precision that it states, on every named network, from its saved files."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Unavailable
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.proof.verification import check
from tests.export import nets

Arrays = tuple[NDArray[Any], ...]
DEVICES = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino-cpu", "tflite": "tflite-cpu", "tensorrt": "jetson"}
FOLDERS: list[TemporaryDirectory[str]] = []  # of the cached artifacts
HYBRID_ATTENTIONS = 1  # each has two products of activations, which stay in fp16
INT8_FLOOR_DB = 30.0  # measured: 33 to 43; known faults of the runtimes result in 2 to 21
NETS = [
    name if name in ("hybrid", "two_by_two") else pytest.param(name, marks=pytest.mark.slow) for name in nets.SHAPES
]


def need(backend: str) -> None:
    """Skip if the backend cannot compile and run; fail instead if HNAS_REQUIRE lists it."""
    runtime = "onnxruntime" if backend == "tensorrt" else backend
    message = backends.load(runtime).missing()
    if message and backend in os.environ.get("HNAS_REQUIRE", "").split(","):
        pytest.fail(message)
    if message:
        pytest.skip(message)


def smooth(shape: tuple[int, ...], generator: torch.Generator) -> NDArray[Any]:
    """Return an image that varies slowly, as real ones do. Noise averages out in a network and hides int8 errors."""
    if len(shape) < 4:
        return torch.randn(shape, generator=generator).numpy()
    coarse = torch.randn((*shape[:2], 4, 4), generator=generator)
    return nn.functional.interpolate(coarse, shape[2:], mode="bicubic", align_corners=True).numpy()


def images(program: Program, seed: int, count: int) -> list[Arrays]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(smooth(tuple(x.shape), generator) for x in program.inputs) for _ in range(count)]


class Wide(nn.Module):
    """Have so many weights that they dominate the size of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 64, 3, 2), nn.Conv2d(64, 128, 3, 2)
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


@cache
def program(name: str) -> Program:
    torch.set_num_threads(1)
    if name == "wide":
        torch.manual_seed(0)
        return fuse(capture(Wide().eval(), torch.randn(1, 1, 16, 16)))
    return fuse(capture(*nets.build(name)))


@cache
def artifact(backend: str, name: str, precision: str) -> Artifact:
    need(backend)
    folder = TemporaryDirectory()
    FOLDERS.append(folder)
    return compiled(backend, program(name), precision, Path(folder.name))


def compiled(backend: str, source: Program, precision: str, path: Path, device: str = "") -> Artifact:
    return make_artifact(
        backend,
        source,
        path,
        precision=precision,
        device=hw_profiles.load(device or DEVICES[backend]),
        calibration=images(source, 1, 32) if precision == "int8" else None,
    )


def opened(built: Artifact) -> runtimes.Runner:
    return backends.load(str(built.notes.get("verify_with", built.backend))).load(Artifact.read(built.path))


def sqnr_db(backend: str, name: str, precision: str) -> float:
    source, runner = program(name), opened(artifact(backend, name, precision))
    evidence = images(source, 2, 16)
    found = check([source.arrays(*x) for x in evidence], [runner(*x) for x in evidence], precision)
    return found.sqnr_db


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    yield
    artifact.cache_clear()
    while FOLDERS:
        FOLDERS.pop().cleanup()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("backend", DEVICES)
def test_fp32_is_fp32(backend: str, name: str) -> None:
    assert sqnr_db(backend, name, "fp32") >= 90


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("backend", DEVICES)
def test_int8_keeps_the_signal(backend: str, name: str) -> None:
    assert sqnr_db(backend, name, "int8") >= INT8_FLOOR_DB


@pytest.mark.parametrize("name", NETS)
def test_tensorrt_fp16_keeps_the_signal(name: str) -> None:
    assert sqnr_db("tensorrt", name, "fp16") >= 60


@pytest.mark.parametrize("name", NETS)
def test_openvino_bf16_is_bf16_and_fp32_is_not(name: str) -> None:
    need("openvino")
    try:
        found = sqnr_db("openvino", name, "bf16")
    except Unavailable as error:
        pytest.skip(str(error))
    assert 30 <= found < 90


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", NETS)
def test_tflite_graph_is_one_piece(name: str, precision: str) -> None:
    notes = artifact("tflite", name, precision).notes
    assert (notes["delegates"], notes["undelegated"]) == (1, 0)


@pytest.mark.parametrize("backend", [name for name in DEVICES if name != "tensorrt"])
def test_int8_file_is_smaller(backend: str) -> None:
    assert artifact(backend, "wide", "int8").size_bytes < artifact(backend, "wide", "fp32").size_bytes / 2


def test_tensorrt_int8_file_is_smaller() -> None:
    """The second file, for TensorRT 8, is not counted: a device opens one of the two."""
    folders = [artifact("tensorrt", "wide", precision).path for precision in ("int8", "fp32")]
    sizes = [sum(file.stat().st_size for file in each.iterdir() if "trt8" not in file.name) for each in folders]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("backend", DEVICES)
def test_bound_call_runs_what_a_call_runs(backend: str) -> None:
    source, runner = program("two_by_two"), opened(artifact(backend, "two_by_two", "fp32"))
    first, second = images(source, 3, 2)
    for value in first:
        value.setflags(write=False)  # as arrays from a pipe are
    expected = runner(*first)
    call = runner.bind(*first)
    call()
    call()
    runner(*second)
    assert all(np.array_equal(a, b) for a, b in zip(expected, runner(*first), strict=True))
    assert [value.shape for value in expected] == [tensor.shape for tensor in runner.artifact.outputs]


@pytest.mark.parametrize("backend", DEVICES)
def test_outputs_of_a_call_survive_the_next(backend: str) -> None:
    source, runner = program("two_by_two"), opened(artifact(backend, "two_by_two", "fp32"))
    first, second = images(source, 3, 2)
    kept = runner(*first)
    copies = [value.copy() for value in kept]
    runner(*second)
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("backend", DEVICES)
def test_wrong_inputs_are_one_line(backend: str) -> None:
    runner = opened(artifact(backend, "two_by_two", "fp32"))
    with pytest.raises(ValueError, match=r"^inputs are float32\[2\], the artifact takes float32\[1, 1, 8, 8\], .*4\]$"):
        runner(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="inputs are float64"):
        runner(np.zeros((1, 1, 8, 8)), np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("backend", DEVICES)
def test_wrong_use_is_one_line(backend: str, tmp_path: Path) -> None:
    need(backend)
    device, source = hw_profiles.load(DEVICES[backend]), program("two_by_two")
    with pytest.raises(ValueError, match=r"got 'int4'$"):
        make_artifact(backend, source, tmp_path, precision="int4", device=device)
    with pytest.raises(ValueError, match="int8 needs calibration inputs"):
        make_artifact(backend, source, tmp_path, precision="int8", device=device, calibration=[])


@pytest.mark.parametrize("backend", DEVICES)
def test_compiling_is_quiet(backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need(backend)
    opened(compiled(backend, program("two_by_two"), "int8", tmp_path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_loading_needs_the_runtime_alone(backend: str) -> None:
    built = artifact(backend, "two_by_two", "int8")
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'nncf', 'litert_torch', 'ai_edge_quantizer', 'jax', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np\n"
        "from hnas.export import backends\n"
        "from hnas.export.device.artifact import Artifact\n"
        "artifact = Artifact.read(sys.argv[1])\n"
        "backend = backends.load(artifact.backend)\n"
        "assert backend.missing() is None and backend.versions()\n"
        "inputs = [np.ones(x.shape, x.dtype) for x in artifact.inputs]\n"
        "print(*[y.shape for y in backend.load(artifact)(*inputs)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, built.path], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("(1, 5) (1, 2, 4, 4)", "")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_bare_model_file_opens(backend: str) -> None:
    """A bare flatbuffer takes inputs in the layout of the file."""
    built = artifact(backend, "wide", "fp32")
    bare = backends.load(backend).load(Artifact.read(built.model))
    x = np.ones(built.inputs[0].shape, np.float32)
    given = x.transpose(0, 2, 3, 1) if backend == "tflite" else x
    assert np.array_equal(bare(given)[0], opened(built)(x)[0])


def test_openvino_is_pinned() -> None:
    model = opened(artifact("openvino", "two_by_two", "fp32"))._request.get_compiled_model()
    names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "INFERENCE_PRECISION_HINT")
    threads, streams, precision = (model.get_property(name) for name in names)
    assert (threads, streams, precision.to_string()) == (1, 1, "f32")


def test_openvino_opens_no_artifact_of_a_precision_that_it_lacks() -> None:
    built = artifact("openvino", "two_by_two", "fp32")
    with pytest.raises(ValueError, match="openvino runs fp32, bf16, int8, w8 on a CPU, got 'fp16'"):
        backends.load("openvino").load(replace(built, precision="fp16"))


def test_onnxruntime_is_pinned() -> None:
    session = opened(artifact("onnxruntime", "two_by_two", "fp32"))._session
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_tflite_keeps_the_order_of_many_inputs() -> None:
    need("tflite")
    module = runtimes.load("tflite")
    names = [f"serving_default_args_{index}:0" for index in (0, 1, 10, 2)]
    details = [{"name": name, "index": index} for index, name in enumerate(names)]
    assert module.indices(details) == [0, 1, 3, 2]
