"""Test the statistics of timing on simulated machines. No test asserts a wall time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnas.export.device import serve_artifacts as serving
from hnas.export.device.artifact import Artifact
from hnas.export.proof import timing
from hnas.export.proof.measurement import Comparison, Measurement
from hnas.export.proof.statistics import ratio_interval
from hnas.export.proof.timing import compare, compare_many, measure
from tests.export import fake_worker
from tests.export.fake_worker import fake_artifact

X = [np.zeros((4, 3), np.float32)]


class Machine:
    """A simulated machine with its own clock; ``pace(now)`` is its slowdown at that moment."""

    def __init__(self, seed: int = 0, pace: Callable[[float], float] = lambda _: 1.0, noise: float = 0.05) -> None:
        self.rng = np.random.default_rng(seed)
        self.pace, self.noise, self.now = pace, noise, 0.0
        self.log: list[str] = []

    def runner(self, seconds: float, name: str = "", cold: int = 0) -> Any:
        """Return a runner with a Worker's interface; its first ``cold`` calls take up to five times as long."""
        state = SimpleNamespace(left=cold)

        def call() -> float:
            slow = 1 + 4 * max(0, state.left) / max(1, cold)
            state.left -= 1
            took: float = seconds * slow * self.pace(self.now) * math.exp(self.rng.normal(0, self.noise))
            self.now += took
            return took

        def time(inputs: object, runs: int, *, lead: int = 0) -> list[float]:
            self.log.append(name)
            return [call() for _ in range(lead + runs)][lead:]

        return SimpleNamespace(time=time, artifact=SimpleNamespace(threads=2))


def covered(machine: Callable[[int], Machine], sessions: int = 100) -> float:
    """Return the share of comparisons of a runner with itself whose interval covers 1."""
    hits = 0
    for seed in range(sessions):
        runner = machine(seed).runner(0.01)
        found = compare(runner, runner, X, runs=5, seed=seed)
        hits += found.low <= 1 <= found.high
    return hits / sessions


def bimodal(seed: int) -> Callable[[float], float]:
    """Return a pace that alternates between full and half speed about every second."""
    modes = np.random.default_rng(seed).choice([1.0, 2.0], 10_000)
    return lambda now: float(modes[int(now)])


def test_itself_is_as_fast_as_itself() -> None:
    assert covered(Machine) >= 0.9


def test_itself_is_as_fast_as_itself_on_a_bimodal_machine() -> None:
    assert covered(lambda seed: Machine(seed, bimodal(seed)), 60) >= 0.9


def test_a_known_factor_is_found() -> None:
    for seed in range(10):
        machine = Machine(seed)
        found = compare(machine.runner(0.002), machine.runner(0.001), X, runs=5, seed=seed)
        assert found.ratio == pytest.approx(2, rel=0.05)
        assert found.low > 1.8
        assert found.high < 2.2
        assert found.a.median_ms == pytest.approx(2, rel=0.1)


def test_a_drift_of_the_machine_cancels() -> None:
    machine = Machine(pace=lambda now: 1 + now / 4)  # twice as slow within the session
    found = compare(machine.runner(0.010), machine.runner(0.008), X, runs=5)
    assert machine.pace(machine.now) > 2
    assert found.ratio == pytest.approx(1.25, rel=0.02)
    assert found.low <= 1.25 <= found.high
    assert not found.a.steady
    assert "noisy: IQR is" in found.a.line()


def test_a_stall_in_one_block_decides_nothing() -> None:
    machine = Machine(pace=lambda now: 50.0 if 1.0 < now < 1.2 else 1.0)
    found = compare(machine.runner(0.01), machine.runner(0.01), X, runs=5)
    assert found.ratio == pytest.approx(1, rel=0.05)


def test_everybody_runs_in_a_random_order_and_its_reverse() -> None:
    machine = Machine()
    runners = [machine.runner(0.01 * (1 + i), name) for i, name in enumerate("abc")]
    found = compare_many(runners[0], runners[1:], X, blocks=12, runs=3)
    assert [round(c.ratio, 1) for c in found] == [0.5, 0.3]
    turns = "".join(machine.log[-12 * 6 :])
    blocks = [turns[i : i + 6] for i in range(0, len(turns), 6)]
    assert all(block == block[::-1] and set(block) == set("abc") for block in blocks)
    assert len(set(blocks)) > 2
    assert len(found[0].a.times) == 12 * 2 * 3
    assert found[0].a == found[1].a


def test_the_same_seed_gives_the_same_comparison() -> None:
    def once() -> Comparison:
        machine = Machine(3)
        return compare(machine.runner(0.002), machine.runner(0.003), X, seed=5)

    assert once() == once()


class Differing:
    """Workers whose processes differ in speed."""

    def __init__(self, spread: float) -> None:
        self.rng = np.random.default_rng(0)
        self.spread, self.opened, self.closed = spread, 0, 0

    @contextmanager
    def __call__(self, artifact: Artifact, backend: str, transport: Any) -> Iterator[Any]:
        assert backend == artifact.backend
        self.opened += 1
        yield Machine(self.opened).runner(0.01 * math.exp(self.rng.normal(0, self.spread)))
        self.closed += 1


def test_processes_that_differ_widen_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = fake_artifact(tmp_path / "a")
    many, one = 0, 0
    for seed in range(20):
        workers = Differing(0.05)
        workers.rng = np.random.default_rng(seed)
        monkeypatch.setattr(timing, "Worker", workers)
        found = compare(artifact, artifact.path, X, processes=5, runs=3, seed=seed)
        assert workers.opened == workers.closed == 10
        assert len(found.pairs) == 100
        many += found.low <= 1 <= found.high
        single = compare(artifact, artifact, X, runs=3, seed=seed)
        one += single.low <= 1 <= single.high
    assert many >= 18
    assert one < 15  # one process cannot show the spread between processes


