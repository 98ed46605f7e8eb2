"""Test on every backend what people's modules take and return: names, integers, masks, scalars, other floats."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hnas import export, hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.openvino import fixes
from hnas.export.device.errors import ExportError
from hnas.export.graph.calls import flat_module
from hnas.export.graph.fusion import fuse_safely
from hnas.export.graph.program import capture
from hnas.export.proof.verification import check
from tests.conftest import need

BACKENDS = ("onnxruntime", "openvino", "reference", "tflite")
IDS = torch.tensor([[3, 1, 4, 1, 5]])


@dataclass
class Result:
    """A result as libraries return it."""

    logits: torch.Tensor
    loss: object = None


class Net(nn.Module):
    """A module of one function and a few layers."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.linear, self.table = function, nn.Linear(4, 3), nn.Embedding(10, 4)
        self.conv, self.halved = nn.Conv2d(3, 4, 3), nn.Linear(4, 3).half()

    def forward(self, *given, **named):
        return self.function(self, *given, **named)


def text(self, input_ids, attention_mask):
    return Result(self.linear(self.table(input_ids)) * attention_mask[..., None])


def joint_index(self, x, mask):
    batch, position = torch.arange(mask.shape[0])[:, None], torch.arange(mask.shape[1])[None]
    return x * mask[batch, position][..., None]


X = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
CHW = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
KINDS = {
    "by name": (text, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    "nested": (lambda self, x, past: (self.linear(x), [{"key": past["key"] * 2}]), (X, {"key": X + 1})),
    "int64 output": (lambda self, x: (self.linear(x).argmax(-1), x), X),
    "bool output": (lambda self, x: self.linear(x) > 0, X),
    "bool input": (lambda self, x, mask: x.masked_fill(~mask[..., None], -1.0), (TOKENS, IDS > 2)),
    "int64 mask, joint index": (joint_index, (TOKENS, torch.ones_like(IDS))),
    "bool mask, joint index": (joint_index, (TOKENS, IDS > 2)),
    "one dimension": (lambda self, x: self.linear(x), X[0]),
    "scalar": (lambda self, x, scale: self.linear(x) * scale, (X, torch.tensor(2.0))),
    "scalar output": (lambda self, x: self.linear(x).mean(), X),
    "image without batch": (lambda self, x: self.conv(x), CHW),
    "update by a mask": (lambda self, x: x.clone().masked_fill_(x < 0, 0.5) + self.linear(x).sum(), X),
    "float16": (lambda self, x: self.halved(x.half()).float(), X),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_artifact_computes_what_the_module_does(backend, kind, tmp_path):
    need(backend, backends.load(backend).missing())
    function, given = KINDS[kind]
    flat = flat_module(Net(function).eval(), given)
    captured = capture(flat, flat.inputs)
    program, _ = fuse_safely(captured, backend)
    runner = opened(program, backend, tmp_path)
    values = [value.numpy() for value in captured.inputs]
    got = runner(*values)
    assert check([captured.arrays(*values)], [got], "fp32").sqnr_db > 90
    assert [value.dtype.name for value in got] == [tensor.dtype for tensor in runner.artifact.outputs]
    named = dict(zip(captured.input_names, values, strict=True))
    again = runner(**named)
    assert all(np.array_equal(again[name], value) for name, value in zip(got.names, got, strict=True))


def opened(program, backend, folder: Path):
    device = hw_profiles.load("onnxruntime-cpu" if backend == "reference" else f"{backend}-cpu")
    return backends.load(backend).load(make_artifact(backend, program, folder, precision="fp32", device=device))


def several(self, x, mask):
    rows, columns = torch.tensor([[0], [-1]]), torch.tensor([0, 2, -3])
    return x[rows, columns], x[:, columns, columns], x[columns.clamp(0, 1), :, columns], x[:, columns] * mask.sum()


def test_openvino_reads_by_several_index_tensors(tmp_path, monkeypatch):
    need("openvino", backends.load("openvino").missing())
    x, mask = torch.randn(2, 5, 4), torch.ones(1)
    program = capture(Net(several).eval(), (x, mask))
    runner = opened(program, "openvino", tmp_path)
    for want, have in zip(program(x, mask), runner(x.numpy(), mask.numpy()), strict=True):
        np.testing.assert_array_equal(have, want.numpy())
    monkeypatch.setattr(fixes, "_FIXES", ())
    (tmp_path / "without").mkdir()
    with pytest.raises(ExportError, match="openvino cannot convert this graph"):  # the fix is still needed
        opened(program, "openvino", tmp_path / "without")


def test_load_opens_the_artifact_of_a_bundle_and_takes_a_list_of_inputs(tmp_path):
    program = capture(Net(lambda self, x: self.linear(x)).eval(), X)
    (tmp_path / "bundle" / "artifact").mkdir(parents=True)
    opened(program, "reference", tmp_path / "bundle" / "artifact")
    with pytest.raises(ValueError, match=r"artifact\.json"):
        export.load(tmp_path / "bundle")
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    runner = export.load(tmp_path / "bundle")
    assert np.array_equal(runner([X.numpy()])[0], runner(X.numpy())[0])
    with pytest.raises(ValueError, match=r"inputs must be numpy arrays, got Tensor; pass numpy\.asarray"):
        runner([X])
