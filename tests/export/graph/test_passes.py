"""Test the passes of each backend on named nets, and each case of pads, scales, branches and projections."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hnas.export.graph.fusion import PASSES, fuse, passes_for
from hnas.export.graph.passes.branches import merge_branches
from hnas.export.graph.passes.pads import fold_pads
from hnas.export.graph.passes.scales import fold_scales
from hnas.export.graph.program import capture
from tests.export import nets
from tests.export.graph.test_fusion import FIRES
from tests.export.nets import conv_bn
from tests.export.programs import apply, norm, program_of

torch.set_num_threads(1)


class RepVGG(nn.Module):
    """Three blocks of a 3x3, a 1x1 and an identity branch (arXiv 2101.03697); the first has no identity."""

    def __init__(self):
        super().__init__()
        self.wide = nn.ModuleList(conv_bn(a, 8, 3, s) for a, s in ((3, 2), (8, 1), (8, 1)))
        self.point = nn.ModuleList(conv_bn(a, 8, 1, s) for a, s in ((3, 2), (8, 1), (8, 1)))
        self.same = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x):
        for index, (wide, point) in enumerate(zip(self.wide, self.point, strict=True)):
            y = wide(x) + point(x)
            x = torch.relu(y if index == 0 else y + self.same[index - 1](x))
        return x.mean((2, 3))


class Fire(nn.Module):
    """SqueezeNet's fire module (arXiv 1602.07360) behind a padded stem whose pool comes before its activation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3, stride=2), nn.MaxPool2d(2), nn.ReLU())
        self.squeeze, self.one, self.three = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.squeeze(self.stem(x)))
        return torch.relu(torch.cat([self.one(x), self.three(x)], 1)).mean((2, 3))


class Gated(nn.Module):
    """A MobileNetV3 block with squeeze-excite, then gates of channels last and two branches rescaled by a junction."""

    def __init__(self):
        super().__init__()
        self.expand, self.depth = conv_bn(8, 16, 1), conv_bn(16, 16, 3, 1, 16)
        self.pool, self.less, self.more = nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.beside = conv_bn(16, 8, 1), nn.Conv2d(16, 8, 5, padding=2)

    def forward(self, x):
        y = F.hardswish(self.depth(F.hardswish(self.expand(x))))
        y = y * F.hardsigmoid(self.more(torch.relu(self.less(self.pool(y)))))
        y = (self.project(y) + self.beside(torch.relu(y))) * 2**-0.5
        y = F.gelu(y.permute(0, 2, 3, 1)).mul(0.7).permute(0, 3, 1, 2)
        return x + y