def test_hierarchical_interval_covers() -> None:
    rng = np.random.default_rng(1)
    for processes in (2, 3, 5):
        hits = 0
        for seed in range(60):
            logs = rng.normal(0, 0.05, (processes, 1)) + rng.normal(0, 0.05, (processes, 10))
            _, low, high = ratio_interval(logs, 0.95, seed)
            hits += low <= 1 <= high
        assert hits >= 53


def test_a_warm_up_lasts_until_steady() -> None:
    found = measure(Machine(noise=0.005).runner(0.001, cold=150), X, runs=50)
    assert found.warmup >= 140
    assert found.settled
    assert found.steady
    assert found.median_ms == pytest.approx(1, rel=0.02)
    assert (found.batch, found.threads, len(found.times)) == (4, 2, 50)


def test_a_machine_that_never_settles_says_so() -> None:
    found = measure(Machine(pace=lambda now: 1 + 20 * now, noise=0).runner(0.01), X, runs=50)
    assert not found.settled
    assert not found.steady
    assert "the warm-up had not settled" in found.line()


def test_slow_runners_get_fewer_calls_within_the_seconds() -> None:
    assert len(measure(Machine().runner(0.1), X, runs=200, seconds=3.0).times) in range(25, 35)
    assert len(measure(Machine().runner(10.0), X, runs=200, seconds=3.0).times) == 10


def test_figures_of_known_times() -> None:
    found = Measurement(tuple(i / 1000 for i in range(1, 102)), threads=1, warmup=3)
    assert found.median_ms == pytest.approx(51)
    assert found.p90_ms == pytest.approx(91)
    assert found.p99_ms == pytest.approx(100)
    assert found.iqr_ms == pytest.approx(50)
    assert not found.steady
    assert found.noise == "very noisy: IQR is 98% of the median"
    assert "n=101" in found.line()
    assert "1 thread," in found.line()
    constant = Measurement((0.001,) * 30)
    assert constant.steady
    assert constant.interval_ms() == pytest.approx((1, 1))
    noisy = Measurement((0.001,) * 10 + (0.0011, 0.0012) * 10)
    assert noisy.noise.startswith("noisy")


def test_the_interval_of_a_median_covers_it() -> None:
    hits = 0
    for seed in range(60):
        times = 0.001 * np.exp(np.random.default_rng(seed).normal(0, 0.1, 200))
        low, high = Measurement(tuple(times), seed=seed).interval_ms()
        hits += low <= 1 <= high
    assert hits >= 53


def test_json_round_trips() -> None:
    machine = Machine()
    found = compare(machine.runner(0.002), machine.runner(0.001), X, blocks=3, runs=2)
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert Measurement.from_json(json.loads(json.dumps(found.a.to_json()))) == found.a
    with pytest.raises(ValueError, match=r"measurement: times\[0\] is 'x', expected a number"):
        Measurement.from_json({"times": ["x"]})
    with pytest.raises(ValueError, match="outside of its interval"):
        replace(found, low=9.0)
    assert "95 % interval" in found.line()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 1}, "blocks=1"),
        ({"processes": 0}, "processes=0"),
        ({"runs": 0}, "runs=0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"processes": 2}, "needs artifacts or paths"),
    ],
)
def test_wrong_use_is_one_line(options: dict[str, Any], message: str) -> None:
    runner = Machine().runner(0.01)
    with pytest.raises(ValueError, match=message):
        compare(runner, runner, X, **options)


@pytest.mark.parametrize("times", [(), (0.0,), (-1.0,), (float("nan"),), (float("inf"),)])
def test_times_are_positive(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Measurement(times)


def test_a_runner_of_this_process_is_timed_by_its_bound_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10**12, 2_000_000))
    monkeypatch.setattr(serving, "perf_counter_ns", lambda: next(ticks))
    runner: Any = SimpleNamespace(bind=lambda *inputs: lambda: None, artifact=SimpleNamespace(threads=1))
    assert measure(runner, X, runs=20).times == pytest.approx((0.002,) * 20)


def test_real_workers_are_opened_for_paths(tmp_path: Path) -> None:
    transport: Any = fake_worker
    artifact = fake_artifact(tmp_path / "a", verify_with="absent")
    found = compare(
        artifact, artifact.path, [np.zeros((1, 3), np.float32)], blocks=2, runs=2, processes=2, transport=transport
    )
    assert (len(found.a.times), len(found.pairs), found.processes) == (16, 4, 2)
    assert "2 processes of 2 blocks" in found.line()


def test_an_interval_of_one_process_says_so() -> None:
    runner = Machine().runner(0.01)
    found = compare(runner, runner, X, blocks=3, runs=2)
    assert found.processes == 1
    assert "of this process alone, another may differ: processes=3 covers that" in found.line()
    assert "alone" not in replace(found, processes=3).line()


def test_the_interval_holds_the_median_even_where_all_times_are_equal() -> None:
    for k in range(1, 200):
        found = Measurement((k * 1.2345e-6,) * 12)
        low, high = found.interval_ms()
        assert low <= found.median_ms <= high


def test_a_bare_array_is_the_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    artifact = SimpleNamespace(threads=1)
    runner: Any = SimpleNamespace(artifact=artifact, bind=lambda *inputs: given.extend(inputs) or (lambda: None))
    image = np.zeros((4, 3), np.float32)
    assert measure(runner, image, runs=10, seconds=0.01).batch == 4
    assert [each.shape for each in given] == [image.shape]
