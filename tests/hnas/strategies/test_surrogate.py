"""The search with predictors: nearer to the optimum than evolution at equal evaluations, inside hard windows."""

from __future__ import annotations

import ast
from contextlib import closing
from math import inf, isfinite
from pathlib import Path
from random import Random

import numpy as np
import pytest

from hnas import predictor
from hnas.cost.fitted import FittedLatency
from hnas.journal import Journal
from hnas.pareto import Candidate
from hnas.predictor import Predictor
from hnas.space import Choice
from hnas.spaces.tabular_digits import tabular_digits
from hnas.strategies import evolution, surrogate
from hnas.strategies.evolution import EvolutionOptions, Window
from hnas.strategies.surrogate import SurrogateOptions, estimated_accuracies, search
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas.strategies.fake_study import SEPARABLE, FakeStudy, plain

ACCURATE = {"accuracy": Window(low=0.55)}


def found(study=None, space=SEPARABLE, **options) -> list[Candidate]:
    return list(search(study or FakeStudy(), space, SurrogateOptions(**options)))


def _cheapest(candidates, windows):
    inside = [c for c in candidates if evolution.violation(c, windows) == 0]
    return min((c.metrics["latency_ms"] for c in inside), default=inf)


def test_forty_evaluations_find_cheaper_networks_than_evolution_does():
    ours, theirs = [], []
    for seed in range(4):
        study = FakeStudy(seed=seed)
        ours.append(_cheapest(found(study, windows=ACCURATE, evaluations=40, seed=seed), ACCURATE))
        options = EvolutionOptions(ACCURATE, evaluations=40, seed=seed)
        theirs.append(_cheapest(evolution.search(study, SEPARABLE, options), ACCURATE))
    assert all(a < b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_inside_a_window_of_the_latency_it_finds_accurate_networks():
    windows = {"latency_ms": Window(high=6.0)}
    for seed in range(3):
        study = FakeStudy(seed=seed)
        ours = found(study, windows=windows, accurate=True, evaluations=40, seed=seed)
        assert all("accuracy" not in c.metrics for c in ours if c.metrics["latency_ms"] > 6.0)
        theirs = evolution.search(study, SEPARABLE, EvolutionOptions(windows, evaluations=40, seed=seed))
        assert max(c.metrics.get("accuracy", 0) for c in ours) > max(c.metrics.get("accuracy", 0) for c in theirs)


def test_it_tries_each_once_the_smallest_first_and_as_many_as_it_may():
    candidates = found(evaluations=25)
    assert len(candidates) == len({c.arch for c in candidates}) == 25
    assert [c.arch for c in candidates[:2]] == [SEPARABLE.smallest, SEPARABLE.largest]
    assert all(c.arch in SEPARABLE for c in candidates)


def test_a_network_that_is_not_accurate_enough_is_not_priced():
    study = FakeStudy()
    candidates = found(study, windows=ACCURATE, evaluations=40)
    skipped = [c for c in candidates if c.metrics["latency_ms"] == inf]
    assert skipped
    assert all(c.metrics["accuracy"] < 0.55 for c in skipped)
    assert not {c.arch for c in skipped} & set(study.asked)
    assert all(isfinite(c.metrics["latency_ms"]) for c in candidates if c.metrics["accuracy"] >= 0.55)


def test_a_killed_search_continues_with_the_same_candidates(tmp_path: Path):
    whole = found(windows=ACCURATE, evaluations=30)
    file = tmp_path / "journal.jsonl"
    with closing(Journal(file)) as journal:
        part = found(FakeStudy(journal), windows=ACCURATE, evaluations=20)
    with closing(Journal(file)) as journal:
        study = FakeStudy(journal)
        again = found(study, windows=ACCURATE, evaluations=30)
    assert part == whole[:20]
    assert again == whole
    assert not {c.arch for c in part} & {*study.asked, *study.evaluated}


def test_a_spent_time_reads_what_the_journal_has(tmp_path: Path):
    file = tmp_path / "journal.jsonl"
    with closing(Journal(file)) as journal:
        part = found(FakeStudy(journal), windows=ACCURATE, evaluations=25)
    with closing(Journal(file)) as journal:
        assert found(FakeStudy(journal), windows=ACCURATE, evaluations=None, seconds=0.0) == part


def test_a_small_space_is_tried_to_the_last():
    space = plain({"a": Choice((1, 2, 3)), "b": Choice((1, 2))})
    assert len(found(space=space, evaluations=50)) <= 6
    lone = plain({"a": Choice((1,))})
    only = found(space=lone, evaluations=5)
    assert [candidate.arch["a"] for candidate in only] == [1]
    assert estimated_accuracies(FakeStudy(), lone, only, relative=True)[only[0].arch] == only[0].metrics["accuracy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evaluations": None}, "needs a budget"),
        ({"cost": "joules"}, "no cost 'joules'"),
        ({"windows": {"watts": Window(high=3.0)}}, "no cost 'watts'"),
    ],
)
def test_bad_options_are_one_line(options, said):
    with pytest.raises(ValueError, match=said):
        found(**options)


