"""Test that each pass fires on a named net, follows the cases of its docstring, and never changes its input."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hnas.export.device.errors import ExportError
from hnas.export.graph.fusion import fuse
from hnas.export.graph.passes.activations import fuse_activations
from hnas.export.graph.passes.batchnorm import fold_batchnorm
from hnas.export.graph.passes.constants import fold_constants
from hnas.export.graph.passes.noops import drop_dropout
from hnas.export.graph.program import capture
from tests.export import nets
from tests.export.programs import Apply, apply, norm, program_of

torch.set_num_threads(1)

FIRES = {
    "resnet": {"drop_dropout": 1, "fold_batchnorm": 8},
    "mobilenet": {"drop_dropout": 1, "fold_batchnorm": 11, "fuse_activations": 5},
    "two_by_two": {"fold_batchnorm": 2, "merge_reshapes": 1},
    "convnext": {
        "drop_dropout": 1,
        "fold_constants": 1,
        "fold_batchnorm": 1,
        "fold_scales": 1,
        "fuse_activations": 1,
        "merge_reshapes": 2,
    },
    "hybrid": {"drop_dropout": 2, "fold_constants": 1, "fold_batchnorm": 2, "fuse_activations": 1},
}


@pytest.mark.parametrize("name", nets.SHAPES)
def test_passes_fire_on_the_named_nets(name):
    net, inputs = nets.build(name)
    program = fuse(capture(net, inputs))
    assert {key: count for key, count in program.fired if count} == FIRES[name]
    assert "aten.batch_norm.default" not in program.operators()
    assert "aten.dropout.default" not in program.operators()
    expected = net(*inputs)
    for want, have in zip(expected if isinstance(expected, tuple) else (expected,), program(*inputs), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    assert all(count == 0 for _, count in fuse(replace(program, fired=())).fired)  # nothing is left for a second time


def test_a_pass_that_lies_is_named():
    def double(program):
        module = fold_batchnorm(program).module
        with torch.no_grad():
            module.get_buffer("stem_0_0_bias").mul_(1.01)
        return replace(program, module=module, fired=(("double", 1),))

    net, inputs = nets.build("resnet")
    with pytest.raises(ExportError, match=r"double changed the output: error .* of its spread \(limit 0.0001\)"):
        fuse(capture(net, inputs), (double,))


def test_examples_of_zeros_hide_no_error():
    def forget(program):
        result = drop_dropout(program)
        graph = result.module.graph
        next(node for node in graph.nodes if node.op == "placeholder").replace_all_uses_with(
            next(node for node in graph.nodes if node.op == "get_attr")
        )
        return replace(program, module=torch.fx.GraphModule(result.module, graph), fired=(("forget", 1),))

    program = capture(Apply(lambda self, x: F.dropout(x, 0.5, False) + self.zero, zero=torch.zeros(3)), torch.zeros(3))
    with pytest.raises(ExportError, match="forget changed the output"):
        fuse(program, (forget,))


class TestDropDropout:
    def test_case_1_active_dropout_is_left_alone(self):
        program = program_of(lambda self, x: F.dropout(x, 0.5, True) + F.dropout(x, 0.5, False), (4,))
        result = drop_dropout(program)
        assert result.fired == (("drop_dropout", 1),)
        assert result.operators()["aten.dropout.default"] == 1

    def test_case_2_copies_go_and_views_become_reshapes(self):
        count, found = apply(
            drop_dropout, program_of(lambda self, x: x.transpose(0, 1).contiguous().view(-1).clone(), (2, 3))
        )
        assert (count, found) == (2, {"transpose": 1, "reshape": 1})

    def test_case_3_conversions(self):
        count, found = apply(drop_dropout, program_of(lambda self, x: x.to(torch.float32) * x.to(torch.int64), (4,)))
        assert found["to"] == 1
        assert count >= 1

    def test_case_4_neutral_numbers(self):
        count, found = apply(drop_dropout, program_of(lambda self, x: ((x + 0) * 1.0 / 1 - 0).relu(), (4,)))
        assert (count, found) == (4, {"relu": 1})
        whole = capture(Apply(lambda self, x: x / 1), torch.arange(3))
        assert drop_dropout(whole).operators() == {"aten.div.Tensor": 1}  # division makes a float of it

    def test_case_5_assertions_go(self):
        _, found = apply(drop_dropout, program_of(lambda self, x: x.to(torch.int64) + 1, (4,)))
        assert found == {"to": 1, "add": 1}


class TestFoldConstants:
    def test_case_1_constant_sub_graphs_are_computed(self):
        program = program_of(lambda self, x: x + (self.k * 2).sin() + torch.arange(4), (4,), k=torch.randn(4))
        assert apply(fold_constants, program) == (2, {"add": 2})

    def test_case_2_random_operators_are_left_alone(self):
        result = fold_constants(program_of(lambda self, x: x + torch.rand(4) * 2, (4,)))
        assert result.operators() == {"aten.add.Tensor": 1, "aten.mul.Tensor": 1, "aten.rand.default": 1}
        assert result.fired[-1][1] == 0

    def test_case_3_large_results_are_left_alone(self):
        program = program_of(lambda self, x: (x + torch.zeros(300, 300)).sum(), (1,))
        count, found = apply(fold_constants, program)
        assert (count, found["zeros"]) == (0, 1)

    def test_case_4_equal_constants_become_one(self):
        large = program_of(lambda self, x: x * self.a + self.b, (1024,), a=torch.ones(1024), b=torch.ones(1024))
        assert apply(fold_constants, large)[0] == 1
        assert len(fold_constants(large).module.state_dict()) == 1
        small = program_of(lambda self, x: x * self.a + self.b, (4,), a=torch.ones(4), b=torch.ones(4))
        assert apply(fold_constants, small)[0] == 0

    def test_case_5_unread_values_go(self):
        def function(self, x):
            x.sin().cos()
            return x + 1

        assert apply(fold_constants, program_of(function, (4,))) == (2, {"add": 1})


class TestFoldBatchnorm:
    @pytest.mark.parametrize(
        ("conv", "kind", "shape"),
        [
            (nn.Conv2d(4, 6, 3), nn.BatchNorm2d, (1, 4, 8, 8)),
            (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d, (2, 4, 8, 8)),
            (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d, (1, 4, 8, 8)),
            (nn.Conv1d(4, 6, 3), nn.BatchNorm1d, (1, 4, 8)),
            (nn.Conv3d(2, 3, 2), nn.BatchNorm3d, (1, 2, 4, 4, 4)),
        ],
    )
    def test_case_1_convolutions(self, conv, kind, shape):
        program = program_of(
            lambda self, x: self.norm(self.conv(x)), shape, conv=conv, norm=norm(conv.out_channels, kind)
        )
        count, found = apply(fold_batchnorm, program)
        assert (count, list(found.values())) == (1, [1])

    def test_case_1_norm_without_weights(self):
        plain = nn.BatchNorm2d(6, affine=False)
        plain.running_var.uniform_(0.5, 2)
        program = program_of(lambda self, x: self.norm(self.conv(x)), (1, 4, 5, 5), conv=nn.Conv2d(4, 6, 1), norm=plain)
        assert apply(fold_batchnorm, program) == (1, {"conv2d": 1})

    def test_case_2_conv_that_is_read_elsewhere(self):
        def function(self, x):
            y = self.conv(x)
            return self.norm(y) + y

        program = program_of(function, (1, 4, 5, 5), conv=nn.Conv2d(4, 6, 1), norm=norm(6))
        assert apply(fold_batchnorm, program)[0] == 0

    @pytest.mark.parametrize(
        ("layer", "features", "kind", "shape"),
        [
            (nn.Conv2d(4, 6, 3), 4, nn.BatchNorm2d, (1, 4, 5, 5)),
            (nn.Conv2d(4, 6, 3, groups=2, bias=False, padding="valid"), 4, nn.BatchNorm2d, (1, 4, 5, 5)),
            (nn.Conv1d(4, 6, 3, stride=2), 4, nn.BatchNorm1d, (2, 4, 9)),
            (nn.Linear(4, 6), 4, nn.BatchNorm1d, (2, 4)),
        ],
    )
    def test_case_3_norm_before_a_layer(self, layer, features, kind, shape):
        program = program_of(lambda self, x: self.layer(self.norm(x)), shape, layer=layer, norm=norm(features, kind))
        count, found = apply(fold_batchnorm, program)
        assert (count, list(found.values())) == (1, [1])

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: self.padded(self.norm(x)),
            lambda self, x: self.conv(self.norm(x).relu()),
            lambda self, x: self.conv(self.norm(x)).mean() + self.norm(x).mean(),
            lambda self, x: self.conv(torch.relu(x)) + self.conv(self.norm(x)) * self.norm(x).mean(),
        ],
    )
    def test_case_3_left_alone(self, function):
        parts = {"conv": nn.Conv2d(4, 6, 1), "padded": nn.Conv2d(4, 6, 3, padding=1), "norm": norm(4)}
        result = fold_batchnorm(program_of(function, (1, 4, 5, 5), **parts))
        assert result.operators()["aten.batch_norm.default"] >= 1

    def test_case_4_linear(self):
        parts = {"linear": nn.Linear(4, 6), "norm": norm(6, nn.BatchNorm1d)}
        assert apply(fold_batchnorm, program_of(lambda self, x: self.norm(self.linear(x)), (2, 4), **parts))[0] == 1
        assert apply(fold_batchnorm, program_of(lambda self, x: self.norm(self.linear(x)), (2, 6, 4), **parts))[0] == 0

    def test_case_4_without_a_batch_the_norm_works_on_the_length(self):
        program = program_of(
            lambda self, x: self.norm(self.conv(x)), (4, 6), conv=nn.Conv1d(4, 5, 1), norm=norm(6, nn.BatchNorm1d)
        )
        assert apply(fold_batchnorm, program)[0] == 0

    @pytest.mark.parametrize("groups", [1, 2])
    def test_case_5_transposed_convolution(self, groups):
        parts = {"conv": nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups), "norm": norm(6)}
        assert apply(fold_batchnorm, program_of(lambda self, x: self.norm(self.conv(x)), (1, 4, 5, 5), **parts))[0] == 1

    def test_case_6_moments_of_the_batch(self):
        parts = {"conv": nn.Conv2d(4, 6, 1), "norm": nn.BatchNorm2d(6, track_running_stats=False)}
        assert apply(fold_batchnorm, program_of(lambda self, x: self.norm(self.conv(x)), (2, 4, 5, 5), **parts))[0] == 0

    def test_case_7_computed_weight(self):
        program = program_of(lambda self, x, w: self.norm(F.conv2d(x, w)), (1, 4, 5, 5), (6, 4, 1, 1), norm=norm(6))
        assert apply(fold_batchnorm, program)[0] == 0

    def test_case_8_shared_weight(self):
        program = program_of(
            lambda self, x: self.one(self.conv(x)) + self.two(self.conv(x)),
            (1, 4, 5, 5),
            conv=nn.Conv2d(4, 6, 1),
            one=norm(6),
            two=norm(6),
        )
        assert apply(fold_batchnorm, program) == (2, {"conv2d": 2, "add": 1})

    def test_large_and_small_variances_are_folded_exactly(self):
        part = norm(6)
        part.running_var.copy_(torch.logspace(-6, 6, 6))
        conv = nn.Conv2d(4, 6, 1)
        program = program_of(lambda self, x: self.norm(self.conv(x)), (1, 4, 5, 5), conv=conv, norm=part)
        folded = fold_batchnorm(program)
        exact = part.eval().double()(conv.double()(program.inputs[0].double()))
        torch.testing.assert_close(folded(*program.inputs)[0].double(), exact, rtol=1e-4, atol=1e-3)


def tanh_gelu(self, x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FUSED = {
    "1 clamp from 0": (lambda self, x: x.clamp(0), "relu"),
    "1 clamp_min": (lambda self, x: torch.clamp_min(x, 0.0), "relu"),
    "2 clamp": (lambda self, x: x.clamp(0, 6), "relu6"),
    "2 hardtanh": (lambda self, x: F.hardtanh(x, 0, 6), "relu6"),
    "2 relu, then clamp_max": (lambda self, x: torch.clamp_max(x.relu(), 6), "relu6"),
    "3 relu6 / 6": (lambda self, x: F.relu6(x + 3) / 6, "hardsigmoid"),
    "3 clamp * (1 / 6)": (lambda self, x: (3.0 + x).clamp(0, 6) * (1 / 6), "hardsigmoid"),
    "4 product / 6": (lambda self, x: x * F.relu6(x + 3) / 6, "hardswish"),
    "4 relu6 / 6 * x": (lambda self, x: F.relu6(x + 3) / 6 * x, "hardswish"),
    "4 x * hardsigmoid": (lambda self, x: x * F.hardsigmoid(x), "hardswish"),
    "5 x * sigmoid": (lambda self, x: x * torch.sigmoid(x), "silu"),
    "5 sigmoid * x": (lambda self, x: x.sigmoid() * x, "silu"),
    "6 erf": (lambda self, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "6 erf, other order": (lambda self, x: 0.5 * (x * (torch.erf(x * 0.70710678) + 1.0)), "gelu"),
    "6 erf, division": (lambda self, x: x / 2 * (1 + torch.erf(x / 2**0.5)), "gelu"),
    "6 erf, tensors": (lambda self, x: self.scale * x * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "6 tanh": (tanh_gelu, "gelu"),
    "6 tanh, factored": (lambda self, x: 0.5 * x * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))), "gelu"),
}


def read_twice(self, x):
    gate = torch.sigmoid(x)
    return x * gate + gate


ALONE = {
    "2 other bounds": lambda self, x: x.clamp(0, 5) + x.clamp(-1, 6) + F.hardtanh(x),
    "3 other offset": lambda self, x: F.relu6(x + 2) / 6,
    "3 other divisor": lambda self, x: F.relu6(x + 3) / 3,
    "4 gate of another value": lambda self, x: self.w * x * F.hardsigmoid(x + 1),
    "5 gate of another value": lambda self, x: x * torch.sigmoid(x + 1),
    "6 other slope": lambda self, x: x * 0.5 * (1 + torch.erf(x)),
    "6 other coefficient": lambda self, x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.05 * x**3))),
    "7 part read elsewhere": read_twice,
}


class TestFuseActivations:
    @pytest.mark.parametrize("case", FUSED)
    def test_case(self, case):
        function, name = FUSED[case]
        count, found = apply(fuse_activations, program_of(function, (64,), scale=torch.tensor(0.5)))
        assert count >= 1
        assert found == {name: 1}

    @pytest.mark.parametrize("case", ALONE)
    def test_left_alone(self, case):
        program = program_of(ALONE[case], (64,), w=torch.tensor(2.0))
        assert apply(fuse_activations, program)[0] == 0

    def test_case_8_integers(self):
        program = capture(Apply(lambda self, x: x.clamp(0, 6)), torch.arange(-3, 9))
        assert fuse_activations(program).fired == (("fuse_activations", 0),)

    def test_the_tanh_form_stays_the_tanh_form(self):
        program = fuse_activations(program_of(tanh_gelu, (64,)))
        (node,) = (node for node in program.module.graph.nodes if node.op == "call_function")
        assert node.kwargs == {"approximate": "tanh"}
