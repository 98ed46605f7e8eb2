"""Test int8 sums that overflow in 16 bits: large weights and large activations, on any CPU."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
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


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite"])
def test_large_sums_do_not_overflow(backend: str, tmp_path: Path) -> None:
    """On a CPU without VNNI, ONNX Runtime's default kernels reach 9 dB."""
    need(backend, backends.load(backend).missing())
    program = large_sums()
    generator = torch.Generator().manual_seed(1)
    calls = [(torch.rand(1, 16, 6, 6, generator=generator).mul(0.3).add(0.7).numpy(),) for _ in range(8)]
    device = hw_profiles.load(f"{backend}-cpu")
    made = make_artifact(backend, program, tmp_path, precision="int8", device=device, calibration=calls)
    runner = backends.load(backend).load(made)
    assert check([program.arrays(*call) for call in calls], [runner(*call) for call in calls], "int8").sqnr_db > 40
