"""Test how engines get their types on TensorRT 8.6, 10.3, 10.16 and 11.4: options, files and layer information."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from hnas import hw_profiles
from hnas.export.backends.tensorrt import convert as backend
from hnas.export.backends.tensorrt.inspector import from_json, layers_above
from hnas.export.device import cudart, trtexec
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.device.engine_types import OLD_MODEL, TYPES, precision_flags
from hnas.export.device.errors import ExportError
from hnas.export.device.runtimes import tensorrt as runtime
from tests.export import fake_trtexec

X = np.array([[-1, 0.5, 2]], np.float32)
NOTES = {TYPES: {"fp32": {"softmax": "its values overflow fp16"}, "int8": ["conv", "fc"], "layers": 3}}


# The fields of layers follow tools/experimental/trt-engine-explorer/tests/inputs/*.graph.json of NVIDIA/TensorRT (8),
# the documentation of the engine inspector (10.16) and its page on the migration to 11. Nothing was recorded.
def end(name: str, kind: str, version: tuple[int, int]) -> dict[str, Any]:
    """Return a tensor of a layer: one field for format and type until TensorRT 10, two since 11."""
    words = {"i8": "Int8", "f16": "Half", "f32": "Float"}
    place = {"Name": name, "Location": "Device", "Dimensions": [1, 3]}
    if version >= (11, 0):
        return {**place, "Format": "Row major linear format", "Datatype": words[kind]}
    if version >= (10, 0):
        return {**place, "Format/Datatype": words[kind]}
    formats = {"i8": "Thirty-two wide channel vectorized row major Int8 format"}
    formats |= {"f16": "Channel major FP16 format where channel % 8 == 0", "f32": "Row major linear FP32"}
    return {**place, "Format/Datatype": formats[kind]}


def layer(name: str, kind: str, types: str, version: tuple[int, int], metadata: str = "") -> dict[str, Any]:
    reads, writes = types.split(" ")
    ends = {"Inputs": [end("a", reads, version)], "Outputs": [end("b", writes, version)]}
    tactic = {"ParameterType": kind.removeprefix("Cask"), "TacticValue": "0x10d7116a3fad9b7a"}
    stream = {"StreamId": 0, "TacticName": "sm87_tactic"} if version >= (10, 0) else {}
    return {"Name": name, "LayerType": kind, **ends, **tactic, **stream, "Metadata": metadata}


def information(version: tuple[int, int], fc: str = "i8 f16", gelu: str = "f16 f16") -> dict[str, Any]:
    """Return the layer information of an int8 engine, in the form of a version."""
    made = [
        layer("Reformatting CopyNode for Input Tensor 0 to conv", "Reformat", "f32 i8", version),
        layer("conv + relu", "CaskConvolution", "i8 f16", version),
        layer("__myl_Fc_myl0_1", "gemm", fc, version, "[ONNX Layer: fc]\x1f[ONNX Layer: add]"),
        layer("softmax", "SoftMaxV2", "f32 f32", version),
        layer("gelu", "PointWiseV2", gelu, version),
    ]
    tensor = {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3], "Location": "Device"}
    shapes = {f"{which}Shape": [1, 3] for which in ("Min", "Opt", "Max")}
    profile = {**shapes, "Format": "Row major linear FP32 format (kLINEAR)"}
    tensor |= {"IsShapeInferenceIO": False, "ProfileInfo": [profile]}
    ends = {"I/O Tensors": [tensor]} if version >= (11, 0) else {"Bindings": ["x", "y"]}
    return {"Layers": made, **ends}


VERSIONS = {"8602": (8, 6), "100300": (10, 3), "101602": (10, 16), "110401": (11, 4)}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Artifact]:
    """Return a function that makes an int8 artifact with a file for TensorRT 8, on a machine with a fake GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(cudart, "library", object)
    monkeypatch.setattr(cudart, "architecture", lambda: "87")
    (tmp_path / "net").mkdir()

    def made(precision: str = "int8", notes: Any = NOTES) -> Artifact:
        names = ("model.onnx", OLD_MODEL) if precision == "int8" else ("model.onnx",)
        for name in names:
            (tmp_path / "net" / name).write_bytes(name.encode())
        x, y = (TensorSpec(name, X.shape, "float32") for name in "xy")
        files = digest_files(tmp_path / "net", *names)
        return Artifact(tmp_path / "net", "tensorrt", precision, "jetson", 1, (x,), (y,), files, notes=notes)

    return made