def test_known_accuracies_leave_the_budget_for_latencies():
    rng = Random(1)
    for seed in range(2):
        study = FakeStudy(seed=seed)
        without = _cheapest(found(study, windows=ACCURATE, evaluations=30, seed=seed), ACCURATE)
        study = FakeStudy(seed=seed)
        archs = [SEPARABLE.sample(rng) for _ in range(100)]
        study.known = {arch: study.search_accuracy(arch) for arch in archs}
        study.evaluated.clear()
        candidates = found(study, windows=ACCURATE, evaluations=30, seed=seed)
        assert not {*study.evaluated} & {*archs}
        assert all(study.known.get(c.arch, 1.0) >= 0.55 for c in candidates[16:])  # after the planned ones
        assert _cheapest(candidates, ACCURATE) < without


def test_the_lucky_are_estimated_near_their_likes():
    """Sixty accuracies, one with much luck. The more images, the more it is believed; the largest one if relative."""
    study, rng = FakeStudy(), Random(2)
    archs = [SEPARABLE.largest, *(SEPARABLE.sample(rng) for _ in range(60))]
    true = [study.search_accuracy(arch) for arch in archs]
    noisy = [Candidate(arch, {"accuracy": value + rng.gauss(0, 0.02)}) for arch, value in zip(archs, true, strict=True)]
    noisy[30] = Candidate(archs[30], {"accuracy": true[30] + 0.08})
    largest, lucky = (noisy[k].metrics["accuracy"] for k in (0, 30))
    kept = []
    for images in (20, 10**9):
        study.search_images = images
        estimates = estimated_accuracies(study, SEPARABLE, noisy, relative=True)
        assert estimates[SEPARABLE.largest] == pytest.approx(largest)
        plain = estimated_accuracies(study, SEPARABLE, noisy, relative=False)
        kept.append((plain[archs[30]] - true[30]) / (lucky - true[30]))
    assert kept[0] < 0.6 < 0.8 < kept[1], kept


def test_luck_is_a_third_of_the_binomial_variance_of_the_search_images():
    study, archs = FakeStudy(), [SEPARABLE.smallest, SEPARABLE.largest]
    study.search_images = 5000
    accuracies = dict(zip(archs, (0.85, 0.95), strict=True))
    assert surrogate._luck(study, accuracies) == pytest.approx(0.9 * 0.1 / 5000 / 3)
    assert surrogate._luck(study, {}) == 0.0


def test_the_search_corrects_its_accuracies_for_luck(monkeypatch):
    """The variance reaches the predictor of the accuracy in every fit, and no predictor of a cost."""
    fits = []

    class Spied(surrogate.Predictor):
        def fit(self, archs, values, *, variance=0.0, tune=True):
            fits.append((variance, sum(values) / len(values)))
            return super().fit(archs, values, variance=variance, tune=tune)

    monkeypatch.setattr(surrogate, "Predictor", Spied)
    study = FakeStudy()
    study.search_images = 100
    found(study, windows=ACCURATE, evaluations=20)
    costs, accuracies = ([fit for fit in fits if (fit[1] < 1) == accurate] for accurate in (False, True))
    assert costs
    assert {variance for variance, _ in costs} == {0.0}
    assert accuracies
    assert all(variance == pytest.approx(mean * (1 - mean) / 300) for variance, mean in accuracies)


def test_a_latency_is_predicted_from_kernels_where_slots_are_modules():
    space = tabular_digits()
    known = surrogate._predictor(Study(Supernet(space), None), space, "latency_ms")
    assert isinstance(known, FittedLatency)
    other = surrogate._predictor(Study(Supernet(space), None), space, "size_bytes")
    unknown = surrogate._predictor(FakeStudy(), SEPARABLE, "latency_ms")
    assert isinstance(other, Predictor)
    assert isinstance(unknown, Predictor)


def test_gains_and_windows_are_those_of_the_normal_distribution() -> None:
    from scipy.stats import norm  # slow to import, so the search takes scipy.special

    mean, deviation = np.random.default_rng(0).normal(size=(2, 99))
    gain, spread = mean, abs(deviation) + 0.01
    expected = np.maximum(gain * norm.cdf(gain / spread) + spread * norm.pdf(gain / spread), 0)
    assert np.array_equal(surrogate._expected_gain(gain, spread), expected)
    for low, high in ((-0.3, 0.8), (-inf, 0.5)):
        inside = norm.cdf(high, mean, spread) - norm.cdf(low, mean, spread)
        assert np.array_equal(surrogate._within(mean, spread, low, high), inside)


def _modules(text: str) -> set[str]:
    """Return what a file imports, as module names; a name from a package counts as a module of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_search_does_not_import_scipy_stats() -> None:
    """Its import would take a tenth of the start of ``hnas-deploy``."""
    for line in (
        "import os, scipy.stats",
        "from scipy.stats import norm",
        "from scipy import (\n    special,\n    stats,\n)",
    ):
        assert "scipy.stats" in _modules(line)
    rooms = Path(predictor.__file__).parent
    linked = [room.resolve() for room in (rooms / "export", rooms / "hw_profiles")]  # rglob follows no links
    files = [file for room in (rooms, *linked) for file in room.rglob("*.py")]
    assert {"predictor.py", "timing.py"} <= {file.name for file in files}
    assert not [str(file) for file in files if "scipy.stats" in _modules(file.read_text("utf-8"))]
