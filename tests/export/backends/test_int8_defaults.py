"""Test int8 where default settings of the runtimes fail: sums that overflow, channels that calibration hardly shows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.graph.samples import Samples
from hnas.export.int8.rounding import correct_biases
from hnas.export.proof.verification import check
from tests.conftest import need


def large_sums() -> Program:
    """Return a program whose weights are all near the largest one, and whose activations are near their maximum."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 8))
    for name, weight in net.named_parameters():
        if name.endswith("weight"):
            nn.init.uniform_(weight, 0.8, 1.0)
            weight.data /= weight[0].numel()
    return fuse(capture(net.eval(), torch.rand(1, 16, 6, 6)))


def level(
    backend: str, program: Program, folder: Path, known: Samples, other: Samples, truth: Program | None = None
) -> float:
    """Return the dB of int8 on ``other`` against ``truth``, or against the program itself; calibrated on ``known``."""
    need(backend, backends.load(backend).missing())
    device = hw_profiles.load(f"{backend}-cpu")
    made = make_artifact(backend, program, folder, precision="int8", device=device, calibration=known)
    runner = backends.load(backend).load(made)
    expected = [(truth or program).arrays(*call) for call in other]
    return check(expected, [runner(*call) for call in other], "int8").sqnr_db


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_large_sums_do_not_overflow(backend: str, tmp_path: Path) -> None:
    """On a CPU without VNNI, default kernels reach 9 dB in ONNX Runtime and 12 dB in OpenVINO."""
    program = large_sums()
    generator = torch.Generator().manual_seed(1)
    calls = [(torch.rand(1, 16, 6, 6, generator=generator).mul(0.3).add(0.7).numpy(),) for _ in range(8)]
    assert level(backend, program, tmp_path, calls, calls) > 40


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_depthwise_convolution_does_not_clip_channels_that_calibration_hardly_shows(
    backend: str, tmp_path: Path
) -> None:
    """With a scale for each channel, as NNCF has by default, OpenVINO reaches 5 dB."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    images = torch.rand(8, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 4
    faint = torch.where(torch.arange(8) < 4, 1.0, 0.2).reshape(8, 1, 1)
    known, other = ([(image.numpy(),) for image in images * scale] for scale in (faint, faint.flip(0)))
    assert level(backend, fuse(capture(net.eval(), images[0])), tmp_path, known, other) > 25


@pytest.mark.parametrize(("narrow", "by"), [(False, "before"), (True, "layer by layer")])
def test_a_draft_has_the_kernels_of_the_whole_conversion_and_no_bias_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: bool, by: str
) -> None:
    """A search only times its candidates. The correction takes most of the time, and changes no kernel.

    Our correction knows the errors of weights with 8 bits; where the file has 7, NNCF corrects.
    """
    need("openvino", backends.load("openvino").missing())
    monkeypatch.setattr("hnas.export.device.machine.Machine.sums_overflow", narrow)
    program, device = large_sums(), hw_profiles.load("openvino-cpu")
    calls = [(torch.rand(1, 16, 6, 6, generator=torch.Generator().manual_seed(k)).numpy(),) for k in range(4)]
    found = {}
    for name, each in (("whole", program), ("draft", replace(program, draft=True))):
        (tmp_path / name).mkdir()
        made = make_artifact("openvino", each, tmp_path / name, precision="int8", device=device, calibration=calls)
        layers = backends.inspector("openvino").layers(made, calls[0], 2)
        assert made.notes["quantisation"]["ranges"] == "minmax"  # the default of OpenVINO
        found[name] = made.notes["quantisation"]["bias_correction"], sorted((x.kind, x.precision) for x in layers)
    assert found["whole"][0] == by
    assert found["draft"][0] == "none"
    assert found["draft"][1] == found["whole"][1]


class Masked(nn.Module):
    """Attention by hand, whose mask holds infinities: no range can hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = nn.Linear(16, 48), nn.Linear(16, 512)  # TFLite keeps a small last layer in float

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x).chunk(3, -1)
        mask = torch.zeros_like(pad, dtype=torch.float32).masked_fill(pad, float("-inf"))
        return self.join((q @ k.transpose(1, 2) / 4 + mask).softmax(-1) @ v)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_corrected_biases_know_the_infinities_of_a_mask(backend: str, tmp_path: Path) -> None:
    """The simulation had rounded the mask to 0, so that every bias behind was corrected by an error that none has."""
    torch.manual_seed(0)
    pads = [torch.arange(8).reshape(1, 1, 8) >= 3 + k % 5 for k in range(48)]
    noise = [torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(k)) for k in range(48)]
    calls = [(x.masked_fill(pad.reshape(1, 8, 1), 3.0), pad) for x, pad in zip(noise, pads, strict=True)]
    program = fuse(capture(Masked().eval(), calls[0]))
    samples = [tuple(value.numpy() for value in call) for call in calls]
    corrected = correct_biases(program, samples[:32])
    found = {}
    for name, each in (("plain", replace(program, draft=True)), ("corrected", corrected), ("default", program)):
        (tmp_path / name).mkdir()
        found[name] = level(backend, each, tmp_path / name, samples[:32], samples[32:], program)
    assert found["plain"] > 25
    assert min(found.values()) > found["plain"] - 0.5
