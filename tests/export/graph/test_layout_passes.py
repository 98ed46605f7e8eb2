"""Test each case of the passes that move activations, gates and permutes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hnas.export.graph.passes.activation_order import raise_activations
from hnas.export.graph.passes.gates import clip_hardsigmoids, pooled_linears
from hnas.export.graph.passes.norms import flatten_norms
from hnas.export.graph.passes.permutes import cancel_permutes, pointwise_convolutions
from tests.export.programs import apply, program_of

torch.set_num_threads(1)


class TestRaiseActivations:
    @pytest.mark.parametrize(
        ("function", "operators"),
        [
            (lambda self, x: F.gelu(self.conv(x).permute(0, 2, 3, 1)), ["conv2d", "gelu", "permute"]),
            (lambda self, x: self.conv(x).flatten(1).clamp(0, 1), ["conv2d", "clamp", "flatten"]),
            (lambda self, x: torch.relu(F.max_pool2d(self.conv(x), 2)), ["conv2d", "relu", "max_pool2d"]),
            (
                lambda self, x: torch.relu(torch.cat([self.conv(x), self.two(x)], 1)),
                ["conv2d", "relu", "conv2d", "relu", "cat"],
            ),
        ],
    )
    def test_cases_1_to_3_fire(self, function, operators):
        program = program_of(function, (1, 4, 6, 6), conv=nn.Conv2d(4, 6, 1), two=nn.Conv2d(4, 2, 1))
        assert apply(raise_activations, program)[0] == 1
        nodes = raise_activations(program).module.graph.nodes
        order = [str(node.target).split(".")[1] for node in nodes if node.op == "call_function"]
        assert sorted(order) == sorted(operators)
        assert order.index(operators[1]) < order.index(operators[-1])

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: torch.relu(self.conv(x)),
            lambda self, x: F.silu(F.max_pool2d(self.conv(x), 2)),  # falls before it rises
            lambda self, x: torch.relu(F.avg_pool2d(self.conv(x), 2)),
            lambda self, x: torch.relu(torch.cat([self.conv(x), x], 1)),
            lambda self, x: torch.relu(torch.cat([(y := self.conv(x)), y], 1)),
            lambda self, x: torch.relu((y := self.conv(x)).flatten(1)) + y.flatten(1),
        ],
    )
    def test_case_4_left_alone(self, function):
        assert apply(raise_activations, program_of(function, (1, 4, 6, 6), conv=nn.Conv2d(4, 6, 1)))[0] == 0


class TestClipHardsigmoids:
    def test_case_1_behind_a_layer(self):
        parts = {"conv": nn.Conv2d(4, 6, 1, bias=False), "linear": nn.Linear(6, 3)}
        program = program_of(lambda self, x: F.hardsigmoid(self.conv(x)), (1, 4, 5, 5), **parts)
        assert apply(clip_hardsigmoids, program) == (1, {"clamp": 1, "conv2d": 1})
        program = program_of(lambda self, x: F.hardsigmoid(self.linear(x)), (5, 6), **parts)
        assert apply(clip_hardsigmoids, program) == (1, {"clamp": 1, "linear": 1})

    def test_case_2_left_alone(self):
        def function(self, x):
            y = self.conv(x)
            return F.hardsigmoid(y) * y + F.hardsigmoid(y.relu())

        assert apply(clip_hardsigmoids, program_of(function, (1, 4, 5, 5), conv=nn.Conv2d(4, 6, 1)))[0] == 0


class TestPooledLinears:
    @pytest.mark.parametrize(
        "pool", [nn.AdaptiveAvgPool2d(1), lambda x: x.mean((2, 3), True), lambda x: x.amax((2, 3), True)]
    )
    def test_cases_1_and_2_fire(self, pool):
        parts = {"less": nn.Conv2d(8, 4, 1), "more": nn.Conv2d(4, 8, 1, bias=False)}
        program = program_of(
            lambda self, x: x * torch.sigmoid(self.more(torch.relu(self.less(pool(x))))), (2, 8, 5, 5), **parts
        )
        count, found = apply(pooled_linears, program)
        assert (count, found["linear"], found.get("conv2d")) == (2, 2, None)
        assert found["reshape"] == (2 if "amax" in found else 1)

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: self.point(x),
            lambda self, x: self.groups(x.mean((2, 3), True)),
            lambda self, x: self.wide(x.mean((2, 3), True)),
            lambda self, x: self.beyond(x.mean((2, 3), True)),
        ],
    )
    def test_case_3_left_alone(self, function):
        parts = {
            "point": nn.Conv2d(8, 4, 1),
            "groups": nn.Conv2d(8, 4, 1, groups=2),
            "beyond": nn.Conv2d(8, 4, 1, stride=3, padding=1),
            "wide": nn.Conv2d(8, 8, 3, padding=1),
        }
        assert apply(pooled_linears, program_of(function, (2, 8, 5, 5), **parts))[0] == 0


class TestCancelPermutes:
    def test_case_1_arithmetic_between(self):
        program = program_of(
            lambda self, x: (F.gelu(x.permute(0, 2, 3, 1)) * self.k + 2).permute(0, 3, 1, 2).sin(),
            (1, 4, 5, 6),
            k=torch.rand(4),
        )
        assert apply(cancel_permutes, program) == (1, {"add": 1, "gelu": 1, "mul": 1, "sin": 1})

    def test_case_2_several_maps(self):
        program = program_of(
            lambda self, x, y: (x.transpose(1, 2) * y.transpose(1, 2).sigmoid()).transpose(1, 2), (2, 3, 4), (2, 3, 4)
        )
        assert apply(cancel_permutes, program) == (1, {"mul": 1, "sigmoid": 1})

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: (x.transpose(1, 2) * self.map).softmax(-1).transpose(1, 2),
            lambda self, x: (x.transpose(1, 2) + x.reshape(2, 4, 3)).transpose(1, 2),
            lambda self, x: (x.transpose(1, 2) * x.mean()).transpose(1, 2),
            lambda self, x: x.transpose(1, 2).relu().transpose(0, 1),
        ],
    )
    def test_case_3_left_alone(self, function):
        assert apply(cancel_permutes, program_of(function, (2, 3, 4), map=torch.rand(3)))[0] == 0

    def test_case_4_read_elsewhere(self):
        def between(self, x):
            y = x.transpose(1, 2).relu()
            return y.transpose(1, 2), y.sin()

        def before(self, x):
            y = x.transpose(1, 2)
            return y.relu().transpose(1, 2), y.sin()

        assert apply(cancel_permutes, program_of(between, (2, 3, 4)))[0] == 0
        assert apply(cancel_permutes, program_of(before, (2, 3, 4))) == (1, {"relu": 1, "sin": 1, "transpose": 1})


class TestPointwiseConvolutions:
    def test_case_1_between_permutes(self):
        parts = {"wide": nn.Linear(4, 8), "narrow": nn.Linear(8, 4, bias=False), "scale": torch.rand(4)}
        program = program_of(
            lambda self, x: (self.narrow(F.gelu(self.wide(x.permute(0, 2, 3, 1)))) * self.scale).permute(0, 3, 1, 2),
            (1, 4, 5, 6),
            **parts,
        )
        assert apply(pointwise_convolutions, program) == (1, {"conv2d": 2, "gelu": 1, "mul": 1})

    def test_case_1_behind_a_norm(self):
        parts = {"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4)}
        program = program_of(
            lambda self, x: self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2), (1, 4, 5, 6), **parts
        )
        assert apply(pointwise_convolutions, program) == (1, {"conv2d": 1, "layer_norm": 1, "permute": 2})

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: (self.linear(self.norm(x)) + self.norm(x.relu())).permute(0, 3, 1, 2),  # 2: two maps
            lambda self, x: self.less(self.norm(x)).permute(0, 3, 1, 2),  # 2: a larger map
            lambda self, x: self.linear(x).permute(0, 2, 1, 3),  # 3
            lambda self, x: self.linear(x),
        ],
    )
    def test_cases_2_and_3_left_alone(self, function):
        parts = {"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4), "less": nn.Linear(4, 2)}
        assert apply(pointwise_convolutions, program_of(function, (1, 5, 6, 4), **parts))[0] == 0


class TestFlattenNorms:
    def test_case_1_images(self):
        program = program_of(
            lambda self, x: self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), (2, 4, 5, 6), norm=nn.LayerNorm(4)
        )
        assert apply(flatten_norms, program) == (1, {"layer_norm": 1, "permute": 2, "reshape": 2})

    @pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (2, 3, 5, 4)])
    def test_case_2_left_alone(self, shape):
        sizes = shape[-2:] if len(shape) == 4 else shape[-1:]
        program = program_of(lambda self, x: self.norm(x), shape, norm=nn.LayerNorm(sizes))
        assert apply(flatten_norms, program)[0] == 0
