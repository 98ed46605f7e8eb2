"""Test TensorRT-RTX's parser and builder on files of the tensorrt backend; skipped where the wheel is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.export.backends.tensorrt import rtx as tensorrt_rtx
from hnas.export.backends.tensorrt.rtx import RtxVerdict, check_with_rtx
from hnas.export.device.errors import ExportError, Unavailable

installed = pytest.mark.skipif(tensorrt_rtx.missing() is not None, reason="pip install 'hnas[tensorrt-rtx]'")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compile a small convolutional net with the tensorrt backend, in each precision."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from torch import nn

    from hnas import export

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 16, 3, padding=1, groups=16)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)).eval()
    x, folder = torch.randn(4, 3, 32, 32), tmp_path_factory.mktemp("nets")
    made = {}
    for precision in ("fp32", "fp16", "int8"):
        data = {"calibration": [(x.numpy(),)]} if precision == "int8" else {}
        artifact = export.compile(net, (x[:1],), device="jetson", precision=precision, path=folder / precision, **data)
        made[precision] = artifact.path
        told = artifact.notes["build"].get("tensorrt_rtx")
        assert (told is None) == (tensorrt_rtx.missing() is not None)
    return made


@installed
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_we_write_is_parsed_and_built(nets: dict[str, Path], precision: str) -> None:
    found = check_with_rtx(nets[precision] / "model.onnx", ("86", "89"))
    assert found.passed, found.line()
    assert list(found.built) == ["86", "89"]
    assert found.line() == f"parsed and built for TensorRT-RTX {found.version} (SM86, SM89)"


@installed
@pytest.mark.slow
def test_what_is_refused_is_named(nets: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    assert tensorrt_rtx.main([str(nets["fp32"]), "--sm", "75"]) == 1  # no FP32 GEMM there
    assert "SM75 refused: " in capsys.readouterr().out
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 4]) for name in "xy"]
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="volume")
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "det.onnx")
    assert tensorrt_rtx.main([str(tmp_path / "det.onnx")]) == 1
    assert "refused by the parser of TensorRT-RTX" in (said := capsys.readouterr().out)
    assert "Det volume: " in said
    (tmp_path / "cut.onnx").write_bytes((nets["fp32"] / "model.onnx").read_bytes()[:1000])
    assert not check_with_rtx(tmp_path / "cut.onnx", ("86",)).passed
    with pytest.raises(ValueError, match=r"no target SM87; TensorRT-RTX knows SM75|no target SM87; .* knows 75, 80"):
        check_with_rtx(nets["fp32"] / "model.onnx", ("87",))


def test_without_it_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt_rtx, "_MODULE", "nowhere_to_be_found")
    assert tensorrt_rtx.rtx_note(tmp_path / "m.onnx") == {}
    assert tensorrt_rtx.main(["m.onnx"]) == 3
    with pytest.raises(Unavailable, match=r"^TensorRT-RTX is not installed; pip install 'hnas\[tensorrt-rtx\]'$"):
        check_with_rtx(tmp_path / "m.onnx")


def test_a_crash_is_one_line_and_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(tensorrt_rtx, "_MODULE", "json")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ExportError, match=r"^TensorRT-RTX died with SIGSEGV on m\.onnx$"):
        check_with_rtx(tmp_path / "m.onnx")
    assert tensorrt_rtx.rtx_note(tmp_path / "m.onnx") == {"tensorrt_rtx": "TensorRT-RTX died with SIGSEGV on m.onnx"}


class _Log:
    ERROR, INTERNAL_ERROR = "error", "internal error"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            ["no kernel", "[a.cpp:f:3] none for {ForeignNode[/b/MatMul.../b/Softmax]}"],
            "none for {ForeignNode[/b/MatMul",
        ),
        (["no kernel", "/b/MatMul_1: no kernel", "/b/MatMul: no kernel"], "/b/MatMul: no kernel"),
        (["no kernel", "still none"], "no kernel"),
        ([], "no reason given"),
    ],
)
def test_a_build_that_is_refused_names_a_node(monkeypatch: pytest.MonkeyPatch, said: list[str], reason: str) -> None:
    """The first error was the reason, and need not name a node."""
    layer = SimpleNamespace(name="/b/MatMul", num_inputs=0, get_output=lambda _: layer, type=SimpleNamespace(name="X"))
    network = SimpleNamespace(num_layers=1, get_layer=lambda _: layer)

    def build(log: Any) -> SimpleNamespace:
        def refuse(*_: Any) -> None:
            for line in said:
                log.log(_Log.ERROR, line)

        config = SimpleNamespace(set_compute_capability=lambda *_: None)
        return SimpleNamespace(
            create_network=lambda _: network,
            create_builder_config=lambda: config,
            build_serialized_network=refuse,
        )

    parser = SimpleNamespace(parse_from_file=lambda _: True)
    kinds = SimpleNamespace(SM86=1)
    trt = SimpleNamespace(
        ILogger=_Log,
        Builder=build,
        OnnxParser=lambda *_: parser,
        ComputeCapability=kinds,
        **dict.fromkeys(("float32", "float16", "bfloat16")),
        __version__="1.7",
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", trt)
    assert tensorrt_rtx._build_targets(Path("m.onnx"), ["86"]).refused["86"].startswith(reason)


def test_the_layers_that_the_parser_makes_of_a_node_count_as_that_node() -> None:
    """HardSwish n0 becomes n0 and n0_0, and the latter seemed to be above its precision, since no node has its name."""
    half = SimpleNamespace(name="h", dtype="half")
    single, whole = SimpleNamespace(name="s", dtype="single"), SimpleNamespace(name="q", dtype="half")

    def layer(name: str, node: str, kind: str, reads: Any, writes: Any) -> SimpleNamespace:
        told = {"metadata": f"[ONNX Layer: {node}]"} if node else {}
        ends = {"num_inputs": 1, "get_input": lambda _: reads, "get_output": lambda _: writes}
        return SimpleNamespace(name=name, type=SimpleNamespace(name=kind), **told, **ends)

    made = [
        layer("n0", "n0", "ACTIVATION", single, single),
        layer("n0_0", "n0", "ELEMENTWISE", single, single),
        layer("q", "q", "DEQUANTIZE", half, whole),
        layer("fc", "fc", "MATRIX_MULTIPLY", whole, half),
        layer("fc_1", "fc", "ELEMENTWISE", half, half),
        layer("gelu", "", "ACTIVATION", half, half),
        layer("norm", "norm", "ELEMENTWISE", half, half),
        layer("norm_2", "norm", "ELEMENTWISE", single, single),
    ]
    network = SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__)
    trt = SimpleNamespace(float32="single", float16="half", bfloat16="bf16")
    found = tensorrt_rtx._typed_layers(trt, network)
    assert found == {"n0": "f32", "fc": "i8", "gelu": "f16", "norm": "f32"}


def test_a_verdict_says_all_in_one_line() -> None:
    assert RtxVerdict("1.7", "no Det").line() == "refused by the parser of TensorRT-RTX 1.7: no Det"
    both = RtxVerdict("1.7", "", {"86": 0.1}, {"75": "no GEMM"})
    assert both.line() == "parsed and built for TensorRT-RTX 1.7 (SM86); SM75 refused: no GEMM"
    assert not both.passed
    assert RtxVerdict("1.7", "", {}, {"75": "a"}).line() == "parsed by TensorRT-RTX 1.7; SM75 refused: a"
