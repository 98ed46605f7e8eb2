"""Test TensorRT without a GPU: the checks before a build, and the device's half with recorded formats and a fake
trtexec.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from hnas.export.backends.tensorrt import convert as backend
from hnas.export.backends.tensorrt import rules as tensorrt_rules
from hnas.export.device import cudart, trtexec
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.runtimes import tensorrt as runtime
from tests.export import fake_trtexec

X = np.array([[-1, 0.5, 2]], np.float32)
LAYERS = {
    "Layers": [
        {"Name": "Reformatting CopyNode for Input TensorSpec 0", "LayerType": "Reformat", "Inputs": [], "Outputs": []},
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [],
        },
    ]
}


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cudart, "library", object)
    monkeypatch.setattr(cudart, "architecture", lambda: "87")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "model.onnx").write_bytes(b"onnx")
    x, y = (TensorSpec(name, X.shape, "float32") for name in "xy")
    files = digest_files(tmp_path / "net", "model.onnx")
    return Artifact(tmp_path / "net", "tensorrt", "fp16", "jetson", 1, (x,), (y,), files)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a fake trtexec of some version on PATH, and returns the file of its calls."""

    def install(version: str) -> Path:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        return fake_trtexec.install(tmp_path, version, LAYERS)

    return install


# --- the device's half ------------------------------------------------------------------------------------------------


def test_an_engine_of_another_device_is_refused() -> None:
    here = {"sm": "87", "tensorrt": "10.3.0", "model": "a" * 64}
    runtime.check_engine(here, here)
    for key, found in (("sm", "86"), ("tensorrt", "8.6.2"), ("model", "b" * 64)):
        with pytest.raises(ExportError, match=r"^the engine is for .* build it here$"):
            runtime.check_engine({**here, key: found}, here)


def test_trtexec_builds_runs_and_times(net: Artifact, tool: Callable[[str], Path]) -> None:
    calls = tool("100300")
    runner = runtime.load(net)
    np.testing.assert_array_equal(runner(X)[0], np.maximum(X, 0))
    assert runner.times([X], 7) == pytest.approx([0.0004444] * 7)
    np.testing.assert_allclose(runner.part_times([X], 7), [(0.0001875, 0.0004444)] * 7)  # 0.125 ms there, 0.0625 back
    assert (runner.report["tensorrt"], runner.report["sm"], runner.report["by"]) == ("10.3.0", "87", "trtexec")
    assert len(runner.report["builds"]) == runtime.BUILDS
    builds = [line for line in calls.read_text().splitlines() if "onnx" in line]
    assert len(builds) == runtime.BUILDS
    assert "skipInference" in builds[0]
    assert "timingCacheFile" in builds[0]
    assert "--fp16" in builds[0]
    kept = runtime.engine_folder(net)
    assert sorted(path.name for path in kept.iterdir()) == ["layers.json", "model.engine", "model.engine.json"]
    assert (kept.parent / "timing-87-10.3.0.cache").read_text() == "tactics"
    assert [path.name for path in net.path.iterdir()] == ["model.onnx"]
    runtime.load(net)
    assert len([line for line in calls.read_text().splitlines() if "onnx" in line]) == runtime.BUILDS  # none again
    tool("8502")
    with pytest.raises(ExportError, match=r"the engine is for TensorRT 10\.3\.0, here is 8\.5\.2"):
        runtime.load(net)


def test_an_old_trtexec_is_asked_in_its_own_words(net: Artifact, tool: Callable[[str], Path]) -> None:
    calls = tool("8502")
    assert runtime.load(net).report["tensorrt"] == "8.5.2"
    assert "buildOnly" in calls.read_text()
    assert "skipInference" not in calls.read_text()


def test_a_build_that_fails_is_one_line(net: Artifact, tool: Callable[[str], Path]) -> None:
    tool("100300")
    (net.path / "model.onnx").write_bytes(b"bad")
    with pytest.raises(ExportError, match=r"^trtexec failed: Error\[4\]: cannot build this$"):
        runtime.load(net)


def test_what_a_device_reports_becomes_figures(net: Artifact, tool: Callable[[str], Path]) -> None:
    tool("8602")
    found = backend.engine_figures(runtime.load(net).report)
    assert (found["layers"], found["reformats"], found["precisions"]) == (2, 1, {"i8": 1})
    assert (found["spread"], found["built_by"], found["tensorrt"]) == (pytest.approx(0.0), "trtexec", "8.6.2")
    assert len(found["build_medians_ms"]) == runtime.BUILDS


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec", "8.5.2"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b33] # trtexec", "10.3.0"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # trtexec", "10.16.1"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b5] # trtexec", "11.4.1"),
        ("[I] TensorRT version: 8.6.2", "8.6.2"),
    ],
)
def test_the_version_of_trtexec(banner: str, version: str) -> None:
    assert trtexec.read_version(banner) == version


