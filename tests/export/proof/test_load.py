"""The load of a machine: counted from counters, stated with a claim, and a reason to measure again and to widen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from hnas.export.proof.load import WIDENED, Load, Reading, Watch, compare_again_if_busy, read_counters
from hnas.export.proof.measurement import Comparison, Measurement


def watched(*readings: Reading | None, cores: int = 2) -> Watch:
    left: Iterator[Reading | None] = iter(readings)
    return Watch(lambda: next(left), cores)


def comparison(ratio: float, processes: int = 2) -> Comparison:
    pairs = tuple((ratio * 1e-3 * (1 + 0.001 * i), 1e-3) for i in range(4 * processes))
    a, b = (Measurement(tuple(pair[i] for pair in pairs), warmup=3) for i in (0, 1))
    return Comparison(a, b, ratio * 1.002, ratio * 0.99, ratio * 1.01, pairs, processes)


class Sessions:
    """Sessions of a comparison: the ratio and the cores that others used in each."""

    def __init__(self, *each: tuple[float, float | None]) -> None:
        self.each, self.seeds, self.looks = each, list[int](), 0

    def compare(self, seed: int) -> list[Comparison]:
        self.seeds.append(seed)
        return [comparison(self.each[len(self.seeds) - 1][0])]

    def watch(self) -> Watch:
        others = self.each[self.looks][1]
        self.looks += 1
        end = None if others is None else Reading(10.0, 10 * (others + 1), 10.0)
        return watched(Reading(0.0, 0.0, 0.0), end)


def test_the_load_is_the_time_of_others_in_cores() -> None:
    assert watched(Reading(0.0, 100.0, 5.0), Reading(10.0, 117.0, 15.0)).load() == Load(0.7, 2)
    assert watched(Reading(0.0, 0.0, 0.0), Reading(1.0, 0.5, 0.6)).load() == Load(0.0, 2)  # never below 0
    assert watched(Reading(0.0, 0.0, 0.0), Reading(1.0, 9.0, 0.0)).load() == Load(2.0, 2)  # nor above the cores
    assert watched(Reading(0.0, 0.0, 0.0), Reading(0.1, 9.0, 0.0)).load() is None  # too short
    assert watched(None, Reading(1.0, 1.0, 1.0)).load() is None  # no counters
    assert Load(1.62, 2).line() == "other programs used 1.6 of 2 cores"


@pytest.mark.parametrize(
    ("others", "cores", "threads", "busy"),
    [
        (0.0, 2, 1, False),
        (1.0, 2, 1, False),
        (1.2, 2, 1, True),
        (0.2, 2, 2, True),
        (0.0, 2, 2, False),
        (5.0, 8, 1, False),
    ],
)
def test_a_machine_is_busy_where_a_thread_lacks_a_core(others: float, cores: int, threads: int, busy: bool) -> None:
    assert Load(others, cores).busy(threads) is busy


def test_the_counters_of_this_machine_rise() -> None:
    first, second = read_counters(), read_counters()
    assert first is not None
    assert second is not None
    assert second.all >= first.all > 0
    assert second.own >= first.own > 0


def test_one_session_is_enough_on_a_quiet_machine() -> None:
    for others in (0.3, None):
        sessions = Sessions((2.0, others))
        (found,) = compare_again_if_busy(sessions.compare, 7, sessions.watch)
        assert sessions.seeds == [7]
        assert (found.low, found.high, found.widened) == (2.0 * 0.99, 2.0 * 1.01, 1.0)
        assert found.load == (None if others is None else Load(others, 2))


def test_a_busy_machine_is_measured_again_and_its_interval_covers_both_sessions() -> None:
    sessions = Sessions((3.7, 1.5), (3.2, 1.9))
    (found,) = compare_again_if_busy(sessions.compare, 7, sessions.watch)
    assert sessions.seeds == [7, 8]
    assert found.load == Load(1.9, 2)
    assert found.processes == 4
    assert len(found.pairs) == len(found.b.times) == 16
    assert found.low <= 3.2 * 0.99 / WIDENED
    assert found.high >= 3.7 * 1.01 * WIDENED
    assert found.low < found.ratio < found.high
    assert Comparison.from_json(found.to_json()) == found


def test_the_interval_of_a_latency_is_widened_too() -> None:
    plain = comparison(2.0)
    wide = Comparison.from_json({**plain.to_json(), "widened": 1.2})
    low, high = plain.interval_ms("b")
    assert wide.interval_ms("b") == pytest.approx((low / 1.2, high * 1.2))


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([1.0] * 97 + [50.0] * 3, "long tail: p99 is 50 times the median"),
        ([1.0] * 100, ""),
        ([1.0] * 50 + [1.5] * 50, "very noisy: IQR is 40% of the median"),
    ],
)
def test_a_noise_is_named(times: Sequence[float], says: str) -> None:
    found = Measurement(tuple(each * 1e-3 for each in times))
    assert found.noise == says
    assert found.line().endswith(f"; {says}" if says else "n=100)")
