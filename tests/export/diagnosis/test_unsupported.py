"""Test that a refused operator is named, with its module in the user's network and the backends that take it."""

import os
import re
import signal
from importlib.util import find_spec
from time import monotonic

import pytest
import torch
from torch import nn

from hnas import export
from hnas.export import backends
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.frames import pack_frame
from hnas.export.diagnosis import unsupported as diagnosis
from hnas.export.diagnosis.refusals import RefusalTest
from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.program import capture
from hnas.export.graph.subgraph import isolate
from hnas.export.graph.wire import pack
from tests.conftest import need


class Around(nn.Module):
    """A convolution, then one function."""

    def __init__(self, function):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.convolution(x))


def _nested(function):
    """Return a network that calls the function in ``encoder.1`` and ``encoder.2``."""
    net = nn.Module()
    net.encoder = nn.Sequential(nn.Conv2d(3, 3, 1), Around(function), Around(function))
    net.forward = lambda x: net.encoder(x).mean((2, 3))
    return net


@pytest.fixture
def patient(monkeypatch):
    """Give the diagnosis time on a busy machine."""
    monkeypatch.setattr(diagnosis, "SECONDS", 300.0)
    for name in ("onnxruntime", "openvino"):
        need(name, backends.load(name).missing())


@pytest.mark.parametrize(
    ("function", "backend", "line"),
    [
        (
            lambda x: torch.cdist(x, x),
            "onnxruntime",
            r"^onnxruntime refuses aten\.cdist in encoder\.1 and 1 more; supported by openvino.*No ONNX .*cdist",
        ),
        (
            lambda x: torch.logcumsumexp(x, 1),
            "openvino",
            r"^openvino refuses aten\.logcumsumexp in encoder\.1 and 1 more; supported by onnxruntime.*No conversion",
        ),
    ],
    ids=["cdist", "logcumsumexp"],
)
def test_the_operator_its_module_and_who_takes_it_are_named(function, backend, line, tmp_path, patient):
    with pytest.raises(ExportError, match=line) as refused:
        export.compile(
            _nested(function), (torch.rand(1, 3, 4, 4),), device=f"{backend}-cpu", path=tmp_path / "artifact"
        )
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert not (tmp_path / "artifact").exists()


def test_a_backend_without_a_profile_here_is_diagnosed_from_its_error(tmp_path, monkeypatch):
    """TensorRT is on the device, so nothing is tried on it."""
    need("onnxruntime", None if find_spec("onnxscript") else "onnxscript is not installed")
    monkeypatch.setattr(diagnosis, "_others", lambda parts, *_: f"{len(parts)} tried elsewhere")
    net, example = _nested(lambda x: torch.cdist(x, x)), (torch.rand(1, 3, 4, 4),)
    line = r"^tensorrt refuses aten\.cdist in encoder\.1 and 1 more; 1 tried elsewhere \(.*No ONNX .*cdist"
    with pytest.raises(ExportError, match=line):
        export.compile(net, example, device="jetson", path=tmp_path / "a")
    program = capture(nn.ReLU(), torch.rand(1, 3))
    assert diagnosis.unsupported(program, "tensorrt", error="TensorRT has no Hardmax") is None
    monkeypatch.setattr(diagnosis, "_others", _failing(OSError("broken")))
    said = diagnosis.unsupported(program, "tensorrt", error="No ONNX function for aten.relu")
    assert said == "tensorrt refuses aten.relu in ReLU; who takes it could not be tested: broken"


def test_an_operator_that_a_pass_made_has_the_module_of_its_neighbours():
    program = fuse(capture(_nested(lambda x: x * torch.sigmoid(x)), torch.rand(1, 3, 4, 4)), passes_for("openvino"))
    for node in program.module.graph.nodes:
        if "silu" in str(node.target):
            node.meta.pop("nn_module_stack", None)
    (kind,) = (kind for kind in diagnosis._kinds(program, "") if "silu" in kind.name)
    assert kind.line() in ("aten.silu in encoder.1.convolution and 1 more", "aten.silu in encoder.1 and 1 more")


def test_kinds_are_by_types_and_ranks_and_those_of_the_error_come_first():
    class Indexing(nn.Module):
        def forward(self, x, m):
            picked = m[torch.arange(2)[:, None] * m[:, :1], m] + m[m[:, 0]]
            return x.exp().exp() + x[picked[:, 0]] + x[:, picked[0]]

    program = capture(Indexing(), (torch.rand(2, 2), torch.zeros(2, 2, dtype=torch.long)))
    names = [kind.name for kind in diagnosis._kinds(program, "no rule for aten::index")]
    assert names[:4] == ["aten.index.Tensor"] * 4
    assert [len(kind.nodes) for kind in diagnosis._kinds(program, "") if kind.name == "aten.exp"] == [2]