@pytest.mark.parametrize("version", VERSIONS)
def test_trtexec_of_each_version_is_asked_in_its_own_words(
    make: Callable[..., Artifact], tmp_path: Path, version: str
) -> None:
    calls = fake_trtexec.install(tmp_path, version, information(VERSIONS[version]))
    artifact = make()
    runner = runtime.load(artifact)
    np.testing.assert_array_equal(runner(X)[0], np.maximum(X, 0))
    assert runner.times([X], 20) == pytest.approx([0.0004444] * 20)  # not the first call, which also moves data
    np.testing.assert_allclose(runner.part_times([X], 3), [(0.0001875, 0.0004444)] * 3)
    figures = backend.engine_figures(runner.report)
    assert figures["tensorrt"].startswith(".".join(map(str, VERSIONS[version])))
    assert (figures["precisions"], figures["above"]) == ({"i8": 2, "f32": 1, "f16": 1}, [])
    built = next(line for line in calls.read_text().splitlines() if "--onnx" in line).split()
    old = VERSIONS[version] < (10, 0)
    assert f"--onnx={artifact.path / (OLD_MODEL if old else 'model.onnx')}" in built
    assert ("--stronglyTyped" in built) == ((10, 0) <= VERSIONS[version] < (11, 0))
    assert ({"--int8", "--fp16", "--layerPrecisions=softmax:fp32", "--precisionConstraints=obey"} <= set(built)) == old


@pytest.mark.parametrize("version", VERSIONS)
def test_logs_of_each_version_end_in_one_line(make: Callable[..., Artifact], tmp_path: Path, version: str) -> None:
    """Warnings, also such that quote an error, come before it. A node that the parser refuses stands in ten lines."""
    fake_trtexec.install(tmp_path, version, {})
    artifact = make("fp16")
    artifact.model.write_bytes(b"refused")
    reason = r'creator && "Plugin not found, are the plugin name, version, and namespace correct\?"'
    with pytest.raises(ExportError, match=rf"^trtexec failed: Det volume: (Assertion failed: )?{reason}$"):
        runtime.load(artifact)
    artifact.model.write_bytes(b"bad")
    with pytest.raises(ExportError, match=r"^trtexec failed: Error\[4\]: cannot build this$"):
        runtime.load(artifact)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_scalar_and_another_output_come_back_by_name(
    make: Callable[..., Artifact], tmp_path: Path, version: str
) -> None:
    fake_trtexec.install(tmp_path, version, information(VERSIONS[version]))
    artifact = make("fp16")
    both = (*artifact.outputs, TensorSpec("total", (), "float32"))
    y, total = runtime.load(replace(artifact, outputs=both))(X)
    np.testing.assert_array_equal(y, np.maximum(X, 0))
    assert (total.shape, float(total)) == ((), 2.5)


def test_a_node_without_a_name_and_a_tool_that_says_nothing() -> None:
    unnamed = 'x [E] [TRT] M.cpp:1: While parsing node number 2 [Det -> "y"]:\n[11/22/2026-10:00:00] [E] [TRT] '
    unnamed += "ERROR: f.cpp:3 In function g:\n[6] Invalid Node - a\nit is\nlong\n[11/22/2026-10:00:00] [E] end"
    assert trtexec._first_error(unnamed) == "Det: it is long"
    assert trtexec._first_error("Segmentation fault") == "no reason given"
    assert trtexec._first_error("[11/22/2026-10:00:00] [F] [TRT] out of memory\n") == "[TRT] out of memory"


