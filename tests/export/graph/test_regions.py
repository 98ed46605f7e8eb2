"""Test that regions of context managers become plain operators, and that an enabled autocast is refused."""

import pytest
import torch
from torch import nn

from hnas.export.device.errors import ExportError
from hnas.export.graph.program import capture


class Inside(nn.Module):
    """Compute two values inside of a context, and one outside."""

    def __init__(self, context):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.context = context

    def forward(self, x):
        x = self.linear(x)
        with self.context():
            y, z = self.linear(x).exp(), x.sin()
            with torch.no_grad():
                w = y * 2
        return x + y * z + w


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16, enabled=False)]
)
def test_a_region_is_inlined(context):
    torch.manual_seed(0)
    net, x = Inside(context), torch.randn(2, 4)
    program = capture(net, x)
    assert all(name.startswith("aten.") for name in program.operators())
    assert program.operators()["aten.linear.default"] == 2
    torch.testing.assert_close(program(x)[0], net(x))


def test_an_enabled_autocast_is_refused():
    with pytest.raises(ExportError, match=r"^the network computes in torch\.bfloat16 by torch\.autocast; leave it out"):
        capture(Inside(lambda: torch.autocast("cpu", torch.bfloat16)), torch.randn(2, 4))
