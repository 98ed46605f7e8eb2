"""NSGA-II inside hard windows: its candidates, their order, and a larger front than random search."""

from __future__ import annotations

from itertools import islice
from math import inf
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2

from hnas.cost import Price
from hnas.journal import Journal
from hnas.pareto import Candidate, front
from hnas.space import Arch, Choice, Space
from hnas.strategies import evolution
from hnas.strategies.evolution import EvolutionOptions, Window, search, violation
from tests.hnas import tiny
from tests.hnas.strategies.fake_study import SEPARABLE, FakeStudy, plain


def found(study: FakeStudy | None = None, space: Space = SEPARABLE, **options) -> list[Candidate]:
    return list(search(study or FakeStudy(), space, EvolutionOptions(**options)))


def test_the_search_is_pymoos_nsga2(monkeypatch):
    told = []

    class Spied(NSGA2):
        def tell(self, *args, **kwargs):
            told.append(len(kwargs["infills"]))
            return super().tell(*args, **kwargs)

    monkeypatch.setattr(evolution, "NSGA2", Spied)
    found()
    assert sum(told) >= 50


def test_it_prices_as_many_as_it_may_each_once_and_all_are_members():
    study = FakeStudy()
    candidates = found(study, evaluations=40)
    assert len(candidates) == len({c.arch for c in candidates}) == len(study.asked) == 40
    assert all(c.arch in SEPARABLE for c in candidates)
    assert candidates[0].arch == SEPARABLE.smallest
    assert SEPARABLE.largest in [c.arch for c in candidates[:2]]


def test_windows_are_hard():
    study, windows = FakeStudy(), {"latency_ms": Window(high=6.0), "accuracy": Window(low=0.5)}
    candidates = found(study, windows=windows, evaluations=120)
    outside = [c for c in candidates if c.metrics["latency_ms"] > 6.0]
    assert outside, "the window must bite for this to be a test"
    assert not any("accuracy" in c.metrics for c in outside)
    assert not {c.arch for c in outside} & set(study.evaluated)
    inside = [c for c in candidates if violation(c, windows) == 0]
    assert inside
    for candidate in front(inside, "latency_ms"):
        assert candidate.metrics["latency_ms"] <= 6.0
        assert candidate.metrics["accuracy"] >= 0.5
    assert all(c.metrics["latency_ms"] <= 6.0 for c in front(candidates, "latency_ms"))


def test_the_search_moves_into_a_window_that_few_members_meet():
    windows = {"latency_ms": Window(high=5.5)}
    inside = [violation(c, windows) == 0 for c in found(windows=windows, evaluations=120)]
    chance = [FakeStudy().price(SEPARABLE.sample(Random(seed)), "latency_ms").value <= 5.5 for seed in range(200)]
    assert sum(inside[-20:]) > sum(inside[:20]) == 0
    assert sum(inside[-20:]) / 20 > sum(chance) / 200


def test_a_window_that_nothing_meets_scores_nothing_and_ends():
    study = FakeStudy()
    assert len(found(study, windows={"latency_ms": Window(high=0.5)}, evaluations=30)) == 30
    assert study.evaluated == []


@pytest.mark.parametrize(
    ("window", "value", "excess"),
    [
        (Window(), 3.0, 0.0),
        (Window(high=2.0), 2.0, 0.0),
        (Window(high=2.0), 3.0, 0.5),
        (Window(low=2.0), 1.0, 0.5),
        (Window(low=2.0, high=4.0), 3.0, 0.0),
        (Window(high=0.0), 0.25, 0.25),
    ],
)
def test_an_excess_is_a_share_of_its_bound(window, value, excess):
    assert window.excess(value) == pytest.approx(excess)


@pytest.mark.parametrize("windows", [{}, {"latency_ms": Window(high=7.0)}, {"accuracy": Window(low=0.5)}])
def test_what_has_no_latency_is_never_scored_and_the_search_goes_on(windows: dict[str, Window]) -> None:
    class Failing(FakeStudy):
        def _latency(self, arch: Arch) -> Price:
            known = super()._latency(arch)
            return Price(inf, "ms", inf, inf, "measured") if arch["c0"] == 3 else known

    study = Failing()
    seen = found(study, windows=windows, evaluations=60)
    failed = [candidate for candidate in seen if candidate.metrics["latency_ms"] == inf]
    assert len(seen) == 60
    assert 0 < len(failed) < 30
    assert not any("accuracy" in candidate.metrics or violation(candidate, windows) == 0 for candidate in failed)
    assert not {candidate.arch for candidate in failed} & set(study.evaluated)
    assert front(seen, "latency_ms")