def test_the_fake_refuses_what_its_version_does_not_know(tmp_path: Path, make: Callable[..., Artifact]) -> None:
    for version, option in (("110401", "--fp16"), ("110401", "--layerPrecisions=a:fp32"), ("8602", "--stronglyTyped")):
        fake_trtexec.install(tmp_path, version, {})
        with pytest.raises(ExportError, match=rf"^trtexec failed: Unknown option: {option.partition('=')[0]}"):
            trtexec.run_trtexec(option)


def test_a_file_without_types_gets_flags_on_10_and_none_on_11() -> None:
    assert precision_flags("int8", (10, 3), typed=False) == ["--int8", "--fp16", "--noTF32"]
    assert precision_flags("fp16", (11, 4), ["a"]) == ["--noTF32"]
    assert precision_flags("fp32", (8, 5)) == ["--noTF32"]
    assert precision_flags("fp16", (8, 5), ["a", "c"])[-1] == "--layerPrecisions=a:fp32,c:fp32"
    for name in ("a:b", "a,b"):
        with pytest.raises(ExportError, match=f"^{name} must compute in fp32, and trtexec takes no name with ':' or"):
            precision_flags("fp16", (8, 5), ["c", name])


def test_the_note_for_tensorrt_8_holds_the_kept_layers() -> None:
    device = replace(hw_profiles.load("jetson"), toolchain={"TensorRT": "8.5-10.3"})
    note = backend._build_note("fp16", device, [], ["softmax"])
    assert note["command_trt8"].endswith("--fp16 --noTF32 --precisionConstraints=obey --layerPrecisions=softmax:fp32")
    assert "layerPrecisions" not in note["command"]
    assert backend._build_note("fp16", device, [], ["a:0"])["command_trt8"].startswith("a:0 must compute in fp32")


@pytest.mark.parametrize("version", VERSIONS.values())
def test_a_layer_above_its_stated_precision_is_named(version: tuple[int, int]) -> None:
    kept, quantised = NOTES[TYPES]["fp32"], NOTES[TYPES]["int8"]
    slow = information(version, fc="f16 f16", gelu="f32 f32")
    assert layers_above(slow, "int8", kept, quantised) == [
        "__myl_Fc_myl0_1 runs in f16, the artifact states int8",  # case 1
        "gelu runs in f32, the artifact states fp16",  # case 2
    ]
    assert layers_above(slow, "int8", [*kept, "gelu"], ["conv"]) == []
    assert layers_above(slow, "fp32", (), ()) == []
    assert layers_above({"Layers": ["conv", "fc"]}, "int8", kept, quantised) == []
    assert [each.parts for each in from_json(slow)][2] == ("fc", "add")


def test_layers_that_a_name_alone_tells_are_found() -> None:
    """TensorRT 8.5 has no metadata: a held layer inside PWN(...) was reported as above its precision."""
    name = "fc.weight + QuantizeLinear_3 + fc + PWN(PWN(sigmoid), mul)"
    entry = layer(name, "CaskConvolution", "f32 f32", (8, 6))
    assert from_json({"Layers": [entry]})[0].parts == ("fc.weight", "QuantizeLinear_3", "fc", "sigmoid", "mul")
    assert layers_above({"Layers": [entry]}, "fp16", ["mul"], ()) == []
    assert len(layers_above({"Layers": [entry]}, "fp16", ["add"], ())) == 1
    assert layers_above({"Layers": [entry]}, "int8", (), ["fc"]) == [f"{name} runs in f32, the artifact states int8"]
    both = layer("a || PWN((Unnamed Layer* 1) [ElementWise])", "CaskConvolution", "f16 f16", (8, 6))
    assert from_json({"Layers": [both]})[0].parts == ("a", "(Unnamed Layer* 1) [ElementWise]")


