"""Test the pass that splits the projections of an attention, and that no pass takes one apart."""

import pytest
from torch import nn

from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.passes.projections import split_projections
from hnas.export.graph.program import capture
from tests.export import nets
from tests.export.programs import apply, program_of


def test_attention_is_never_taken_apart():
    net, inputs = nets.build("hybrid")
    for backend in ("onnxruntime", "openvino", "tflite"):
        operators = fuse(capture(net, inputs), passes_for(backend)).operators()
        assert operators["aten.scaled_dot_product_attention.default"] == 1


class TestSplitProjections:
    @pytest.mark.parametrize(
        "cut",
        [
            lambda y: y.reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0),
            lambda y: y.unflatten(-1, (3, 8)).unsqueeze(0).transpose(0, -2).squeeze(-2).unbind(0),  # torch's own
            lambda y: (z := y.unflatten(-1, (3, 8)))[:, :, 0] * z[:, :, 2],
            lambda y: y.reshape(2, 5, 6, 4).permute(0, 2, 1, 3).select(1, -1),  # one part of six
        ],
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_case_1_a_product_for_each_part(self, cut, bias):
        count, found = apply(
            split_projections, program_of(lambda self, x: cut(self.all(x)), (2, 5, 6), all=nn.Linear(6, 24, bias=bias))
        )
        assert count == 1
        assert not {"unbind", "select"} & set(found)

    @pytest.mark.parametrize(
        "cut",
        [
            lambda y: y.reshape(2, 5, 3, 8).sum() * y.reshape(2, 5, 3, 8)[:, :, 0],  # read elsewhere
            lambda y: y.reshape(2, 15, 8).select(1, 2),  # positions are mixed in
            lambda y: y.reshape(2, 5, 8, 3).select(3, 0),  # every third row of the weight
            lambda y: y.select(1, 0),
        ],
    )
    def test_case_2_left_alone(self, cut):
        program = program_of(lambda self, x: cut(self.all(x)), (2, 5, 6), all=nn.Linear(6, 24))
        assert apply(split_projections, program)[0] == 0