def _failing(error):
    """Return a function that raises ``error``."""

    def refusal(*_):
        raise error

    return refusal


@pytest.mark.parametrize("error", [TimeoutError("the time is over"), KeyError(), OSError(), RuntimeError()])
def test_the_diagnosis_itself_never_raises(error, monkeypatch):
    need("openvino", backends.load("openvino").missing())
    program = capture(nn.ReLU(), torch.rand(1, 3))
    monkeypatch.setattr(RefusalTest, "refusal", _failing(error))
    assert diagnosis.unsupported(program, "openvino").startswith(
        "which operator openvino refuses could not be tested: "
    )
    asked = []

    def refusal(self, part):
        if not asked:
            asked.append(part)
            return "of a reason"
        raise error

    monkeypatch.setattr(RefusalTest, "refusal", refusal)
    said = diagnosis.unsupported(program, "openvino")
    assert said.startswith("openvino refuses aten.relu in ReLU: of a reason; ")
    assert re.search("onnxruntime( and .*)? could not be tested: ", said)
    monkeypatch.setattr(diagnosis, "_kinds", lambda program, error: {}[error])
    assert diagnosis.unsupported(program, "openvino").startswith(
        "which operator openvino refuses could not be tested: "
    )


def test_an_operator_that_cannot_be_run_alone_is_passed_over(monkeypatch, patient):
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real.exp()

    def refusal(self, part):
        pack_frame({}, pack(part)[1])
        return "of a reason" if "aten.exp.default" in part.operators() else None

    monkeypatch.setattr(RefusalTest, "refusal", refusal)
    said = diagnosis.unsupported(capture(Spectrum(), torch.rand(1, 4)), "openvino")
    assert said.startswith("openvino refuses aten.exp in Spectrum: of a reason; ")


@pytest.mark.parametrize("refusal", [lambda *_: None, _failing(OSError("broken"))], ids=["works", "fails"])
@pytest.mark.parametrize("error", ["", "no rule for prims::exp", "no rule for aten::silu", "aten::silu, aten::relu"])
def test_the_network_is_taken_apart_once(refusal, error, monkeypatch, patient):
    """silu is decomposed into exp, so each operator is needed alone before any is tried."""
    limits = []

    def counted(program, nodes, end):
        limits.append(end)
        return isolate(program, nodes, end)

    monkeypatch.setattr(diagnosis, "isolate", counted)
    monkeypatch.setattr(RefusalTest, "refusal", refusal)
    program = capture(nn.Sequential(nn.SiLU(), nn.ReLU()), torch.rand(1, 3))
    began = monotonic()
    said = diagnosis.unsupported(program, "openvino", error=error)
    assert said.startswith("openvino refuses aten.silu in 0") or "relu" in error or not error
    (limit,) = limits
    assert limit - began == pytest.approx(diagnosis.SECONDS / 2, abs=100)


def test_no_time_is_said_and_takes_no_time(monkeypatch):
    monkeypatch.setattr(diagnosis, "SECONDS", 0.0)
    said = diagnosis.unsupported(capture(nn.ReLU(), torch.rand(1, 3)), "openvino")
    assert said == "which operator openvino refuses could not be tested: 0 s are over"
    said = diagnosis.unsupported(capture(nn.ReLU(), torch.rand(1, 3)), "openvino", error="no rule for aten::relu")
    assert said == "openvino refuses aten.relu in ReLU; who takes it could not be tested: 0 s are over"


def test_a_crash_is_a_refusal_and_the_next_program_is_tried():
    need("onnxruntime", backends.load("onnxruntime").missing())
    program = capture(nn.ReLU(), torch.rand(1, 3))
    with RefusalTest(monotonic() + 300, "onnxruntime", "fp32") as test:
        os.kill(test._child._process.pid, signal.SIGSEGV)
        assert "died with SIGSEGV" in test.refusal(program)
        assert test.refusal(program) is None


def test_a_missing_package_is_no_refusal(monkeypatch):
    monkeypatch.setattr(RefusalTest, "refusal", _failing(Unavailable("litert-torch is not installed")))
    assert "litert-torch is not installed" in diagnosis.unsupported(capture(nn.ReLU(), torch.rand(1, 3)), "openvino")
