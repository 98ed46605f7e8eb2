"""An extracted network equals its subnet bit for bit."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hnas import recipes, spaces
from hnas.data.images import Preprocessing
from hnas.space import Arch, Space
from hnas.strategies import sandwich
from hnas.study import Study, pool_moments
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification
from hnas.training.loop import Schedule, train
from tests.hnas import tiny

SPACES = {
    "tiny": tiny.space,
    "options": lambda: tiny.space(**tiny.OPTIONS),
    "attention": lambda: tiny.space(types=("attention", "fusedconv")),
    "default": lambda: spaces.load("hybrid_vision")(classes=4),
    "mobilenetv3": lambda: spaces.load("mobilenetv3")(classes=4),
}


@cache
def study(name: str) -> Study:
    """Return a supernet after a few steps, so that no branch is zero."""
    side = 28 if name in ("default", "mobilenetv3") else 12
    splits = {split: tiny.data(32, seed, side) for seed, split in enumerate(("train", "calibration", "search"))}
    task = Classification(splits, Preprocessing((side, side), (side, side), (0.3,), (0.2,)), batch_size=8)
    supernet = Supernet(SPACES[name]())
    train(supernet, task, sandwich.pick, Schedule(((2, 0.2),)))
    with torch.no_grad():
        for parameter in supernet.union.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    supernet.changed()
    return Study(supernet, task)


def both(found: Study, arch: Arch) -> tuple[Tensor, Tensor]:
    stats, (shape,) = found.calibrate(arch), found.supernet.space.example(arch)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return found.supernet(arch, x, stats=stats), found.supernet.extract(arch, stats)(x)


@pytest.mark.parametrize("name", SPACES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_extract_equals_the_subnet_bit_for_bit(name, seed):
    found = study(name)
    subnet, net = both(found, found.supernet.space.sample(Random(seed)))
    assert torch.isfinite(net).all()
    assert torch.equal(subnet, net)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_the_ends_are_extracted_bit_for_bit(name, end):
    found = study(name)
    assert torch.equal(*both(found, getattr(found.supernet.space, end)))


def test_an_extracted_net_has_its_own_weights_and_is_in_evaluation_mode():
    found = study("tiny")
    arch = found.supernet.space.largest
    net = found.supernet.extract(arch, found.calibrate(arch))
    assert not any(module.training for module in net.modules())
    own = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert own.isdisjoint({p.untyped_storage().data_ptr() for p in found.supernet.parameters()})
    assert all(t.is_contiguous() for t in net.parameters())


@given(seed=st.integers(0, 2**32), size=st.integers(1, 3))
@example(seed=0, size=1)
@settings(max_examples=5)
def test_a_subnet_does_not_depend_on_who_shares_its_batch(seed, size):
    found = study("tiny")
    arch = found.supernet.space.sample(Random(seed))
    stats, (shape,) = found.calibrate(arch), found.supernet.space.example(arch)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed % 1000))
    with torch.no_grad():
        alone, together = found.supernet(arch, x[:size], stats=stats), found.supernet(arch, x, stats=stats)
    torch.testing.assert_close(alone, together[:size])


def imagenet() -> Space:
    arguments = dict(recipes.load("imagenet").space)
    return spaces.load(arguments.pop("name"))(**arguments)


def test_the_imagenet_recipe_builds_samples_extracts_and_exports():
    space = imagenet()
    assert space.size > 10**20
    supernet = Supernet(space)
    for seed in range(2):
        assert supernet.view(space.sample(Random(seed)))
    arch = space.smallest
    (shape,) = space.example(arch)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    stats = pool_moments(supernet, arch, [(x,)], len(x))
    net = supernet.extract(arch, stats)
    with torch.no_grad():
        expected = supernet(arch, x[:1], stats=stats)
        assert expected.shape == (1, 1000)
        assert torch.equal(net(x[:1]), expected)
        program = torch.export.export(net, (x[:1],)).module()
        torch.testing.assert_close(program(x[:1]), expected)
