"""Test that one size of a graph can stay open, and that what would fix it is noticed."""

import pytest
import torch
from torch import nn

from hnas.export.graph import fusion
from hnas.export.graph.dynamic import has_open_sizes, keeps_size, with_size
from hnas.export.graph.fusion import fuse, fuse_safely
from hnas.export.graph.nodes import aten, edit
from hnas.export.graph.program import capture
from hnas.export.graph.sizes import parse_dynamic
from hnas.export.graph.wire import pack, unpack

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = {"x": {0: "batch"}}


class Reader(nn.Module):
    """Reads the batch size in all the ways of vision transformers: expand, reshape, ones, arange."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.patches = nn.Parameter(torch.randn(1, 1, 8)), nn.Conv2d(3, 8, 4, 4)
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        count = x.shape[0]
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(count, -1, -1), tokens], 1)
        query, key, value = self.project(tokens).reshape(count, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, 5, 8)
        return self.head((mixed * torch.ones(count, 5, 1))[:, 0]), mixed.view(count, -1), torch.arange(count)


class Plain(nn.Module):
    """Flattens by the batch size, as most networks do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 5)

    def forward(self, x):
        return {"scores": self.head(torch.relu(self.norm(self.conv(x))).view(x.shape[0], -1))}


@pytest.mark.parametrize("kind", [Reader, Plain])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_size_computes_what_the_module_does(kind, backend):
    net = kind().eval()
    captured = capture(net, X, BATCH)
    program, _ = fuse_safely(captured, backend)
    assert program.dynamic.inputs == (0,)
    assert set(program.dynamic.outputs) == {0}
    for count in (1, 2, 6):
        x = torch.randn(count, 3, 8, 8)
        expected = net(x)
        for want, have in zip(expected.values() if kind is Plain else expected, program(x), strict=True):
            torch.testing.assert_close(have, want)


def test_the_examples_keep_their_size_and_plain_graphs_compute_none():
    program = capture(Plain().eval(), X, BATCH)
    assert [tensor.shape for tensor in program.signature[0]] == [(1, 3, 8, 8)]
    assert not has_open_sizes(program.module)
    assert has_open_sizes(capture(Reader().eval(), X, BATCH).module)
    assert unpack(*pack(program)).dynamic == program.dynamic
    fused = fuse(program)
    assert dict(fused.fired)["fold_batchnorm"] == 1


def baked(program):
    """Write the size of the example into a reshape."""

    def rewrite(module):
        for node in module.graph.nodes:
            if node.target is aten.view.default:
                node.args = (node.args[0], [1, 144])
        return 1

    return edit(program, "baked", rewrite)


def test_a_pass_that_fixes_the_size_is_left_out(monkeypatch):
    program = capture(Plain().eval(), X, BATCH)
    monkeypatch.setattr(fusion, "passes_for", lambda _: (baked,))
    fused, remarks = fuse_safely(program, "onnxruntime")
    assert remarks == ["left out baked: it needs a fixed batch"]
    assert fused(torch.zeros(4, 3, 8, 8))[0].shape == (4, 5)
    assert keeps_size(baked, program) is program
    fixed = capture(Plain().eval(), X)
    assert keeps_size(baked, fixed) is not fixed


WRONG = {
    "no such input": ({"y": {0: "batch"}}, "dynamic names the input 'y'; known: x"),
    "no such axis": ({"x": {4: "batch"}}, "dynamic has {4: 'batch'} for x, expected one axis below 4"),
    "two axes": ({"x": {0: "batch", 2: "height"}}, "expected one axis below 4"),
    "no name": ({"x": {0: ""}}, r"dynamic names the sizes \[''\], expected one, like batch or batch=1..32"),
    "example out of range": ({"x": {0: "batch=2..8"}}, "expected one batch of 2 to 8"),
    "empty range": ({"x": {0: "batch=8..2"}}, "the range of batch is 8 to 2"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_requests_are_one_line(kind):
    asked, line = WRONG[kind]
    with pytest.raises(ValueError, match=line):
        parse_dynamic(asked, ["x"], [X])


def test_an_output_with_another_multiple_is_refused():
    class Doubled(nn.Module):
        def forward(self, x):
            return torch.cat([x, x])

    with pytest.raises(ValueError, match=r"output 0 has the shapes \[4, 3\] and \[6, 3\] for a batch of 2 and 3"):
        capture(Doubled(), torch.zeros(1, 3), BATCH)


def test_inputs_are_repeated_to_a_size():
    size = parse_dynamic({"x": {1: "n"}}, ["x", "y"], [torch.tensor([[1, 2]]), X])
    found = with_size([torch.tensor([[1, 2]]), X], size, 5)
    assert found[0].tolist() == [[1, 2, 1, 2, 1]]
    assert found[1] is X
