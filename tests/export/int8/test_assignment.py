"""Test the search for the blocks that stay in float, on invented levels, verdicts and times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hnas.export.int8.mixed import assign

LEVELS = {"a": 20.0, "b": 40.0, "c": 30.0, "d": 50.0}


def test_case_1_the_fewest_of_the_most_sensitive_blocks_by_halving() -> None:
    best, tried = assign(LEVELS, lambda left: len(left) >= 2, lambda left: 1.0 + len(left))
    assert [each.kept for each in tried[:3]] == [(), ("a", "c"), ("a",)]
    assert best is not None
    assert best.kept == ("a", "c")


def test_case_1_all_float_is_no_assignment() -> None:
    best, tried = assign(LEVELS, lambda _: False, lambda _: 1.0)
    assert [each.kept for each in tried] == [(), ("a", "c"), ("a", "c", "b")]
    assert best is None


@given(st.integers(1, 16), st.integers(0, 16), st.integers(1, 12))
def test_no_more_is_tried_than_allowed_and_little_is_needed(count: int, least: int, trials: int) -> None:
    levels = {f"{number:02}": float(number) for number in range(count)}
    best, tried = assign(levels, lambda left: len(left) >= least, lambda left: 1.0 + len(left), trials)
    assert len(tried) <= trials
    assert best is None or len(best.kept) >= least
    if trials >= 6:  # 16 blocks are halved four times
        assert (best is None) == (least >= count and least > 0)


def test_case_2_blocks_that_are_not_needed_go_back() -> None:
    best, _ = assign(LEVELS, lambda left: "c" in left, lambda left: 1.0 + len(left))
    assert best is not None
    assert best.kept == ("c",)


def test_case_3_a_block_that_is_faster_in_float_stays_there_beyond_the_noise() -> None:
    cost = {"a": 0.1, "b": -0.3, "c": 0.1, "d": -0.01}
    best, _ = assign(LEVELS, lambda _: True, lambda left: 1.0 + sum(cost[name] for name in left))
    assert best is not None
    assert best.kept == ("b",)


def test_case_3_tries_only_blocks_that_are_known_to_be_slow_the_slowest_first() -> None:
    cost = {"a": -0.2, "b": -0.3, "c": 0.1, "d": -0.1}
    best, tried = assign(LEVELS, lambda _: True, lambda left: 1.0 + sum(cost[name] for name in left), slow=["d", "b"])
    assert [each.kept for each in tried] == [(), ("d",), ("b", "d")]
    assert best == tried[-1]


def test_only_what_is_fast_enough_is_judged() -> None:
    cost, judged = {"a": 0.1, "b": -0.3, "c": 0.1, "d": -0.01}, []

    def accept(left: tuple[str, ...]) -> bool:
        judged.append(left)
        return True

    best, tried = assign(LEVELS, accept, lambda left: 1.0 + sum(cost[name] for name in left))
    assert judged == [(), ("b",)]
    assert [each.accepted for each in tried] == [True, None, None, True, None]
    assert best is not None
    assert best.kept == ("b",)


def test_what_is_accepted_and_cannot_be_timed_is_refused() -> None:
    best, tried = assign(LEVELS, lambda left: len(left) > 1, lambda _: None)
    assert best is None
    assert not any(each.accepted for each in tried)


def test_no_assignment_is_tried_twice() -> None:
    """Halving accepts the first four of eight blocks, then the first three; the fourth would be tried again."""
    levels = {name: float(place) for place, name in enumerate("abcdefgh")}
    best, tried = assign(levels, lambda left: len(left) > 2, lambda left: 2.0 - len(left) / 10, trials=20)
    assert len({each.kept for each in tried}) == len(tried)
    assert best is not None
    assert len(best.kept) == 7


def test_what_cannot_be_made_has_no_time_and_is_refused() -> None:
    best, tried = assign(LEVELS, lambda _: True, lambda left: None if "a" in left else 1.0 - 0.1 * len(left))
    assert tried[1].kept == ("a",)
    assert tried[1].accepted is False
    assert best is not None
    assert best.kept == ("c", "b", "d")


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.floats(10, 60), min_size=2, max_size=6),
    st.integers(0, 4),
)
def test_what_is_chosen_was_accepted_and_nothing_accepted_is_faster(levels: dict[str, float], least: int) -> None:
    best, tried = assign(levels, lambda left: len(left) >= least, lambda left: 1.0 + 0.1 * len(left))
    assert len(tried) <= 2 * len(levels) + 1
    assert (best is None) == (least >= len(levels))
    if best is not None:
        assert best in tried
        assert best.accepted
        assert len(best.kept) == least