class Fused(nn.Module):
    """Attention whose queries, keys and values come from one product."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16)


NETS = {
    "repvgg": (RepVGG, (1, 3, 16, 16)),
    "fire": (Fire, (1, 3, 16, 16)),
    "gated": (Gated, (1, 8, 6, 6)),
    "fused": (Fused, (2, 5, 16)),
}
COMMON = {
    "repvgg": {"fold_batchnorm": 6, "merge_branches": 5},
    "fire": {"fold_pads": 1, "raise_activations": 2},
    "gated": {"cancel_permutes": 1, "fold_batchnorm": 3, "fold_scales": 1},
    "fused": {},
}
MORE = {
    "gated": {
        "onnxruntime": {"pooled_linears": 2, "raise_activations": 1, "clip_hardsigmoids": 1},
        "openvino": {"pooled_linears": 2, "raise_activations": 1},
    },
    "fused": {backend: {"split_projections": 1} for backend in ("onnxruntime", "openvino", "tflite")},
    "convnext": {
        "onnxruntime": {"pointwise_convolutions": 1},
        "openvino": {"pointwise_convolutions": 1, "flatten_norms": 1},
    },
}


def build(name):
    if name in nets.SHAPES:
        return nets.build(name)
    create, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = create().eval()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 1.5)
        return net, (torch.randn(shape),)


def test_every_pass_of_every_backend_is_shown_to_fire():
    fires = [*FIRES.values(), *COMMON.values(), *(each for by in MORE.values() for each in by.values())]
    used = {function.__name__ for backend in ("tflite", "onnxruntime", "openvino") for function in passes_for(backend)}
    assert {name for fired in fires for name in fired} == used


@pytest.mark.parametrize("name", NETS)
def test_common_passes_fire_on_the_named_nets(name):
    net, inputs = build(name)
    program = fuse(capture(net, inputs))
    assert {key: count for key, count in program.fired if count and key != "drop_dropout"} == COMMON[name]
    assert "aten.batch_norm.default" not in program.operators()
    torch.testing.assert_close(program(*inputs)[0], net(*inputs), rtol=1e-4, atol=1e-5)
    assert all(count == 0 for _, count in fuse(replace(program, fired=())).fired)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", MORE)
def test_passes_of_one_backend_fire_on_the_named_nets(name, backend):
    net, inputs = build(name)
    program = fuse(capture(net, inputs), passes_for(backend))
    own = {function.__name__ for function in passes_for(backend)} - {function.__name__ for function in PASSES}
    fired = {key: count for key, count in program.fired if count and (key in own or key in MORE[name][backend])}
    assert fired == MORE[name][backend]
    torch.testing.assert_close(program(*inputs)[0], net(*inputs), rtol=1e-4, atol=1e-5)
    again = {key for key, count in fuse(replace(program, fired=()), passes_for(backend)).fired if count}
    assert again <= {"merge_reshapes"}  # what the later passes leave beside each other


def test_backends_without_passes_of_their_own_take_the_common_ones():
    assert passes_for("tensorrt") == PASSES


class TestFoldPads:
    @pytest.mark.parametrize(
        ("function", "operators"),
        [
            (lambda self, x: self.conv(F.pad(x, (1, 1, 1, 1))), {"conv2d": 1}),
            (lambda self, x: self.padded(F.pad(x, (0, 0, 2, 2))), {"conv2d": 1}),
            (lambda self, x: self.conv(F.pad(x, (1, 1))), {"conv2d": 1}),
            (lambda self, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3), {"avg_pool2d": 1}),
            (lambda self, x: F.pad(x, (0, 0, 0, 0)).relu(), {"relu": 1}),
        ],
    )
    def test_cases_1_2_and_5_fire(self, function, operators):
        parts = {"conv": nn.Conv2d(4, 6, 3), "padded": nn.Conv2d(4, 6, 3, stride=2, padding=1)}
        assert apply(fold_pads, program_of(function, (1, 4, 8, 8), **parts)) == (1, operators)

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: self.conv(F.pad(x, (0, 1, 0, 1))),
            lambda self, x: self.conv(F.pad(x, (1, 1, 1, 1), value=0.5)),
            lambda self, x: self.conv(F.pad(x, (1, 1, 1, 1), "reflect")),
            lambda self, x: self.conv(F.pad(x, (-1, -1, -1, -1))),
            lambda self, x: self.same(F.pad(x, (1, 1, 1, 1))),
            lambda self, x: self.conv(F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:-1]),
            lambda self, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, count_include_pad=False),
            lambda self, x: F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 3),
            lambda self, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, ceil_mode=True),
            lambda self, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3),
        ],
    )
    def test_case_3_left_alone(self, function):
        parts = {"conv": nn.Conv2d(4, 6, 3), "same": nn.Conv2d(4, 6, 3, padding="same")}
        assert apply(fold_pads, program_of(function, (1, 4, 8, 8), **parts))[0] == 0

    def test_case_4_padded_map_read_elsewhere(self):
        def function(self, x):
            y = F.pad(x, (1, 1, 1, 1))
            return self.conv(y), y.sin()

        count, found = apply(fold_pads, program_of(function, (1, 4, 8, 8), conv=nn.Conv2d(4, 6, 3)))
        assert (count, found) == (1, {"conv2d": 1, "pad": 1, "sin": 1})


class TestFoldScales:
    @pytest.mark.parametrize(
        ("function", "count"),
        [
            (lambda self, x: self.conv(x) * 0.5, 1),
            (lambda self, x: (2 * self.conv(x) + 1.5) / 4 - 0.25, 4),
            (lambda self, x: self.conv(x) * self.scale[:, None, None] + self.scale.reshape(1, -1, 1, 1), 2),
            (lambda self, x: torch.add(self.conv(x), self.one, alpha=3), 1),
            (lambda self, x: self.up(x) * self.scale[:, None, None], 1),
            (lambda self, x: self.linear(x) * self.scale - self.scale, 2),
        ],
    )
    def test_case_1_constants_of_a_layer(self, function, count):
        parts = {
            "conv": nn.Conv2d(4, 6, 3, bias=False),
            "up": nn.ConvTranspose2d(4, 6, 2, groups=2),
            "linear": nn.Linear(8, 6),
            "scale": torch.rand(6),
            "one": torch.ones(1, 1, 1, 1),
        }
        program = fuse(program_of(function, (1, 4, 8, 8), **parts), (PASSES[1],))  # constants are computed first
        fired, found = apply(fold_scales, program)
        assert (fired, sum(found.values())) == (count, 1)

    def test_case_2_a_junction(self):
        parts = {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(4, 4, 1, bias=False)}
        program = program_of(
            lambda self, x: (self.a(x) + self.b(x.relu()) + self.c(x.sin())) * 3**-0.5, (1, 4, 5, 5), **parts
        )
        assert apply(fold_scales, program) == (1, {"add": 2, "conv2d": 3, "relu": 1, "sin": 1})

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: self.conv(x) * self.map,
            lambda self, x: 1 - self.conv(x),
            lambda self, x: 1 / self.conv(x).exp(),
            lambda self, x: (self.conv(x) + x) * 0.5,
            lambda self, x: (self.conv(x) + self.conv(x.relu())) + 0.5,
            lambda self, x: self.conv(x) * x.mean(),
            lambda self, x: F.conv2d(x, x[0, :4, None, :1, :1].expand(4, 4, 1, 1)) * 2,
            lambda self, x: F.linear(x, self.map) * self.column,
            lambda self, x: self.conv(x) / 0.0,
        ],
    )
    def test_cases_3_and_4_left_alone(self, function):
        parts = {"conv": nn.Conv2d(4, 4, 1), "map": torch.rand(5, 5), "column": torch.rand(5, 1)}
        program = program_of(function, (1, 4, 5, 5), **parts)
        assert fold_scales(program).fired == (("fold_scales", 0),)

    def test_case_3_layer_read_elsewhere(self):
        def function(self, x):
            y = self.conv(x)
            return y * 2 + y.relu()

        assert apply(fold_scales, program_of(function, (1, 4, 5, 5), conv=nn.Conv2d(4, 4, 1)))[0] == 0


def branch(kernel, padding=None, **options):
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(4, 4, kernel, padding=padding, **options)


class TestMergeBranches:
    @pytest.mark.parametrize(
        ("function", "merged", "left"),
        [
            (lambda self, x: self.three(x) + self.one(x), 1, 1),
            (lambda self, x: self.one(x) + x + self.three(x) + self.norm(x), 3, 1),
            (lambda self, x: self.three(x) + (self.row(x) + self.column(x)), 2, 1),
            (lambda self, x: self.depth3(x) + self.depth5(x) + x, 2, 1),
            (lambda self, x: self.fast3(x) + self.fast1(x), 1, 1),
            (lambda self, x: self.atrous(x) + self.one(x), 1, 1),
            (lambda self, x: self.three(x) + self.one(x) + self.five(y := x.relu()) + self.one(y), 2, 2),
            (lambda self, x: self.three(x) + self.one(x) + x.sin(), 1, 1),
        ],
    )
    def test_cases_1_and_2_fire(self, function, merged, left):
        parts = {
            "three": branch(3),
            "one": branch(1, bias=False),
            "five": branch(5),
            "row": branch((1, 3), (0, 1)),
            "column": branch((3, 1), (1, 0)),
            "depth3": branch(3, groups=4),
            "depth5": branch(5, groups=4),
            "fast3": branch(3, stride=2),
            "fast1": branch(1, stride=2),
            "atrous": branch(3, 2, dilation=2),
            "norm": norm(4),
        }
        count, found = apply(merge_branches, program_of(function, (1, 4, 6, 6), **parts))
        assert (count, found["conv2d"]) == (merged, left)

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: self.row(x) + self.column(x),  # 3: 9 taps for 6
            lambda self, x: self.atrous(x) + self.three(x),  # 4
            lambda self, x: self.atrous(x) + self.edge(x)[:, :, 1:-1, 1:-1],
            lambda self, x: self.three(x) + self.depth(x),
            lambda self, x: self.three(x) + self.one(x.relu()),
            lambda self, x: self.three(x) + torch.add(x, x, alpha=2),
            lambda self, x: self.fast(x) + x[:, :, ::2, ::2],
            lambda self, x: self.three(x) + self.one(x).mean(),
            lambda self, x: self.three(x) + F.conv2d(x, x[0, :4, None, :1, :1].expand(4, 4, 1, 1)),  # 5
        ],
    )
    def test_cases_3_to_5_left_alone(self, function):
        parts = {
            "row": branch((1, 3), (0, 1)),
            "column": branch((3, 1), (1, 0)),
            "atrous": branch(3, 2, dilation=2),
            "edge": branch(1, 1),
            "three": branch(3),
            "one": branch(1),
            "depth": branch(3, groups=4),
            "fast": branch(3, stride=2),
        }
        assert apply(merge_branches, program_of(function, (1, 4, 6, 6), **parts))[0] == 0

    def test_case_5_branch_read_elsewhere(self):
        def function(self, x):
            y = self.one(x)
            return self.three(x) + y, y.relu()

        assert apply(merge_branches, program_of(function, (1, 4, 6, 6), one=branch(1), three=branch(3)))[0] == 0

    def test_an_input_that_a_convolution_gave_is_an_identity(self):
        """Regression: the input, itself a convolution, was once taken for a branch."""

        def function(self, x):
            y = self.stem(x)
            return self.three(y) + y

        made = apply(merge_branches, program_of(function, (1, 4, 6, 6), stem=branch(1), three=branch(3)))
        assert (made[0], made[1]["conv2d"], made[1].get("add", 0)) == (1, 2, 0)

    def test_a_branch_that_is_added_twice_counts_twice(self):
        def function(self, x):
            y = self.three(x)
            return y + y + x

        assert apply(merge_branches, program_of(function, (1, 4, 6, 6), three=branch(3)))[1]["conv2d"] == 1
