"""Costs of an architecture: counted by torch, or predicted from a profile."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hnas import hw_profiles
from hnas.cost.flops import macs, parameters
from hnas.cost.kernels import Kernel
from hnas.cost.roofline import latency_ms, roofline, trace
from hnas.ops import load
from hnas.supernet import Supernet
from tests.hnas import tiny

JETSON = hw_profiles.load("jetson")


def test_macs_and_parameters_equal_a_count_by_hand():
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # [8, 8, 8]: 64 positions of 8 * 3 * 9
            nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),  # 64 positions of 8 * 25
            nn.BatchNorm2d(8),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
    assert macs(net, (3, 16, 16)) == 64 * 8 * 27 + 64 * 8 * 25 + 5120
    assert parameters(net) == 216 + 200 + 16 + 5130


def test_attention_is_counted_by_hand_too():
    with torch.device("meta"):
        net = load("attention").build(8, 8, 1, heads=2, expansion=2, act="relu")
    tokens, inner = 16, 32
    projections = tokens * (3 * 8 * inner + inner * 8 + 2 * 8 * 16)
    assert macs(net, (8, 4, 4)) == projections + tokens * inner * 9 + 2 * tokens * tokens * inner


def test_counting_leaves_the_skeleton_as_it_was():
    supernet = Supernet(tiny.space())
    arch = supernet.space.largest
    net = supernet.skeleton(arch).eval()
    assert macs(net, *supernet.space.example(arch)) > 0
    assert not any(module.training for module in net.modules())
    assert trace(net, *supernet.space.example(arch))
    assert not any(module.training for module in net.modules())


def test_a_larger_architecture_costs_more():
    supernet = Supernet(tiny.space())
    space = supernet.space
    cost = roofline(space, supernet.skeleton, JETSON, "fp16")
    small, large = cost(space.smallest), cost(space.largest)
    assert (small.kind, small.unit) == ("predicted", "ms")
    assert small.value < large.value
    assert small.low <= small.value <= small.high
    assert (small.low, small.high) == tuple(small.value * factor for factor in JETSON.band)
    counts = [macs(supernet.skeleton(arch), *space.example(arch)) for arch in (space.smallest, space.largest)]
    assert counts[0] < counts[1]


def test_a_kernel_is_bound_by_arithmetic_or_by_memory_and_never_below_its_launch():
    device = replace(JETSON, peaks={"fp32": 1.0}, bandwidth=1.0, launch_us=10.0, calibration="")
    assert latency_ms([Kernel("conv", 10**6, 1)], device, "fp32") == pytest.approx(1 + 0.01)
    assert latency_ms([Kernel("conv", 1, 10**6)], device, "fp32") == pytest.approx(4 + 0.01)
    assert latency_ms([Kernel("conv", 0, 0)] * 3, device, "fp32") == pytest.approx(0.03)


factors = st.floats(1.0, 100.0)


calibrations = st.sampled_from(["", JETSON.calibration])
kinds = ("dense", "pointwise", "depthwise", "attention", "reduction", "elementwise", "reformat")


@given(seed=st.integers(0, 10**6), peak=factors, bandwidth=factors, launch=factors, calibrated=calibrations)
def test_a_faster_device_is_never_predicted_slower(seed, peak, bandwidth, launch, calibrated):
    rng = Random(seed)
    kernels = [Kernel("k", rng.randrange(10**8), rng.randrange(10**6), rng.choice(kinds)) for _ in range(5)]
    faster = replace(
        JETSON,
        peaks={name: value * peak for name, value in JETSON.peaks.items()},
        bandwidth=JETSON.bandwidth * bandwidth,
        launch_us=JETSON.launch_us / launch,
        calibration=calibrated,
    )
    given = replace(JETSON, calibration=calibrated)
    for precision in ("fp32", "fp16", "int8"):
        assert latency_ms(kernels, faster, precision) <= latency_ms(kernels, given, precision)
    assert latency_ms(kernels, given, "int8") <= latency_ms(kernels, given, "fp32")


def test_an_unknown_precision_is_one_line():
    with pytest.raises(ValueError, match="no peak for 'fp4' in the profile of jetson-orin-nano; known: fp32"):
        roofline(tiny.space(), lambda arch: nn.Identity(), JETSON, "fp4")