def test_types_of_other_tensors_hide_no_layer_and_bf16_is_not_f32() -> None:
    entry = layer("where", "Select", "f32 f32", (11, 0))
    for kind in ("Bool", "Int32"):
        entry["Inputs"].insert(0, {"Name": "c", "Datatype": kind})
    assert layers_above({"Layers": [entry]}, "fp16", (), ()) == ["where runs in f32, the artifact states fp16"]
    for kind in ("BFloat16", "BF16"):
        half = layer("gelu", "PointWiseV2", "f32 f32", (11, 0))
        for side in ("Inputs", "Outputs"):
            half[side][0]["Datatype"] = kind
        assert [each.precision for each in from_json({"Layers": [half]})] == ["bf16"]
        assert layers_above({"Layers": [half]}, "fp16", (), ()) == []


class _Config:
    """Record what a builder's configuration is told."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.set_flag, self.clear_flag = self.flags.append, lambda flag: self.flags.append(f"not {flag}")
        self.set_memory_pool_limit = self.set_timing_cache = lambda *_: None
        self.create_timing_cache = self.get_timing_cache = MagicMock()


def bindings(version: tuple[int, int], config: _Config, created: list[int], layers: list[Any]) -> Any:
    """Return fake bindings with the names that a version has: 11 has no flags for precisions."""
    old = version < (10, 0)
    flags = {"TF32": "TF32"} | ({} if version >= (11, 0) else {"FP16": "FP16", "INT8": "INT8"})
    flags |= {"OBEY_PRECISION_CONSTRAINTS": "OBEY"} if version < (11, 0) else {}
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])
    builder = MagicMock()
    builder.create_network.side_effect = lambda flags: created.append(flags) or network
    builder.create_builder_config.return_value = config
    trt = MagicMock()
    trt.Builder.return_value = builder
    trt.BuilderFlag = SimpleNamespace(**flags)
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(**({"EXPLICIT_BATCH": 0} if old else {"STRONGLY_TYPED": 1}))
    trt.float32 = "f32"
    return trt


@pytest.mark.parametrize("version", VERSIONS.values())
def test_bindings_of_each_version_build_with_its_own_flags(
    make: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    config, created = _Config(), list[int]()
    layers = [SimpleNamespace(name=name, precision=None) for name in ("conv", "softmax")]
    layers += [SimpleNamespace(name="softmax_1", precision=None, metadata="[ONNX Layer: softmax]")]  # of the same node
    trt = bindings(version, config, created, layers)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(runtime._Logger, "create", lambda _: MagicMock())
    here = {"tensorrt": ".".join(map(str, version)), "sm": "87"}
    runtime._build(make(), tmp_path / "engine", tmp_path / "timing", here)
    typed = version >= (10, 0)
    assert created == [1 << 1 if typed else 1 << 0]
    assert config.flags == ["not TF32"] + ([] if typed else ["FP16", "INT8", "OBEY"])
    assert [each.precision for each in layers] == [None, *[None if typed else "f32"] * 2]
    parsed = trt.OnnxParser.return_value.parse.call_args.args[0]
    assert parsed == (b"model.onnx" if typed else OLD_MODEL.encode())


def test_a_file_that_tensorrt_refuses_is_one_line_with_the_node(
    make: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = bindings((11, 4), _Config(), [], [])
    error = SimpleNamespace(node_operator=lambda: "Det", node_name=lambda: "volume", desc=lambda: "no\n importer\x1b")
    trt.OnnxParser.return_value.parse.return_value = False
    trt.OnnxParser.return_value.get_error.return_value = error
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(runtime._Logger, "create", lambda _: MagicMock())
    with pytest.raises(ExportError, match=r"^TensorRT 11\.4\.1 refuses model\.onnx: Det volume: no importer\\x1b$"):
        runtime._build(make(), tmp_path / "e", tmp_path / "t", {"tensorrt": "11.4.1", "sm": "87"})
