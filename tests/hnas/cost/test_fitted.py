"""The work of architectures by class of kernel, and latencies that are predicted from it."""

from __future__ import annotations

from copy import deepcopy
from random import Random

import numpy as np
import pytest
from torch import nn

from hnas.cost import work
from hnas.cost.fitted import FittedLatency
from hnas.cost.roofline import trace
from hnas.cost.work import LAUNCHES, NotSeparable, Work, amounts
from hnas.predictor import Predictor
from hnas.spaces.hybrid_vision import hybrid_vision
from hnas.spaces.inverted_residuals import inverted_residuals
from hnas.spaces.nasbench201 import nasbench201
from hnas.spaces.recurrent_cell import recurrent_cell
from hnas.supernet import Supernet

SPACE = hybrid_vision(
    resolutions=(8, 12), stem=8, widths=((8,), (8, 16)), depths=((2,), (1, 2)), strides=(2, 2), head=8
)
SKELETON = Supernet(SPACE).skeleton
RNG = Random(0)
ARCHS = list(dict.fromkeys([SPACE.smallest, SPACE.largest, *(SPACE.sample(RNG) for _ in range(44))]))
UNITS = {"depthwise 7": 3e-6, "depthwise 5": 1e-7, "dense 3": 5e-8, "pointwise": 5e-8, LAUNCHES: 2e-7}  # ms


@pytest.fixture(scope="module")
def counted():
    return Work(SPACE, SKELETON)


def _latency(amount) -> float:
    return sum(UNITS.get(name, 1e-8) * value for name, value in amount.items())


def test_what_is_put_together_from_slots_is_what_a_trace_of_the_network_counts(counted, monkeypatch):
    for arch in ARCHS:
        counted(arch)
    for name in ("trace", "trace_parts"):
        monkeypatch.setattr(work, name, None)
    whole = counted(ARCHS[-1])
    assert whole == amounts(trace(SKELETON(ARCHS[-1]), *SPACE.example(ARCHS[-1])))
    for arch in ARCHS[::6]:
        assert counted(arch) == pytest.approx(amounts(trace(SKELETON(arch), *SPACE.example(arch))))


def test_a_network_whose_parts_are_known_is_not_traced(monkeypatch):
    one, other = (SPACE.changed(SPACE.largest, f"stages.{s}.blocks.0.op", "convnext") for s in range(2))
    count = Work(SPACE, SKELETON)
    count(one), count(other)
    for name in ("trace", "trace_parts"):
        monkeypatch.setattr(work, name, None)
    both = SPACE.changed(one, "stages.1.blocks.0.op", "convnext")
    assert count(both) == pytest.approx(amounts(trace(SKELETON(both), *SPACE.example(both))))


def test_an_activation_of_all_slots_is_not_taken_for_another():
    space = hybrid_vision(
        resolutions=(8,),
        stem=8,
        widths=((8,),),
        depths=((1,),),
        strides=(2,),
        head=8,
        activations=("relu", "hardswish"),
    )
    skeleton = Supernet(space).skeleton
    count = Work(space, skeleton)
    for name in ("hardswish", "relu", "hardswish"):
        arch = space.changed(space.largest, "activation", name)
        assert count(arch) == pytest.approx(amounts(trace(skeleton(arch), *space.example(arch))))


def test_a_runtime_that_is_slow_in_one_class_is_known_from_sixteen_networks(counted):
    """Latencies have noise of 5 %, and a share of 10 % that depends on the type of one slot and on no kernel."""
    extra = [0.1 * (arch["stages.0.blocks.0.op"] == "mbconv") for arch in ARCHS]
    true = np.log([_latency(counted(arch)) for arch in ARCHS]) + extra
    logs = true + 0.05 * np.random.default_rng(0).standard_normal(len(ARCHS))
    means, deviations = FittedLatency(counted).fit(ARCHS[:16], logs[:16]).predict(ARCHS[16:])
    plain = Predictor(SPACE).fit(ARCHS[:16], logs[:16].tolist()).predict(ARCHS[16:])[0]
    wrong, without = (np.sqrt(np.mean((found - true[16:]) ** 2)) for found in (means, plain))
    assert wrong < 0.2
    assert without > 2 * wrong
    assert 0.4 < np.sqrt(np.mean(((means - true[16:]) / deviations) ** 2)) < 2.0


def test_a_class_that_was_never_measured_is_not_free(counted):
    without = [arch for arch in ARCHS if "depthwise 7" not in counted(arch)]
    seven = max(ARCHS, key=lambda arch: counted(arch).get("depthwise 7", 0.0))
    logs = np.log([_latency(counted(arch)) for arch in without])
    model = FittedLatency(counted).fit(without, logs)
    known = {name: value for name, value in counted(seven).items() if name != "depthwise 7"}
    assert np.exp(model._logs([seven])[0]) > 1.01 * _latency(known)


def test_a_space_without_slots_is_counted_by_its_blocks():
    space = inverted_residuals()
    count, skeleton, rng = Work(space, Supernet(space).skeleton), Supernet(space).skeleton, Random(1)
    for arch in [space.sample(rng) for _ in range(4)]:
        assert count(arch) == pytest.approx(amounts(trace(skeleton(arch), *space.example(arch))))


@pytest.mark.parametrize("space", [nasbench201(nodes=3, width=8, cells=1, resolution=8), recurrent_cell()])
def test_where_slots_are_not_single_modules_the_kernels_are_not_known(space):
    with pytest.raises(NotSeparable, match=r"is (not called|called more than once)"):
        Work(space, Supernet(space).skeleton)


def test_choices_that_act_outside_of_their_slot_are_found():
    def skeleton(arch):
        net = deepcopy(SKELETON(arch))
        net.head = nn.Sequential(net.head, *[nn.Sigmoid()] * (arch["stages.0.blocks.0.op"] == "convnext"))
        return net

    with pytest.raises(NotSeparable, match="change the network outside of it"):
        Work(SPACE, skeleton)


def test_maps_that_are_too_small_for_a_trace_are_found_before_the_search():
    tiny = hybrid_vision(
        resolutions=(4, 16), stem=8, widths=((8,), (8,)), depths=((2,), (1, 2)), strides=(2, 2), head=8
    )
    with pytest.raises(NotSeparable, match="more than 1 value per channel"):
        Work(tiny, Supernet(tiny).skeleton)
