"""Test int8 weights with fp32 activations: the file's contents, and the runtime's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hnas import export
from hnas.export import backends
from hnas.export.proof.inspection import STATED
from tests.conftest import need
from tests.export import nets


@pytest.fixture(autouse=True)
def openvino() -> None:
    need("openvino", backends.load("openvino").missing())
    pytest.importorskip("nncf")


class Encoder(nn.Module):
    """A patch embedding, two transformer layers and a head: nearly all weights belong to matrix products."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        layer: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, 4, 2 * width, **layer) for _ in range(2)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def made(net: nn.Module, inputs: Any, path: Path, precision: str = "w8") -> export.Artifact:
    return export.compile(net, inputs, device="openvino-cpu", precision=precision, path=path, threads=1)


def test_the_file_has_a_quarter_and_the_runtime_keeps_it(tmp_path: Path) -> None:
    net, x = Encoder().eval(), torch.randn(1, 3, 24, 24)
    whole, small = made(net, x, tmp_path / "fp32", "fp32"), made(net, x, tmp_path / "w8")
    sizes = [(artifact.path / "model.bin").stat().st_size for artifact in (whole, small)]
    assert 0.25 < sizes[1] / sizes[0] < 0.3
    table: Any = small.notes["quantisation"]
    assert (table["weights"], table["activations"]) == ("s8 per channel", "f32")
    steps = _compiled(small).get_runtime_model().get_ordered_ops()
    products = [step for step in steps if _said(step, "layerType") == "FullyConnected"]
    assert len(products) >= 9  # q, k, v, the projection and two of the feed-forward net, twice; the head
    weights = [str(step.input_value(1).get_element_type()) for step in products]
    assert set(weights) == {"<Type: 'int8_t'>"}
    found = export.layers(small)
    assert {layer.precision for layer in found.of("kernel") if layer.precision} == set(STATED["w8"])
    assert not any("compute in" in line for line in found.findings)


def test_activations_stay_in_fp32(tmp_path: Path) -> None:
    """Weights that int8 represents exactly: only activations lose accuracy. Rounded in groups, weights lose 45 dB."""
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape) / 128.0)
            layer.weight[:, 0] = -1.0
    artifact = made(net, torch.randn(16, 256), tmp_path / "net")
    check: Any = artifact.notes["verification"]
    assert check["sqnr_db"] > 90
    compiled = _compiled(artifact)
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


@pytest.mark.parametrize("name", ["mobilenet", "hybrid"])
def test_nets_of_convolutions_hold_as_well_without_calibration(name: str, tmp_path: Path) -> None:
    net, inputs = nets.build(name)
    check: Any = made(net, inputs, tmp_path / "net").notes["verification"]
    assert check["precision"] == "w8"
    assert 30 < check["sqnr_db"] < 90


def test_it_is_offered_where_it_runs(tmp_path: Path) -> None:
    net, x = Encoder().eval(), torch.randn(1, 3, 24, 24)
    for device in ("onnxruntime-cpu", "tflite-cpu", "jetson"):
        with pytest.raises(ValueError, match=r" has no w8; offered: fp32"):
            export.compile(net, x, device=device, precision="w8", path=tmp_path / "net")
    with pytest.raises(ValueError, match=r"^recover='bias' is for int8, got precision w8"):
        export.compile(net, x, precision="w8", path=tmp_path / "net", options=export.CompileOptions(recover="bias"))


def _compiled(artifact: export.Artifact) -> Any:
    from hnas.export.device.runtimes import openvino

    return openvino.compiled_model(artifact)


def _said(step: Any, key: str) -> str:
    info = step.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
