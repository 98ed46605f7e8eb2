"""Test the pass that merges reshapes and permutes, case by case."""

import torch

from hnas.export.graph.passes.reshapes import merge_reshapes
from tests.export.programs import apply, program_of


class TestMergeReshapes:
    def test_case_1_reshapes(self):
        program = program_of(lambda self, x: x.flatten(1).unsqueeze(0).reshape(6, 4).relu(), (2, 3, 4))
        assert apply(merge_reshapes, program) == (2, {"reshape": 1, "relu": 1})

    def test_case_2_permutes(self):
        program = program_of(lambda self, x: x.permute(0, 2, 1).transpose(0, -1).relu(), (2, 3, 4))
        assert apply(merge_reshapes, program) == (1, {"permute": 1, "relu": 1})

    def test_case_2_a_permute_of_single_elements_is_a_reshape(self):
        program = program_of(lambda self, x: x.transpose(0, 1).relu().reshape(4, 6).sin(), (1, 4, 6))
        assert apply(merge_reshapes, program)[1] == {"reshape": 2, "relu": 1, "sin": 1}

    def test_case_3_what_changes_nothing_goes(self):
        program = program_of(lambda self, x: x.permute(1, 2, 0).permute(2, 0, 1).reshape(2, 3, 4).relu(), (2, 3, 4))
        assert apply(merge_reshapes, program) == (2, {"relu": 1})
        assert apply(merge_reshapes, program_of(lambda self, x: x.t().t().relu(), (2, 3))) == (1, {"relu": 1})

    def test_case_4_inner_read_elsewhere(self):
        def function(self, x):
            y = x.flatten(1)
            return y.relu(), y.reshape(6, 4).sin()

        assert apply(merge_reshapes, program_of(function, (2, 3, 4))) == (
            1,
            {"flatten": 1, "reshape": 1, "relu": 1, "sin": 1},
        )

    def test_case_5_reshape_after_permute(self):
        program = program_of(lambda self, x: x.transpose(1, 2).reshape(2, 12).relu(), (2, 3, 4))
        assert apply(merge_reshapes, program)[0] == 0

    def test_case_5_reshape_of_single_elements_goes_before_the_permute(self):
        program = program_of(lambda self, x: x.reshape(6, 4, 5).transpose(0, 1).reshape(1, 4, 6, 5).relu(), (6, 20))
        count, found = apply(merge_reshapes, program)
        assert count > 0
        assert found == {"reshape": 1, "permute": 1, "relu": 1}

    def test_case_5_the_permute_moves_no_single_elements(self):
        program = program_of(lambda self, x: x.permute(2, 0, 1, 3).reshape(6, 20).relu(), (1, 4, 6, 5))
        made = merge_reshapes(program)
        assert made(*program.inputs)[0].shape == (6, 20)
        (permute,) = [node for node in made.module.graph.nodes if node.target is torch.ops.aten.permute.default]
        assert permute.args[1] == [0, 2, 1, 3]
        assert apply(merge_reshapes, program) == (1, {"permute": 1, "reshape": 1, "relu": 1})
