"""The timed steps of recurrent cells compute the same as the loops that they are compared with."""

from __future__ import annotations

import json

import pytest
import torch

from hnas.benchmarks.costs import recurrent

TINY = ["--width", "4", "--nodes", "2", "--batch", "2", "--window", "3"]


def test_all_pairs_of_ways_are_compared(capsys):
    assert recurrent.main([*TINY, "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["milliseconds"]) == {"edges", "published", "darts_recurrent", "recurrent_cell"}
    assert len(found["times as fast"]) == 4
    assert all(0 < low <= ratio <= high for ratio, low, high in found["times as fast"].values())
    assert recurrent.main([*TINY, "--rounds", "2"]) == 0
    assert "as fast" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["by_edges", "by_activations"])
def test_a_loop_that_computes_another_cell_is_not_timed(name, monkeypatch):
    right = getattr(recurrent, name)

    def wrong(states, matrix, alpha):
        """Return the right node with the gradient of its matrix lost."""
        return right(states, matrix.detach() + 0 * matrix, alpha)

    monkeypatch.setattr(recurrent, name, wrong)
    with pytest.raises(RuntimeError, match="do not compute the same; nothing was timed"):
        recurrent.measure_steps(recurrent.StepSizes(4, 2, 2, 3), 1)


def test_the_wider_loop_does_the_work_of_all_edges():
    """So that the ratio is that of the same function: a node of three states has three products and twelve terms."""
    states, matrix, alpha = torch.randn(3, 2, 4), torch.randn(4, 8), torch.rand(3, 4)
    one, other = (way(list(states), matrix, alpha) for way in (recurrent.by_edges, recurrent.by_activations))
    torch.testing.assert_close(one, other)
