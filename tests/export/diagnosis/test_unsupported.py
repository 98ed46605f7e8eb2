"""Test that a missing operator is named, with the backends that have it."""

import pytest
import torch
from torch import nn

from hnas import export
from hnas.export import backends
from hnas.export.device.errors import ExportError
from tests.conftest import need


class Around(nn.Module):
    """A convolution, then one function."""

    def __init__(self, function):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.convolution(x))


@pytest.mark.parametrize(
    ("function", "backend", "line"),
    [
        (lambda x: torch.cdist(x, x), "onnxruntime", r"^onnxruntime has no aten\.cdist; supported by openvino.* \("),
        (torch.logcumsumexp, "openvino", r"^openvino has no aten\.logcumsumexp; supported by onnxruntime \("),
        (torch.digamma, "onnxruntime", r"^onnxruntime has no aten\.digamma; no other backend here has it \(.*openvino"),
    ],
    ids=["cdist", "logcumsumexp", "digamma"],
)
def test_the_operator_is_named_and_who_takes_it(function, backend, line, tmp_path):
    for name in ("onnxruntime", "openvino"):
        need(name, backends.load(name).missing())
    net = Around((lambda x: function(x, 1)) if function is torch.logcumsumexp else function)
    with pytest.raises(ExportError, match=line) as refused:
        export.compile(net, (torch.rand(1, 3, 4, 4),), device=f"{backend}-cpu", path=tmp_path / "artifact")
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert not (tmp_path / "artifact").exists()