def test_the_same_seed_gives_the_same_sequence_and_another_does_not():
    assert found(seed=7) == found(seed=7)
    assert found(seed=7) != found(seed=8)


def test_a_search_that_was_killed_goes_on_with_the_same_sequence(tmp_path: Path):
    whole = found()
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    list(islice(search(FakeStudy(journal), SEPARABLE, EvolutionOptions()), 25))
    journal.close()
    file.write_bytes(file.read_bytes()[:-7])  # the kill cut a line
    study = FakeStudy(Journal(file))
    assert found(study) == whole
    assert len(study.asked) == 35
    assert len(study.evaluated) == 36  # the one that was cut is asked again
    study.journal.close()


def volume(candidates: list[Candidate]) -> float:
    """Return the area that the front dominates, up to a latency of 13 ms and down to an accuracy of 0."""
    area, last = 0.0, 13.0
    for candidate in reversed(front(candidates, "latency_ms")):
        area += (last - candidate.metrics["latency_ms"]) * candidate.metrics["accuracy"]
        last = candidate.metrics["latency_ms"]
    return area


def test_it_beats_random_search():
    wins, seeds = 0, range(5)
    for seed in seeds:
        study = FakeStudy(seed=seed)
        chance = [study.score(SEPARABLE.sample(Random(f"{seed}/{k}"))) for k in range(150)]
        wins += volume(found(FakeStudy(seed=seed), evaluations=150, seed=seed)) > volume(chance)
    assert wins == len(seeds)


@pytest.mark.parametrize(
    ("choices", "members"),
    [
        ({}, 1),
        ({"a": Choice((0,))}, 1),
        ({"a": Choice((0,)), "b": Choice((0,)), "c": Choice((0,))}, 1),
        ({"a": Choice((0, 1))}, 2),
        ({"a": Choice((0,)), "b": Choice((0, 1, 2)), "c": Choice((0,))}, 3),
        ({"a": Choice((0, 1)), "b": Choice((0, 1), ("a", (1,)))}, 3),
    ],
)
def test_small_spaces_end_and_are_seen_whole(choices, members):
    candidates = found(space=plain(choices), evaluations=50)
    assert len(candidates) == members


def test_types_start_everywhere_they_are_legal():
    space = tiny.space()
    types = {space.largest["stages.1.blocks.1.op"], "attention", "convnext", "mbconv", "identity"}
    seen = {c.arch["stages.1.blocks.1.op"] for c in found(space=space, evaluations=12)}
    assert types <= seen


def test_a_budget_of_seconds_ends_by_the_clock(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(evolution, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    assert len(found(evaluations=None, seconds=21.0)) == 20


def test_a_replay_sees_what_the_journal_has_though_no_time_is_left():
    study = FakeStudy()
    whole = found(study, evaluations=30)
    assert found(study, evaluations=None, seconds=0.0) == whole
    assert len(study.asked) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": None}, "the search needs a budget; give evaluations or seconds"),
        ({"cost": "energy_mj"}, "no cost 'energy_mj' in this study; known: latency_ms"),
        ({"windows": {"size_bytes": Window(high=1)}}, "no cost 'size_bytes' in this study; known: latency_ms"),
    ],
)
def test_a_search_that_could_not_mean_anything_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        found(**options)


SMALL = plain({f"c{k}": Choice(tuple(range(3))) for k in range(3)})


@pytest.mark.parametrize("fit", [1, 5, 14, 27])
def test_a_search_for_more_than_a_window_holds_ends(fit: int):
    study = FakeStudy()
    members = [SMALL.arch({f"c{k}": i // 3**k % 3 for k in range(3)}) for i in range(27)]
    prices = sorted(study.price(arch, "latency_ms").value for arch in members)
    window = {"latency_ms": Window(high=prices[fit - 1])}
    found = list(search(study, SMALL, EvolutionOptions(window, evaluations=100, population=8, reject=True)))
    assert fit / 2 <= len(found) <= fit
    assert len({each.arch for each in found}) == len(found)


def test_a_search_for_more_than_a_space_holds_ends():
    found = list(search(FakeStudy(), SMALL, EvolutionOptions(evaluations=100, population=8)))
    assert 24 <= len({each.arch for each in found}) == len(found) <= 27
