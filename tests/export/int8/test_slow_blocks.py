"""Test that only blocks of slow layers are tried in float: the blocks of a runtime's layers, and what is passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hnas import export
from hnas.export import backends
from hnas.export.compiling import assignment
from hnas.export.device.errors import ExportError
from hnas.export.int8.mixed import blocks, blocks_of_layers
from tests.conftest import need
from tests.export import nets
from tests.export.int8.test_mixed import DEVICES, calls, program_of


def test_the_blocks_of_layers_with_the_names_of_a_runtime() -> None:
    program = program_of("mobilenet")
    known = blocks(program)
    of = {node: name for name, nodes in known.items() for node in nodes}
    first, *_, last = [node for node in of if node.startswith("conv2d")]
    layers = [f"node_{last}_token_4", "x_QuantizeLinear", f"{first}_nchwc", f"{first}_{'9' * 9}", f"un{first}", last]
    assert blocks_of_layers(program, layers) == [of[last], of[first]]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_every_int8_kernel_of_onnx_runtime_has_its_block_and_no_other_a_wrong_one(backend: str, tmp_path: Path) -> None:
    need(backend, backends.load(backend).missing())
    pytest.importorskip("onnxscript")
    net, inputs = nets.build("mobilenet")
    program = program_of("mobilenet")
    made = export.compile(
        net,
        inputs,
        device=DEVICES[backend],
        precision="int8",
        calibration=calls(program, 2),
        path=tmp_path / "int8",
        threads=1,
        options=export.CompileOptions(recover="none"),
    )
    kernels = [layer.name for layer in export.layers(made, runs=2).of("kernel")]
    assert blocks_of_layers(program, kernels) == (list(blocks(program)) if backend == "onnxruntime" else [])


def test_the_blocks_of_slow_layers_reach_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    net, inputs = nets.build("mobilenet")
    program, asked = program_of("mobilenet"), list[Any]()
    monkeypatch.setattr(assignment, "assign", lambda *given: (asked.append(given[-1]), (None, []))[1])
    last = [node for nodes in blocks(program).values() for node in nodes if node.startswith("conv2d")][-1]
    with pytest.raises(ExportError, match="no mixed precision is accepted"):
        export.compile_mixed(
            net,
            inputs,
            accept=lambda _: True,
            calibration=calls(program, 2),
            device="onnxruntime-cpu",
            path=tmp_path / "a",
            options=export.MixedOptions(slow=[f"node_{last}_token_9"]),
        )
    assert asked == [blocks_of_layers(program, [last])]
    assert len(asked[0]) == 1
