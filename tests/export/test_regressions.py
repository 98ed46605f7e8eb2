"""What fuzzing found, as small as it became: each case failed once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export import backends
from export.trial import Bench, Setting
from tests.conftest import need
from tests.export.programs import norm, program_of

IMAGE = (1, 2, 6, 6)


@pytest.fixture(scope="module")
def bench():
    with Bench(converter=False) as made:
        yield made


def holds(bench, backend, function, *shapes, precision="fp32", passes=None, **parts):
    """The program computes on the backend what it does in torch."""
    need(backend, backends.load(backend).missing())
    program = program_of(function, *shapes, **{name: part.eval() for name, part in parts.items()})
    generator = torch.Generator().manual_seed(1)
    calls = [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(4)]
    found = bench.judge(program, calls, Setting(backend, precision, passes=passes))
    assert found.outcome == "holds", found.line


# OpenVINO moves the stride of a 1x1 convolution up to what feeds it, and forgot padding on the way: 13 dB, silently.


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


# OpenVINO folded a pad into a convolution that pads "same" and lost it: a smaller map.


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


# OpenVINO could not open two products of one number with one number in a row: squeeze-excite on one channel.


def test_squeeze_and_excitation_of_one_channel(bench):
    holds(
        bench,
        "openvino",
        lambda self, x: x * torch.sigmoid(self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu())),
        (1, 1, 4, 4),
        down=nn.Conv2d(1, 1, 1),
        up=nn.Conv2d(1, 1, 1),
    )


# OpenVINO lets a convolution add into the memory of the other summand, also where that is, as tokens, what it reads.


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


# OpenVINO's int8 puts something else than the bias where a transposed convolution has holes.


@pytest.mark.parametrize("padding", [0, 1])
def test_a_transposed_convolution_with_holes_in_int8(bench, padding):
    holds(
        bench,
        "openvino",
        lambda self, x: self.norm(self.conv(x).permute(0, 2, 3, 1)),
        (1, 3, 6, 6),
        precision="int8",
        conv=nn.ConvTranspose2d(3, 5, 1, 2, padding),
        norm=nn.LayerNorm(5),
    )
