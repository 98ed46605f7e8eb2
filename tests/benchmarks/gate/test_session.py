"""Rounds, time and pooling, with a fake clock and a fake comparison, so that nothing depends on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas.benchmarks.gate import session


def silent(doing: str, fraction: float) -> None: ...


A: Any = Path("a")
B: Any = Path("b")
COST = {"a": 2.0, "b": 1.0}


@dataclass
class Machine:
    """A clock that only comparisons move: ``COST`` times ``scale`` for each block, and ``start`` for each round."""

    start: float
    scale: float = 1.0
    now: float = 0.0
    calls: list[tuple[str, str, int, int]] = field(default_factory=list)

    def compare(self, baseline: Path, candidates: Sequence[Path], inputs: Any, *, blocks: int, seed: int) -> Any:
        self.calls.append((baseline.name, "".join(path.name for path in candidates), blocks, seed))
        a, *rest = [COST[path.name] * self.scale for path in (baseline, *candidates)]
        self.now += self.start + blocks * (a + sum(rest))
        measured = SimpleNamespace(times=(a,) * blocks)
        return [
            SimpleNamespace(a=measured, b=SimpleNamespace(times=(b,) * blocks), pairs=((a, b),) * blocks) for b in rest
        ]

    def run(self, seconds: float, processes: int = 5) -> list[session.Ratio]:
        clock = session.Clock(seconds, lambda: self.now)
        return session.compare_in_rounds(
            A, (A, B), (), processes=processes, clock=clock, seed=7, compare=self.compare, progress=silent
        )


def test_case_1_every_round_holds_the_baseline_against_itself() -> None:
    machine = Machine(start=0.0, scale=0.001)
    noise, speed = machine.run(60.0, processes=2)
    assert [(a, b, seed) for a, b, _, seed in machine.calls] == [("a", "ab", 7), ("a", "ab", 8)]
    assert (noise.value, noise.low, noise.high) == pytest.approx((1.0, 1.0, 1.0))
    assert speed.value == pytest.approx(2.0)


def test_case_2_the_first_round_is_short_and_the_rest_fill_the_time() -> None:
    machine = Machine(start=1.0, scale=0.1)
    _, speed = machine.run(60.0)
    blocks = [call[2] for call in machine.calls]
    assert blocks[0] == session.FEWEST_BLOCKS
    assert all(session.FEWEST_BLOCKS < count < session.MOST_BLOCKS for count in blocks[1:])
    assert 50.0 < machine.now <= 60.0
    assert (speed.processes, speed.cut, speed.blocks) == (5, False, sum(blocks))


def test_case_2_plenty_of_time_is_not_wasted() -> None:
    machine = Machine(start=0.1, scale=0.001)
    machine.run(600.0)
    assert {call[2] for call in machine.calls[1:]} == {session.MOST_BLOCKS}
    assert machine.now < 10.0


def test_case_3_what_does_not_fit_is_cut_and_says_so() -> None:
    machine = Machine(start=15.0, scale=0.1)
    _, speed = machine.run(60.0)
    assert 1 < speed.processes < 5
    assert speed.cut
    assert f"in {speed.processes} processes, cut from 5 for lack of time" in speed.line()
    assert machine.now <= 60.0


def test_case_3_the_first_round_is_always_run() -> None:
    noise, speed = Machine(start=100.0).run(1.0)
    assert (noise.processes, speed.processes) == (1, 1)
    assert "in 1 process, cut from 5" in speed.line()


@given(st.floats(0.0, 100.0), st.floats(1e-6, 10.0), st.floats(-10.0, 600.0))
def test_affordable_blocks_fit_and_group_evenly(start: float, block: float, seconds: float) -> None:
    cost = session.RoundCost(start, block)
    blocks = cost.affordable(seconds)
    assert blocks % session.FEWEST_BLOCKS == 0
    assert 0 <= blocks <= session.MOST_BLOCKS
    assert not blocks or start + blocks * block <= seconds + 1e-6


def rounds(
    rng: np.random.Generator, processes: int, between: float, blocks: int = 12
) -> list[list[tuple[float, float]]]:
    levels = np.exp(rng.normal(np.log(2.0), between, processes))
    return [[(level * np.exp(rng.normal(0, 0.03)), 1.0) for _ in range(blocks)] for level in levels]


def test_the_interval_knows_that_starts_differ() -> None:
    rng = np.random.default_rng(0)
    alike = session.pool_rounds(rounds(rng, 5, 0.0), 5, 0)
    apart = session.pool_rounds(rounds(rng, 5, 0.15), 5, 0)
    assert np.log(apart.high / apart.low) > 3 * np.log(alike.high / alike.low)


@pytest.mark.parametrize("processes", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(processes: int) -> None:
    rng = np.random.default_rng(0)
    found = [session.pool_rounds(rounds(rng, processes, 0.05), processes, trial) for trial in range(100)]
    assert np.mean([ratio.low <= 2.0 <= ratio.high for ratio in found]) >= 0.9


def test_the_same_seed_gives_the_same_interval() -> None:
    times = rounds(np.random.default_rng(0), 3, 0.1)
    assert session.pool_rounds(times, 3, 1) == session.pool_rounds(times, 3, 1)


def test_long_and_short_rounds_weigh_the_same() -> None:
    found = session.pool_rounds([[(1.0, 1.0)] * 42, [(4.0, 1.0)] * 6], 2, 0)
    assert found.value == pytest.approx(2.0)
    assert found.blocks == 48


def test_one_stalled_block_does_not_decide() -> None:
    steady = [[(2.0, 1.0)] * 12 for _ in range(3)]
    stalled = [[(20.0, 1.0), *steady[0][1:]], *steady[1:]]
    assert session.pool_rounds(stalled, 3, 0).value == pytest.approx(2.0)