def test_what_trtexec_did_not_write_is_one_line(net: Artifact) -> None:
    for text in ("", "{}", "[{}]", '[{"name": "z", "values": []}]', '[{"name": "y", "values": [1]}]', "[1"):
        with pytest.raises(ExportError, match="these are not outputs of trtexec") as caught:
            trtexec.read_outputs(text, net.outputs)
        assert "\n" not in str(caught.value)
    for text in ("", "[{}]", "[1]"):
        with pytest.raises(ExportError, match="these are not times of trtexec"):
            trtexec.read_gpu_times(text)
    with pytest.raises(ExportError, match="does not say its version"):
        trtexec.read_version("hello")
    odd = trtexec.read_outputs('[{"name": "y", "values": [ nan, -inf, 1e-3 ]}]', net.outputs)[0]
    assert np.isnan(odd[0, 0])
    assert odd[0, 1] == -np.inf


def test_the_bindings_build_thrice_and_run(net: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the library and the GPU's memory by fakes; the context computes max(x, 0) at the given addresses."""
    addresses: dict[str, int] = {}
    buffers: dict[int, Any] = {}
    clock = [0.0]

    def allocate(size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def execute(stream: int) -> bool:
        x = np.frombuffer(buffers[addresses["x"]], np.float32)
        np.frombuffer(buffers[addresses["y"]], np.float32)[:] = np.maximum(x, 0)
        clock[0] += 1.0
        return stream == 5

    def copy(target: int, source: int, size: int, kind: int) -> None:
        clock[0] += 0.25 * kind
        ctypes.memmove(target, source, size)

    trt = MagicMock(__version__="10.3.0")
    trt.Builder().build_serialized_network.side_effect = [b"one", b"two", b"three"]
    trt.Builder().create_builder_config().get_timing_cache().serialize.return_value = b"tactics"
    engine = trt.Runtime().deserialize_cuda_engine()
    engine.create_engine_inspector().get_engine_information.return_value = json.dumps(LAYERS)
    context = engine.create_execution_context()
    context.set_tensor_address.side_effect = addresses.__setitem__
    context.execute_async_v3.side_effect = execute
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(runtime, "find_spec", lambda name: name == "tensorrt")
    monkeypatch.setattr(runtime._Logger, "create", lambda _: MagicMock())
    monkeypatch.setattr(cudart, "allocate", allocate)
    monkeypatch.setattr(cudart, "free", buffers.pop)
    monkeypatch.setattr(cudart, "stream", lambda: (5, lambda: None))
    monkeypatch.setattr(cudart, "copy", copy)
    monkeypatch.setattr(runtime, "perf_counter", lambda: clock[0])
    runner = runtime.load(net)
    np.testing.assert_array_equal(runner(X)[0], np.maximum(X, 0))
    assert runner.copied == 0.25 * (cudart.TO_DEVICE + cudart.TO_HOST)  # by the planted clock; the call took 1 s more
    assert backend.engine_figures(runner.report)["built_by"] == "python"
    assert len(runner.report["builds"]) == 3
    assert (runtime.engine_folder(net) / "model.engine").read_bytes() in (b"one", b"two", b"three")
    del runner
    assert not buffers  # all GPU memory was freed


def test_cuda_is_called_as_its_header_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the arguments of a fake library that fills in the results of CUDA."""
    called: list[tuple[Any, ...]] = []

    def answer(name: str, value: int) -> Callable[..., int]:
        def function(*arguments: Any) -> int:
            called.append((name, *(getattr(each, "value", None) for each in arguments[1:])))
            arguments[0]._obj.value = value
            return 0

        return function

    text = MagicMock(return_value=b"out of memory")
    library = SimpleNamespace(
        cudaMalloc=answer("malloc", 4096),
        cudaDeviceGetAttribute=answer("attribute", 8),
        cudaFree=lambda place: 2,
        cudaGetErrorString=text,
    )
    monkeypatch.setattr(cudart, "library", lambda: library)
    assert cudart.allocate(64) == 4096
    assert cudart.architecture() == "88"
    assert called == [("malloc", 64), ("attribute", 75, 0), ("attribute", 76, 0)]
    with pytest.raises(ExportError, match=r"^CUDA failed: cudaFree gave 2, out of memory$"):
        cudart.free(4096)


def test_without_tensorrt_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, net: Artifact) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda _: None)
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    with pytest.raises(Unavailable, match="on a Jetson it comes with JetPack, or deploy with --host ssh://"):
        runtime.load(net)
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: "/bin/true")
    monkeypatch.setattr(cudart, "library", lambda: None)
    with pytest.raises(Unavailable, match="libcudart is not installed"):
        runtime.load(net)


# --- said before a build ----------------------------------------------------------------------------------------------


def said(tmp_path: Path, nodes: Any, constants: dict[str, Any], precision: str = "int8", newest: Any = None) -> Any:
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, (1, 32, 8, 8)) for name in "xy"]
    values = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = [onnx.helper.make_node(kind, ins.split(), outs.split(), kind, **rest) for kind, ins, outs, rest in nodes]
    graph = onnx.helper.make_graph(made, "g", ends[:1], ends[1:], values)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    return tensorrt_rules.check_model(tmp_path / "m.onnx", precision, newest)


ONE, S8, U8 = np.ones((), np.float32), np.zeros((), np.int8), np.zeros((), np.uint8)


@pytest.mark.parametrize(
    ("nodes", "constants", "newest", "says"),
    [
        pytest.param([("ConvInteger", "x w", "y", {})], {}, None, "TensorRT has no ConvInteger", id="1"),
        pytest.param([("Hardmax", "x", "y", {})], {}, (8, 5), "TensorRT has no Hardmax", id="1-old"),
        pytest.param(
            [("LayerNormalization", "x s", "y", {})], {}, (8, 5),
            "LayerNormalization needs TensorRT 8.6, the device has 8.5; choose a net without it", id="1-since",
        ),
        pytest.param([("Add", "x d", "y", {})], {"d": np.ones(1)}, None, "d is float64", id="3"),
        pytest.param(
            [("QuantizeLinear", "x s z", "y", {})], {"s": ONE, "z": S8 + np.int8(3)}, None,
            "QuantizeLinear has a zero point other than 0; TensorRT's quantisation is symmetric", id="4",
        ),
        pytest.param(
            [("QuantizeLinear", "x s z", "y", {})], {"s": ONE, "z": U8}, None,
            "QuantizeLinear is of UINT8, TensorRT quantises to int8", id="4-u8",
        ),
        pytest.param(
            [("DequantizeLinear", "b s", "y", {})], {"b": np.zeros(3, np.int32), "s": ONE},
            None, "b is dequantised from int32, which TensorRT's parser refuses; keep biases float", id="5",
        ),
        pytest.param(
            [("Reshape", "w x", "y", {})], {"w": np.zeros(3, np.int8)}, None,
            "Reshape reads the quantised constant w; only a dequantiser may", id="6",
        ),
    ],
)  # fmt: skip
def test_what_tensorrt_would_refuse(tmp_path: Path, nodes: Any, constants: Any, newest: Any, says: str) -> None:
    refused, _ = said(tmp_path, nodes, constants, newest=newest)
    assert len(refused) == 1
    assert refused[0].startswith(says)


def test_a_shape_that_is_not_fixed_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ("batch", 3)) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    refused, _ = tensorrt_rules.check_model(tmp_path / "m.onnx", "fp32", None)
    assert refused[0] == "x has no fixed shape; export the net with one"


def test_what_tensorrt_would_run_badly(tmp_path: Path) -> None:
    weight = {"w": np.zeros((20, 32, 1, 1), np.float32)}
    assert said(tmp_path, [("Conv", "x w", "y", {})], weight, "fp16").slow == (
        "1 layer(s) have channels that are no multiple of 8 (one is 20x32x1x1): fp16 vectors are padded there",
    )
    assert said(tmp_path, [("Conv", "x w", "y", {})], {"w": np.zeros((32, 32, 1, 1), np.float32)}).slow == ()
    assert said(tmp_path, [("Conv", "x w", "y", {"group": 32})], {"w": np.zeros((32, 1, 3, 3), np.float32)}).slow == ()
    assert said(tmp_path, [("Conv", "x w", "y", {})], weight, "fp32").slow == ()
    half = [("DequantizeLinear", "x s z", "a", {}), ("Relu", "x", "b", {}), ("Add", "a b", "y", {})]
    (slow,) = said(tmp_path, half, {"s": ONE, "z": S8}).slow
    assert slow == "Add has one quantised input and one float one: it stays a separate kernel"
    assert said(tmp_path, half, {"s": ONE, "z": S8}).refused == ()
