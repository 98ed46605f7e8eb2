"""Test ONNX Runtime's providers for a GPU with planted ones: options, refusals and calls. Nothing runs on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnas.export.device import gpu_providers, trtexec
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.device.errors import ExportError
from hnas.export.device.gpu_providers import CUDA, TENSORRT, ProviderRunner
from hnas.export.device.runtimes import tensorrt as runtime

X = np.array([[-1, 0.5, 2]], np.float32)


class Session:
    """Compute max(x, 0) behind the interface of ONNX Runtime, as the provider that is planted."""

    dead: tuple[str, ...] = ()  # providers that are listed and do not start

    def __init__(self, path: str | bytes, options: Any, providers: list[Any]) -> None:
        if isinstance(path, bytes):
            self.started = "CPUExecutionProvider" if providers[0] in self.dead else providers[0]
            return
        self.asked, self.entries, self.calls = providers[0], options.entries, list[str]()
        if "broken" in Path(path).read_text():
            raise RuntimeError("node Det was assigned to CPUExecutionProvider\nmore")
        self.started = "CPUExecutionProvider" if "driverless" in Path(path).read_text() else self.asked[0]

    def get_providers(self) -> list[str]:
        return [self.started]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y")]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        assert names == ["y"]
        return [np.maximum(feed["x"], 0)]

    def io_binding(self) -> Any:
        said = self.calls
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, value: said.append(f"{name} in {value}"),
            bind_output=lambda name, device, index: said.append(f"{name} to {device}:{index}"),
            synchronize_outputs=lambda: said.append("waited"),
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self.calls.append("ran")


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.log_severity_level = 0

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that plants an ONNX Runtime with some providers, and returns an artifact."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    monkeypatch.setattr(runtime, "find_spec", lambda _: None)

    def planted(*providers: str, dead: tuple[str, ...] = (), precision: str = "fp16", text: str = "onnx") -> Artifact:
        module = SimpleNamespace(
            get_available_providers=lambda: [*providers, "CPUExecutionProvider"],
            InferenceSession=type("Planted", (Session,), {"dead": dead}),
            SessionOptions=Options,
            OrtValue=SimpleNamespace(ortvalue_from_numpy=lambda value, device, index: f"{device}:{index}"),
            __version__="1.99",
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        gpu_providers._starts.cache_clear()
        monkeypatch.setattr(gpu_providers, "find_spec", lambda _: True)
        (tmp_path / "model.onnx").write_text(text)
        ends = (TensorSpec("x", X.shape, "float32"),), (TensorSpec("y", X.shape, "float32"),)
        return Artifact(tmp_path, "tensorrt", precision, "cuda", 1, *ends, digest_files(tmp_path, "model.onnx"))

    yield planted
    gpu_providers._starts.cache_clear()


@pytest.mark.parametrize(("providers", "chosen"), [((CUDA, TENSORRT), TENSORRT), ((CUDA,), CUDA)])
def test_the_runtime_takes_the_best_provider_and_never_the_cpu(plant: Any, providers: Any, chosen: str) -> None:
    artifact = plant(*providers)
    assert runtime.missing() is None
    assert runtime.versions() == {"onnxruntime": "1.99", "provider": chosen}
    runner = runtime.load(artifact)
    assert runner.report == {"by": f"onnxruntime {chosen}"}
    assert runner._session.entries["session.disable_cpu_ep_fallback"] == "1"
    np.testing.assert_array_equal(runner(X)[0], np.maximum(X, 0))
    call = runner.bind(X)
    call()
    assert runner._session.calls == ["x in cuda:0", "y to cuda:0", "ran", "waited"]


def test_precisions_become_options(plant: Any, tmp_path: Path) -> None:
    def asked(precision: str, *providers: str) -> dict[str, str]:
        options: dict[str, str] = ProviderRunner(plant(*providers, precision=precision), tmp_path / "e")._session.asked[
            1
        ]
        return options

    assert [asked(each, TENSORRT)["trt_fp16_enable"] for each in ("fp32", "fp16", "int8")] == ["0", "1", "1"]
    assert [asked(each, TENSORRT)["trt_int8_enable"] for each in ("fp32", "fp16", "int8")] == ["0", "0", "1"]
    assert asked("fp32", CUDA)["use_tf32"] == "0"


def test_what_a_provider_cannot_do_is_one_line(plant: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"^{CUDA} computes quantised layers in float; int8 needs TensorRT"):
        ProviderRunner(plant(CUDA, precision="int8"), tmp_path)
    with pytest.raises(
        ExportError, match=f"^{CUDA} does not take the whole network: RuntimeError: node Det was assigned to CPU.*r$"
    ):
        ProviderRunner(plant(CUDA, text="broken"), tmp_path)
    with pytest.raises(ExportError, match=f"^{CUDA} does not start here, ONNX Runtime would use CPUExecutionProvider$"):
        ProviderRunner(plant(CUDA, text="driverless"), tmp_path)


def test_an_onnxruntime_for_cpus_is_no_gpu(plant: Any) -> None:
    plant()
    assert gpu_providers.gpu_provider() is None
    assert "not installed" in str(runtime.missing())
    assert runtime.versions() == {}


def test_a_listed_provider_that_does_not_start_is_passed_over(plant: Any) -> None:
    artifact = plant(TENSORRT, CUDA, dead=(TENSORRT,))
    assert runtime.versions()["provider"] == CUDA
    assert runtime.load(artifact).report == {"by": f"onnxruntime {CUDA}"}
    plant(TENSORRT, CUDA, dead=(TENSORRT, CUDA))
    assert "not installed" in str(runtime.missing())


def test_the_probe_opens_in_onnxruntime() -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(gpu_providers._RELU, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.float32([-1])})[0].tolist() == [0]
    assert not gpu_providers._starts("NoSuchProvider")
    gpu_providers._starts.cache_clear()


def test_tensorrt_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_lacking", lambda: None)
    monkeypatch.setattr(gpu_providers, "gpu_provider", lambda: pytest.fail("onnxruntime is imported"))
    assert runtime.missing() is None
