"""Test the smallest programs of the bugs that fuzzing found in any precision: each one failed once."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hnas.export.graph.fusion import fuse
from hnas.export.graph.passes.batchnorm import fold_batchnorm
from tests.export.backends.regressions import IMAGE, holds
from tests.export.programs import norm, program_of

# OpenVINO moved the stride of a 1x1 convolution to the operator before it, and ignored the padding: 13 dB, no error.


@pytest.mark.parametrize("passes", [None, ()], ids=["fused", "plain"])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("padding", [1, (3, 0)])
def test_a_strided_point_convolution_that_pads(bench, stride, padding, passes):
    holds(
        bench,
        "openvino",
        lambda self, x: self.point(self.conv(x).relu()).mean((2, 3)),
        IMAGE,
        conv=nn.Conv2d(2, 2, 3, padding=1),
        point=nn.Conv2d(2, 3, 1, stride, padding),
        passes=passes,
    )


def test_a_strided_point_convolution_behind_a_pad(bench):
    holds(
        bench,
        "openvino",
        lambda self, x: self.point(F.pad(self.norm(x), (1, 0, 0, 2))).mean((2, 3)),
        IMAGE,
        norm=norm(2),
        point=nn.Conv2d(2, 4, 1, 2, groups=2, dilation=2),
    )
    holds(
        bench,
        "openvino",
        lambda self, x: self.point(self.conv(x).relu()).mean(2),
        (1, 2, 7),
        conv=nn.Conv1d(2, 2, 3, padding=1),
        point=nn.Conv1d(2, 2, 1, 2, 1),
    )


# OpenVINO folded a pad into a convolution that pads "same", and lost the pad: the output was smaller.


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", [2, 3, (2, 3), (4, 1)])
def test_a_pad_before_a_convolution_that_pads_same(bench, kernel):
    holds(
        bench,
        "openvino",
        lambda self, x: self.conv(F.pad(x, (1, 1, 1, 0))).mean((2, 3)),
        IMAGE,
        conv=nn.Conv2d(2, 3, kernel, padding="same"),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_in_words_in_one_dimension(bench):
    holds(
        bench,
        "openvino",
        lambda self, x: self.valid(self.same(F.pad(x, (0, 2)))).mean(2),
        (1, 2, 9),
        same=nn.Conv1d(2, 3, 4, padding="same"),
        valid=nn.Conv1d(3, 3, 3, padding="valid", dilation=2),
    )


# OpenVINO could not open two consecutive products of single numbers: squeeze-and-excitation of one channel.


def test_squeeze_and_excitation_of_one_channel(bench):
    holds(
        bench,
        "openvino",
        lambda self, x: x * torch.sigmoid(self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu())),
        (1, 1, 4, 4),
        down=nn.Conv2d(1, 1, 1),
        up=nn.Conv2d(1, 1, 1),
    )


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 1, 1), (1, 1, 4), (1, 1, 1, 1)])
def test_linear_layers_of_single_numbers(bench, sizes):
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    holds(bench, "openvino", lambda self, x: self.net(x), (3, sizes[0]), net=net)


# OpenVINO ended with SIGSEGV when it opened the file of three products without a bias that are added.


@pytest.mark.parametrize("summed", ["linear", "mm", "addmm", "mixed"])
def test_a_sum_of_products_of_joined_layers(bench, summed):
    def function(self, x):
        total = x.new_zeros(1, 8)
        for k in range(3):
            joined = torch.tanh(self.sides[2 * k](x)) * torch.tanh(self.sides[2 * k + 1](x))
            out = self.outs[k]
            if summed == "addmm":
                total = torch.addmm(total, joined, out.weight)
            elif summed == "mixed" and k < 2:  # only the last product has no bias
                total = total + torch.addmm(self.sides[k].bias, joined, out.weight)
            else:
                total = total + (out(joined) if summed == "linear" else joined @ out.weight)
        return total

    sides = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
    holds(
        bench, "openvino", function, (1, 8), sides=sides, outs=nn.ModuleList(nn.Linear(8, 8, False) for _ in range(3))
    )


# OpenVINO refused a pooling window larger than its map, which torch allows where sizes round up.


@pytest.mark.parametrize("window", [3, (5, 2)])
def test_a_pooling_window_larger_than_its_map(bench, window):
    def function(self, x):
        means = F.avg_pool2d(x, window, 2, 1, True, False)
        return F.max_pool2d(x, window, ceil_mode=True).flatten(1), F.avg_pool2d(x, window, 2, 1, True), means

    holds(bench, "openvino", function, (1, 2, 2, 2))


# ONNX Runtime folds a pad of zeros into a pooling, which excludes its padding from a maximum: -2 dB, no error.


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("window", "padding"), [(3, 0), (2, 1)])
def test_a_pad_before_a_pooling(bench, window, padding, precision):
    def function(self, x):
        wide = F.pad(self.conv(x) - 3.0, (1, 2, 2, 0))
        return F.max_pool2d(wide, window, 2, padding), F.avg_pool2d(wide, window, 2, padding)

    for backend in ("onnxruntime", "openvino"):
        holds(bench, backend, function, IMAGE, precision=precision, conv=nn.Conv2d(2, 3, 1))


# A correct pass was rejected on a program in which float32 differs much from float64.


def test_a_program_that_amplifies_rounding_is_fused():
    conv = nn.Conv2d(2, 4, 3, bias=True).eval()
    nn.init.constant_(conv.bias, 1000.0)
    program = program_of(lambda self, x: F.instance_norm(self.norm(self.conv(x))), IMAGE, conv=conv, norm=norm(4))
    assert dict(fuse(program, (fold_batchnorm,)).fired)["fold_batchnorm"] == 1


# OpenVINO lets a convolution add into the memory of the other summand, even where it reads that summand as tokens.


@pytest.mark.parametrize("passes", [None, ()], ids=["fused", "plain"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_convolution_of_tokens_is_added_to_the_map_that_they_were(bench, scaled, passes):
    def function(self, x):
        x = self.conv(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        y = self.point(tokens.transpose(1, 2).reshape(x.shape))
        return x - (-y) if scaled else x + y

    parts = {"conv": nn.Conv2d(2, 8, 3, padding=1), "norm": nn.LayerNorm(8), "point": nn.Conv2d(8, 8, 1)}
    holds(bench, "openvino", function, IMAGE, passes=passes, **parts)


def test_a_layer_norm_over_channels_and_a_linear_layer_are_added_to_their_map(bench):
    def function(self, x):
        x = self.conv(x)
        return x + self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    parts = {"conv": nn.Conv2d(2, 8, 3), "norm": nn.LayerNorm(8), "linear": nn.Linear(8, 8)}
    holds(bench, "openvino", function, IMAGE, **parts)


# OpenVINO's attention exchanges heads and tokens where their numbers are equal.


def _heads(tokens, count=3):
    return tokens.unflatten(2, [count, -1]).transpose(1, 2)


def _spelled(queries, keys, values):
    return torch.softmax(queries @ keys.transpose(-1, -2), -1) @ values


@pytest.mark.parametrize("attend", [F.scaled_dot_product_attention, _spelled])
@pytest.mark.parametrize(("normed", "back"), [(True, True), (False, False), (False, True)])
def test_an_attention_of_as_many_heads_as_tokens(bench, attend, normed, back):
    def function(self, x):
        queries, keys, values = map(_heads, x.split(12, 2))
        result = attend(self.norm(queries) if normed else queries, keys, values)
        return result.transpose(1, 2).flatten(2) if back else result

    parts = {"norm": nn.LayerNorm(4)} if normed else {}
    holds(bench, "openvino", function, (2, 3, 36), **parts)
