"""Test the smallest programs of the bugs that fuzzing found in int8: each one failed once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.export.backends.regressions import IMAGE, holds
from tests.export.programs import norm

# In int8, OpenVINO's kernel of two products read the unscaled sums of the first where it has no bias.


@pytest.mark.parametrize("passes", [None, ()], ids=["fused", "plain"])
@pytest.mark.parametrize("function", [torch.relu, F.relu6, nn.Identity()], ids=["relu", "relu6", "none"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "zeros"])
def test_two_linear_layers_without_a_bias_in_int8(bench, bias, function, passes):
    parts = {"one": nn.Linear(24, 8, bias=bias), "two": nn.Linear(8, 24, bias=bias)}
    if bias:
        nn.init.zeros_(parts["one"].bias)
    forward = lambda self, x: self.two(function(self.one(x)))  # noqa: E731
    holds(bench, "openvino", forward, (2, 24), precision="int8", passes=passes, **parts)


def test_products_without_a_bias_in_int8(bench):
    def function(self, x):
        return ((x @ self.one.weight).relu() @ self.two.weight).relu() @ self.one.weight

    parts = {"one": nn.Linear(9, 24), "two": nn.Linear(24, 9)}
    holds(bench, "openvino", function, (2, 24), precision="int8", **parts)


@pytest.mark.parametrize("transform", [torch.fft.fft, torch.fft.fftn, torch.fft.ifft2])
def test_a_fourier_transform_of_a_product_without_a_bias_in_int8(bench, transform):
    """OpenVINO 2026.4 does not open the file: scales of channels stand beside real and imaginary parts."""

    def forward(self, x):
        mixed = self.one(x)
        return self.two(mixed + transform(mixed).real)

    parts = {"one": nn.Linear(32, 32, bias=False), "two": nn.Linear(32, 8)}
    holds(bench, "openvino", forward, (1, 16, 32), precision="int8", **parts)


# In int8, OpenVINO normalises the levels with the epsilon of the values.


@pytest.mark.parametrize("kind", ["layer", "group", "instance", "enlarged"])
def test_a_norm_of_small_values_in_int8(bench, kind):
    def function(self, x):
        x = self.conv(x)
        if kind == "layer":
            return self.end(torch.cat((self.norm(x.flatten(1)), x.flatten(1)), 1))
        if kind == "group":
            return self.after(F.group_norm(x.relu(), 2))
        return self.after(F.instance_norm(F.interpolate(x, scale_factor=2.0) if kind == "enlarged" else x).relu())

    conv = nn.Conv2d(2, 6, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(0.001)
        conv.bias.mul_(0.001)
    parts = {"conv": conv, "norm": nn.LayerNorm(216), "after": nn.Conv2d(6, 4, 3), "end": nn.Linear(432, 5)}
    holds(bench, "openvino", function, IMAGE, precision="int8", **parts)


# In int8, OpenVINO padded with a wrong constant where the range of the map does not contain the right one.


@pytest.mark.parametrize("value", [0.5, -5.0])
def test_a_pad_with_a_constant_out_of_range_in_int8(bench, value):
    def function(self, x):
        small = F.avg_pool2d(self.conv(x).clamp(-0.2, 0.2), 2)
        return self.after(F.pad(small, (1, 0, 2, 0), value=value))

    parts = {"conv": nn.Conv2d(2, 4, 3, padding=1), "after": nn.Conv2d(4, 4, 3, padding=1)}
    holds(bench, "openvino", function, IMAGE, precision="int8", **parts)


# In int8, OpenVINO padded with level 0 where a convolution makes several channels of one, and activations are
# asymmetric.


@pytest.mark.parametrize("padding", [1, (2, 0)])
def test_a_convolution_with_a_multiplier_in_int8(bench, padding):
    parts = {"before": nn.Conv2d(2, 4, 3), "conv": nn.Conv2d(4, 8, 3, padding=padding, groups=4)}
    function = lambda self, x: self.conv(self.before(F.gelu(x)))  # noqa: E731
    holds(bench, "openvino", function, IMAGE, precision="int8", **parts)


# NNCF's bias correction raised a KeyError where a layer after a gate stays in float.


def test_a_layer_in_float_behind_a_gate(bench):
    def function(self, x):
        gate = torch.sigmoid(self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()))
        return self.end(self.conv(x * gate).mean((2, 3)))

    conv = nn.Conv2d(5, 10, 3, 3, padding=(0, 1), groups=5)
    parts = {"down": nn.Conv2d(5, 1, 1), "up": nn.Conv2d(1, 5, 1), "conv": conv, "end": nn.Linear(10, 2)}
    holds(bench, "openvino", function, (1, 5, 6, 6), precision="int8", **parts)


# In int8, OpenVINO does not write the bias into the holes of a transposed convolution.


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


# Our emitter writes a rectifier as a change of scale that saturates, but not at 0 where a concatenation widened its
# range.


@pytest.mark.parametrize("rectify", [torch.relu, F.relu6])
@pytest.mark.parametrize("moved", [False, True])
def test_a_rectifier_that_is_joined_with_what_it_reads_in_int8(bench, rectify, moved):
    def function(self, x):
        x = self.norm(x)
        y = rectify(x)
        return torch.cat([4 * x, F.max_pool2d(y, 1) if moved else y], 1)

    holds(bench, "tflite", function, IMAGE, precision="int8", norm=norm(2))


# In int8, OpenVINO pads an average with level 0, which is not the value 0 where activations are asymmetric.


@pytest.mark.parametrize("padding", [1, (0, 1)])
def test_an_average_that_counts_its_padding_in_int8(bench, padding):
    holds(
        bench,
        "openvino",
        lambda self, x: self.point(F.avg_pool2d(F.silu(self.conv(x)), 3, 1, padding)),
        (1, 4, 8, 8),
        precision="int8",
        conv=nn.Conv2d(4, 8, 3, padding=1),
        point=nn.Conv2d(8, 8, 1),
    )
