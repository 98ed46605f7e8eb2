"""Test the line of a failed compilation on planted failures, each in a module inside of a module or in a node."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hnas import export
from hnas.export import backends
from hnas.export.diagnosis import unsupported as diagnosis
from hnas.export.graph.program import capture
from tests.conftest import need
from tests.export import onnx_files


class Around(nn.Module):
    """A projection, then one function."""

    def __init__(self, function):
        super().__init__()
        self.proj, self.function = nn.Linear(8, 8), function

    def forward(self, x):
        return self.function(self.proj(x))


class Layer(nn.Module):
    """A block of a transformer, whose ``attn`` is planted."""

    def __init__(self, function):
        super().__init__()
        self.attn, self.norm = Around(function), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + self.attn(x))


class Net(nn.Module):
    """Three layers; the one in the middle calls the function."""

    def __init__(self, function):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([Layer(torch.relu), Layer(function), Layer(torch.tanh)])

    def forward(self, x):
        for layer in self.encoder.layers:
            x = layer(x)
        return x.mean(1)


PLANTED = {  # who refuses it, its name in the line, who takes it
    "nobody": (torch.special.i1, ("onnxruntime", "openvino", "tflite"), "aten.special_i1", None),
    "a decomposed one": (
        lambda x: torch.linalg.eigvalsh(x.transpose(1, 2) @ x)[:, None] + x,
        ("onnxruntime",),
        "aten.linalg_eigvalsh",
        None,
    ),
    "tflite lacks it": (
        lambda x: x.masked_scatter(x > 0, x.flip(1)),
        ("tflite",),
        "aten.masked_scatter",
        "supported by onnxruntime and openvino",
    ),
}
CASES = [(name, backend) for name, (_, refusing, *_) in PLANTED.items() for backend in refusing]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_the_line_names_the_operator_its_module_and_who_takes_it(name, backend, tmp_path, monkeypatch):
    for each in ("onnxruntime", "openvino", "tflite"):
        need(each, backends.load(each).missing())
    if backend == "tflite":
        pytest.importorskip("litert_torch")
    monkeypatch.setattr(diagnosis, "SECONDS", 300.0)  # of a busy machine
    function, _, operator, who = PLANTED[name]
    with pytest.raises(export.ExportError) as caught:
        export.compile(Net(function), torch.randn(1, 4, 8), device=f"{backend}-cpu", path=tmp_path / "net")
    line = str(caught.value)
    assert line.startswith(f"{backend} refuses {operator} in encoder.layers.1.attn; ")
    assert "\n" not in line
    assert who is None or who in line
    assert who is not None or "supported by" not in line
    assert not (tmp_path / "net").exists()


def test_the_operator_is_named_without_time(monkeypatch):
    monkeypatch.setattr(diagnosis, "SECONDS", 0.0)
    program = capture(Net(torch.special.i1), torch.randn(1, 4, 8))
    line = diagnosis.unsupported(program, "openvino", error="No conversion rule found for operations: aten::special_i1")
    assert line.startswith("openvino refuses aten.special_i1 in encoder.layers.1.attn; ")


def test_complex_numbers_are_those_of_the_operator_that_makes_them():
    program = capture(Net(lambda x: torch.fft.fft(torch.fft.fft(x), dim=1).real), torch.randn(1, 4, 8))
    line = diagnosis.unsupported(program, "tflite", error="litert-torch cannot convert this graph: torch.complex64")
    assert line == (
        "tflite refuses aten.fft_fft in encoder.layers.1.attn; who takes it could not be tested: "
        "no file takes or returns complex numbers, so it cannot be run alone"
    )


def test_a_node_of_a_file_is_named(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    for each in ("onnxruntime", "openvino"):
        need(each, backends.load(each).missing())
    node = onnx.helper.make_node("Det", ["a"], ["y"], name="/encoder/layers.1/Det")
    made = onnx_files.model([onnx.helper.make_node("Relu", ["x"], ["a"]), node], {"x": [1, 3, 3]}, {"y": [1]})
    path = onnx_files.save(made, tmp_path / "det.onnx")
    with pytest.raises(export.ExportError) as caught:
        export.compile(path, device="openvino-cpu", path=tmp_path / "net")
    assert str(caught.value) == (
        "openvino refuses Det-17 in node /encoder/layers.1/Det of det.onnx: it has no such operator; "
        "supported by onnxruntime, which ran the file"
    )
