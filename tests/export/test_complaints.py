"""Cases that users of other export tools complain of in public, each through ``compile`` on the CPU backends."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hnas import export
from hnas.export import backends
from hnas.export.compiling.conversion import convert
from hnas.export.diagnosis.trial import Setting, TrialBench
from hnas.export.graph.program import capture
from tests.conftest import need

BACKENDS = ("onnxruntime", "openvino", "tflite")
HERE = export.CompileOptions(compiler=SimpleNamespace(convert=convert))  # in this process


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name, backends.load(name).missing())
    return name


# onnx2tf issue 222, TensorRT issue 1480: calibrated on 0..255, or on nothing but zeros, and run on normalised inputs.


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        pytest.param(lambda: torch.randint(0, 256, (16, 3, 8, 8)).float(), "0 to 255 in calibration and", id="0..255"),
        pytest.param(lambda: torch.randn(16, 3, 8, 8) / 255, "in calibration and", id="divided by 255"),
        pytest.param(lambda: torch.zeros(16, 3, 8, 8), "constant 0 in calibration and", id="zeros"),
    ],
)
def test_calibration_of_another_scale_is_refused(
    backend: str, draw: Callable[[], Tensor], said: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    given = {"device": f"{backend}-cpu", "precision": "int8", "path": tmp_path / "a"}
    with pytest.raises(ValueError, match=f"^calibration contradicts the example inputs: .*{said}") as refused:
        export.compile(net, (torch.randn(1, 3, 8, 8),), calibration=[(draw(),)], options=HERE, **given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()


# pytorch issue 190338, onnx issue 7507, onnxruntime issue 13833: modules in other float types.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_modules_in_other_float_types_are_compiled_in_float32(backend: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(288), nn.Linear(288, 4))
    net, example = net.to(dtype).eval(), torch.randn(1, 3, 8, 8).to(dtype)
    wanted = copy.deepcopy(net).float()(example.float()).detach().numpy()  # of weights that were rounded
    made = export.compile(net, (example,), device=f"{backend}-cpu", path=tmp_path / "a", options=HERE)
    assert made.precision == "fp32"
    assert f"{str(dtype).removeprefix('torch.')} parts are computed in float32" in made.notes["remarks"]
    np.testing.assert_allclose(export.load(made)(example.float().numpy())[0], wanted, rtol=1e-4, atol=1e-4)


# Swin on TFLite: passes made worse what the converter does afterwards, 64 dB where the untouched graph had 123.


class _ShiftedWindows(nn.Module):
    """Attention within shifted windows of 4 x 4 tokens, with a bias of positions, then an MLP."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, 16, 16))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head, self.heads = nn.Linear(width, 10), heads

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        shifted = self.before(x).roll((-2, -2), (1, 2))
        windows = shifted.view(1, 2, 4, 2, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(4, 16, -1)
        q, k, v = self.qkv(windows).view(4, 16, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + self.bias).softmax(-1)
        mixed = self.project((weights @ v).transpose(1, 2).reshape(4, 16, -1))
        back = mixed.view(1, 2, 2, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(1, 8, 8, -1)
        x = x + back.roll((2, 2), (1, 2))
        x = x + self.mlp(self.between(x))
        return self.head(self.after(x).mean((1, 2)))


def test_passes_do_not_make_windowed_attention_less_exact() -> None:
    need("tflite", backends.load("tflite").missing())
    net = _ShiftedWindows().eval()
    with torch.no_grad():  # fresh norms are the identity, which hides errors
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    calls = [(torch.randn(1, 3, 32, 32),) for _ in range(4)]
    program = capture(net, calls[0])
    with TrialBench() as bench:
        ours, bare = (bench.judge(program, calls, Setting("tflite", passes=passes)) for passes in (None, ()))
    assert (ours.outcome, bare.outcome) == ("holds", "holds")
    assert ours.sqnr_db is not None
    assert bare.sqnr_db is not None
    assert ours.sqnr_db >= max(100.0, bare.sqnr_db - 20.0)
