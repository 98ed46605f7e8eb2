"""Kinds of kernels, what a calibration makes of them, and what the band of a prediction rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hnas import hw_profiles
from hnas.cost.kernels import Kernel
from hnas.cost.onnx_graph import kernels
from hnas.cost.roofline import calibrated_ms, latency_ms, predict, trace, trace_parts
from hnas.hw_profiles import calibration

NANO = hw_profiles.load("jetson", "MAXN_SUPER")
# A network of the size of the published rows: 10 GFLOP in ten convolutions.
USUAL = [Kernel("convolution", 10**9, 10**6)] * 10


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.nn.functional.silu(self.depthwise(x)) + x
        x = torch.cat([self.pointwise(x), x], 1)[:, :8]
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return self.out(torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens)


KINDS = ["dense", "depthwise", "elementwise", "pointwise", "reformat", "reduction"]
KINDS += ["attention", "reduction", "attention", "pointwise"]


def test_every_kernel_has_its_kind() -> None:
    with torch.device("meta"):
        net = Mixed()
    found = [kernel.kind for kernel in trace(net, (3, 8, 8))]
    assert [kind for kind in found if kind != "reformat"] == [kind for kind in KINDS if kind != "reformat"]
    assert "reformat" in found


def test_an_onnx_file_has_the_same_kinds(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(
        Mixed().eval(), (torch.zeros(1, 3, 8, 8),), dynamo=True, opset_version=20, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "net.onnx")
    assert [kernel.kind for kernel in kernels(tmp_path / "net.onnx")] == KINDS


def test_a_chain_of_element_wise_operations_is_one_pass() -> None:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(torch.relu(x * torch.sigmoid(x) + 1) / 6)

    with torch.device("meta"):
        net = Chain()
    assert [kernel.name for kernel in trace(net, (3, 8, 8))] == ["sigmoid"]


def test_a_batch_multiplies_the_operations_and_not_the_weights() -> None:
    with torch.device("meta"):
        net = nn.Conv2d(3, 8, 3, bias=False)
    (one,), (two,) = trace(net, (3, 8, 8)), trace(net, (3, 8, 8), batch=2)
    assert two.flops == 2 * one.flops
    assert two.elements == 2 * one.elements - 8 * 3 * 9


def test_fp32_runs_in_tf32_on_tensor_cores_only() -> None:
    device = replace(NANO, calibration="", launch_us=0.0)
    dense, depthwise = (Kernel("convolution", 10**9, 1, kind) for kind in ("dense", "depthwise"))
    assert latency_ms([dense], device, "fp32") == pytest.approx(1e3 / device.peaks["tf32"])
    assert latency_ms([depthwise], device, "fp32") == pytest.approx(1e3 / device.peaks["fp32"])
    assert latency_ms([depthwise], device, "int8") == pytest.approx(1e3 / device.peaks["fp32"] / 2)
    volta = replace(hw_profiles.load("jetson-xavier-nx"), calibration="", launch_us=0.0)
    assert latency_ms([dense], volta, "fp32") == pytest.approx(1e3 / volta.peaks["fp32"])


def test_what_is_not_quantised_moves_fp16_in_an_int8_network_of_a_gpu() -> None:
    device = replace(NANO, calibration="", launch_us=0.0)
    moved = Kernel("softmax", 0, 10**6, "reduction")
    assert latency_ms([moved], device, "int8") == pytest.approx(latency_ms([moved], device, "fp16"))
    copied = replace(moved, kind="reformat")
    assert latency_ms([copied], device, "int8") == pytest.approx(latency_ms([copied], device, "fp16") / 2)


def test_a_calibration_multiplies_peak_bandwidth_launch_and_fusion() -> None:
    fit = calibration.of(NANO)
    assert fit is not None
    fit = replace(fit, launch_us=10.0)
    dense, depthwise, act = Kernel("c", 10**9, 1), Kernel("c", 0, 10**6, "depthwise"), Kernel("s", 0, 1, "elementwise")
    assert calibrated_ms([dense], NANO, "fp16", fit) == pytest.approx(
        0.01 + 1e3 / (NANO.peaks["fp16"] * fit.compute["fp16"])
    )
    assert calibrated_ms([depthwise], NANO, "fp16", fit) == pytest.approx(
        0.01 + 2 / (NANO.bandwidth * fit.bandwidth * fit.depthwise)
    )
    assert calibrated_ms([act], NANO, "fp16", fit) == pytest.approx(0.01 * fit.elementwise, rel=1e-3)
    assert calibrated_ms([act], NANO, "fp16", None) == 0.0


def test_inside_the_published_rows_the_band_is_their_error() -> None:
    price = predict(USUAL, NANO, "fp16")
    fit = calibration.of(NANO)
    assert fit is not None
    assert price.basis.startswith("leave-one-model-out on 23 published rows of 4 networks (GPU only): mean error ")
    assert price.low / price.value == pytest.approx(min(each.low for each in fit.evidence))
    assert price.high / price.value == pytest.approx(max(each.high for each in fit.evidence))


@pytest.mark.parametrize(
    ("device", "found", "said"),
    [
        (hw_profiles.load("jetson"), USUAL, "no published row of jetson-orin-nano in 15W"),
        (hw_profiles.load("jetson-agx-thor"), USUAL, "no published row of jetson-agx-thor in MAXN"),
        (NANO, USUAL[:1] * 500, "500 GFLOP a call; the rows have 0.602 to 65.4"),
        (NANO, [Kernel("c", 10**6, 1)], "0.001 GFLOP a call; the rows have 0.602 to 65.4"),
        (NANO, [*USUAL, Kernel("LSTM", 10**9, 10**7, "recurrent")], "no published row has recurrent kernels"),
        (hw_profiles.load("raspberry-pi-5"), USUAL, "no published row of raspberry-pi-5"),
        (
            hw_profiles.load("rb3-gen2"),
            [*USUAL, Kernel("bmm", 10**9, 10**7, "attention")],
            "no published row has attention kernels",
        ),
    ],
    ids=["power", "device", "large", "small", "kind", "uncalibrated", "board"],
)
def test_outside_of_the_published_rows_the_band_is_wide_and_says_so(device, found, said) -> None:
    price = predict(found, device, device.precisions[-1])
    assert price.basis.startswith("outside what I know: ")
    assert said in price.basis
    assert (price.low, price.high) == tuple(price.value * factor for factor in device.band)


def test_a_network_a_little_outside_the_sizes_of_the_rows_is_covered() -> None:
    fit = calibration.of(NANO)
    assert fit is not None
    least, most = next(each.gflop for each in fit.evidence if each.device == NANO.name)
    for gflop, inside in ((least / 1.4, True), (least / 1.6, False), (most * 1.4, True), (most * 1.6, False)):
        basis = predict([Kernel("c", int(gflop * 1e9), 10**6)], NANO, "fp16").basis
        assert basis.startswith("leave-one-model-out") is inside, (gflop, basis)


def test_a_precision_without_rows_is_outside() -> None:
    board = hw_profiles.load("rb3-gen2")
    assert predict(USUAL, board, "int8").basis.startswith("leave-one-model-out on 13 published rows")
    assert predict(USUAL, board, "fp32").basis == "outside what I know: no published row of rb3-gen2 in fp32"


def test_a_measured_device_needs_no_rows() -> None:
    assert predict(USUAL, hw_profiles.load("openvino-cpu"), "fp32").basis.startswith("a rough model")


def test_a_prediction_looks_its_calibration_up_once_and_lists_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search predicts thousands of candidates."""
    asked: list[str] = []
    of = calibration.of
    monkeypatch.setattr(calibration, "names", lambda: pytest.fail("the folder is listed"))
    monkeypatch.setattr(calibration, "of", lambda device: asked.append(device.name) or of(device))
    predict([Kernel("dense", 10**9, 10**6)], NANO, "fp16")
    assert asked == [NANO.name]


def test_the_parts_are_traced_in_the_mode_of_a_trace() -> None:
    """A dropout launches a kernel in training only; the mode of the network is kept."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Dropout()), nn.Conv2d(4, 4, 1)).eval()
    whole = trace(net, (3, 8, 8))
    outside, parts = trace_parts(net, ["1"], (3, 8, 8))
    assert not any(module.training for module in net.modules())
    assert parts["1"].kernels
    assert sorted(map(str, [*outside, *parts["1"].kernels])) == sorted(map(str, whole))
