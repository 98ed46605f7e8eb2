"""Dropblock-Identity: what it drops, what it keeps, and that nothing is dropped outside of a search."""

from __future__ import annotations

import pytest
import torch

from hnas.ops.skip import DropBlock, Skip, drop_blocks, dropping


def mask(rate: float, block: int, side: int = 12, seed: int = 0) -> torch.Tensor:
    """Return which positions of a map of ones are dropped."""
    return drop_blocks(torch.ones(64, 4, side, side), rate, block, torch.Generator().manual_seed(seed)) == 0


@pytest.mark.parametrize(("rate", "block", "side"), [(0.1, 1, 12), (0.1, 3, 12), (0.3, 3, 12), (0.2, 7, 5)])
def test_the_expected_share_is_dropped_and_the_mean_is_kept(rate, block, side):
    dropped = mask(rate, block, side)
    # Overlapping blocks drop less than the rate; the source accepts this.
    assert 0.7 * rate < float(dropped.float().mean()) <= 1.1 * rate
    x = torch.rand(64, 4, side, side, generator=torch.Generator().manual_seed(1)) + 1
    kept = drop_blocks(x, rate, block, torch.Generator().manual_seed(0))
    assert float(kept.mean()) == pytest.approx(float(x.mean()), rel=0.02)


def test_what_is_dropped_are_squares():
    dropped = mask(0.02, 3)
    covered = torch.zeros_like(dropped)
    for top in range(10):
        for left in range(10):
            square = dropped[:, :, top : top + 3, left : left + 3].flatten(2).all(2)
            covered[:, :, top : top + 3, left : left + 3] |= square[:, :, None, None]
    assert dropped.any()
    assert torch.equal(covered, dropped)


def test_a_block_of_a_small_map_is_a_whole_channel_of_an_image():
    dropped = drop_blocks(torch.ones(8, 16, 5, 7), 0.3, 7, torch.Generator().manual_seed(0)) == 0
    small = drop_blocks(torch.ones(8, 16, 7, 7), 0.3, 7, torch.Generator().manual_seed(0)) == 0
    assert small.any()
    assert torch.equal(small.any((2, 3)), small.all((2, 3)))
    assert not torch.equal(dropped.any((2, 3)), dropped.all((2, 3))), "a map that is wider than a block keeps a part"


def test_gradients_pass_only_where_the_input_is_kept():
    x = torch.ones(8, 2, 6, 6, requires_grad=True)
    y = drop_blocks(x, 0.3, 2, torch.Generator().manual_seed(0))
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


def test_a_pass_repeats_and_two_branches_of_it_drop_different_blocks():
    x, branch = torch.ones(2, 4, 8, 8), Skip(4, 4, 1)
    drop = DropBlock(0.3, 2, seed=5)
    with dropping(drop):
        one, two = branch(x), branch(x)
    with dropping(drop):
        assert torch.equal(branch(x), one)
    assert not torch.equal(one, two)


def test_evaluation_and_everything_outside_of_a_search_is_the_exact_identity():
    x, branch = torch.randn(2, 4, 8, 8), Skip(4, 4, 1)
    assert branch(x) is x
    with dropping(DropBlock(0.3)):
        assert branch.eval()(x) is x
    with dropping(None):
        assert branch.train()(x) is x


@pytest.mark.parametrize(("values", "line"), [((1.0, 3), "rate is 1"), ((-0.1, 3), "rate is"), ((0.1, 0), "or more")])
def test_what_cannot_be_dropped_is_one_line(values, line):
    with pytest.raises(ValueError, match=line):
        DropBlock(*values)
