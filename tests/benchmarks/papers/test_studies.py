"""The studies run end to end at their smallest, go on where they stopped, and judge by their intervals."""

import json
import math
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from hnas import spaces
from hnas.benchmarks.papers import catalogue, parts, printing, report, statistics, supernets, tabular, truth
from hnas.benchmarks.papers.__main__ import main
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, UNSEEN, Interval
from hnas.training.step import SubnetPath

FOUND = catalogue.find_claims()


# --- statistics -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_tau_is_tau_b(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(each) for each in zip(*pairs, strict=True))
    signs = [np.sign(np.subtract.outer(each, each)) for each in (x, y)]
    untied = math.prod(np.sqrt((sign**2).sum()) for sign in signs)
    expected = (signs[0] * signs[1]).sum() / untied if untied else 0
    assert statistics.kendall(x, y) == pytest.approx(expected)


def test_the_interval_of_tau_is_that_of_resampled_architectures() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(30)
    y = x + rng.normal(0, 0.3, 30)
    drawn = [rng.integers(0, 30, 30) for _ in range(500)]
    low, high = np.quantile([kendalltau(x[d], y[d])[0] for d in drawn], [0.025, 0.975])
    found = statistics.kendall_interval(x, y)
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)


def test_intervals_over_five_seeds_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    found = [statistics.mean_interval(rng.normal(0, 1, 5)) for _ in range(300)]
    assert 0.91 <= np.mean([each.low <= 0 <= each.high for each in found]) <= 0.985


def test_one_seed_gives_no_verdict() -> None:
    assert statistics.judge_interval(statistics.paired([0.9], [0.1])) == UNSEEN


@pytest.mark.parametrize(
    ("low", "high", "above", "answer"),
    [
        (0.01, 0.03, 0.0, HOLDS),
        (-0.01, 0.03, 0.0, UNSEEN),
        (-0.03, -0.01, 0.0, FAILS),
        (0.05, 0.2, 0.1, FAILS),
        (0.11, 0.2, 0.1, HOLDS),
        (-0.1, 0.2, 0.1, UNSEEN),
    ],
)
def test_a_verdict_is_drawn_from_the_interval(low: float, high: float, above: float, answer: str) -> None:
    assert statistics.judge_interval(Interval((low + high) / 2, low, high, 5), above) == answer


def test_the_ceiling_falls_with_the_noise_of_the_seeds() -> None:
    rng = np.random.default_rng(0)
    real = rng.random((40, 1))
    still, noisy = (statistics.ceiling(real + rng.normal(0, sd, (40, 4))) for sd in (0.0, 0.5))
    assert still == pytest.approx(1.0)
    assert noisy < 0.6
    assert math.isnan(statistics.ceiling(real))


def test_hypervolume_is_the_dominated_area() -> None:
    assert statistics.hypervolume([0.9, 0.8, 0.4], [2, 1, 1], (0.5, 3)) == pytest.approx(0.7)
    assert statistics.hypervolume([0.4], [1], (0.5, 3)) == 0.0


# --- what is committed ------------------------------------------------------------------------------------------------


def test_the_page_has_the_verdicts_of_the_committed_records() -> None:
    records = report.committed_records()
    assert records
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text()
    assert report.verdict_table(records) in page, (
        "paste the output of python -m hnas.benchmarks.papers.report into the page"
    )
    for name, record in records.items():
        assert not record["quick"], name
        assert record["seeds"] >= printing.FEWEST, name
        assert name.partition("-")[0] == record["claim"] in catalogue.find_claims()


# --- parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Square:
    x: int


def square(images: Path | None, seed: int, setting: Square) -> dict[str, int]:
    if setting.x < 0:
        raise ValueError("x is below 0")
    return {"y": setting.x * setting.x + seed}


def test_a_finished_part_is_not_run_again_and_a_broken_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [part(square, seed, Square(3)) for seed in range(2)]
    StudyParts(tmp_path, None).complete(wanted)
    (tmp_path / f"{wanted[1].name}.json").write_text('{"result": {"y"')
    ran: list[StudyPart] = []
    real = parts.run_part
    monkeypatch.setattr(parts, "run_part", lambda each, *rest: (ran.append(each), real(each, *rest)))
    again = StudyParts(tmp_path, None)
    again.complete(wanted)
    assert ran == [wanted[1]]
    assert [again[each]["y"] for each in wanted] == [9, 10]


def test_another_setting_seed_or_version_is_another_part(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {part(square, 0, Square(3)).name, part(square, 0, Square(4)).name, part(square, 1, Square(3)).name}
    assert part(square, 0, Square(3), work=9.0).name in names
    monkeypatch.setattr(parts, "versions", lambda: {"hnas": "next"})
    assert len({*names, part(square, 0, Square(3)).name}) == 4


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    found = StudyParts(tmp_path, None)
    bad, good = part(square, 0, Square(-1)), part(square, 0, Square(2))
    with pytest.raises(RuntimeError, match="x is below 0; what is finished is kept"):
        found.complete([bad, good])
    assert good in found
    assert bad not in found


@pytest.mark.slow
def test_processes_give_the_results_of_one(tmp_path: Path) -> None:
    wanted = [part(square, seed, Square(3)) for seed in range(3)]
    found = StudyParts(tmp_path, None, workers=2)
    try:
        found.complete(wanted)
        with pytest.raises(RuntimeError, match="x is below 0"):
            found.complete([part(square, 0, Square(-1))])
    finally:
        found.close()
    assert [found[each]["y"] for each in wanted] == [9, 10, 11]


ENDLESS = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from hnas.benchmarks.papers.parts import end_with_parent
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = Path("/proc", parent.stdout.readline().strip())
        assert worker.exists()
        parent.kill()
    end = time.monotonic() + 10
    with suppress(OSError):  # it is gone
        while " Z " not in (worker / "stat").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)


def test_the_estimate_follows_the_pace_of_the_quick_part(tmp_path: Path) -> None:
    found = StudyParts(tmp_path, None)
    quick, full = part(square, 0, Square(1), work=1.0), [part(square, seed, Square(9), work=50.0) for seed in range(4)]
    found.complete([quick])
    file = tmp_path / f"{quick.name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 0.5}))
    found = StudyParts(tmp_path, None, workers=2)
    assert found.estimate(full, [quick]) == pytest.approx(4 * 50 * 0.5 / 2)


# --- counting ---------------------------------------------------------------------------------------------------------


def test_a_pass_with_several_types_counts_as_that_many() -> None:
    space = spaces.load("tabular_digits")()
    single = space.smallest
    several = type(single)(
        {**single, "blocks.0.op": ("identity", "conv1", "dw5", "conv3"), "blocks.1.op": ("conv1", "dw5")}
    )
    assert supernets.count_passes(SubnetPath(single)) == 1
    assert supernets.count_passes(SubnetPath(several)) == (3 + 2 + 1 + 1) / 4
    assert supernets.count_passes(SubnetPath(single, rivals=(space.largest,) * 3)) == 2


def test_the_common_set_is_spread_over_the_costs_and_the_same_each_time() -> None:
    found = supernets.common_members("tabular_digits", {}, 4, 10)
    supernets._common_members.cache_clear()
    assert found == supernets.common_members("tabular_digits", {}, 4, 10)
    sizes = [supernets.costs(spaces.load("tabular_digits")(), arch)["macs"] for arch in found]
    assert sizes == sorted(sizes)
    assert len(set(found)) == 4


def test_the_members_of_a_space_are_enumerated_and_dropped_operations_counted() -> None:
    space = spaces.load("tabular_digits")()
    archs = tabular.all_members(space)
    assert len(set(archs)) == space.size == 625
    rng = np.random.default_rng(0)
    real = {(name, option): rng.random() for name, choice in space.choices.items() for option in choice.options}
    worth = tabular.mean_by_operation(archs, [sum(real[pair] for pair in arch.items()) for arch in archs])
    slot = [key for key in worth if key[0] == "blocks.2.op"]
    assert max(slot, key=lambda key: worth[key]) == max(slot, key=lambda key: real[key])
    best = sorted(worth, key=lambda key: -worth[key])[:3]
    assert tabular.count_lost(space, worth, best, 13) == 0
    assert tabular.count_lost(space, {key: -value for key, value in worth.items()}, best, 13) == 3


# --- studies ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented accuracies, so that the studies need no table and the tests no truth."""
    archs = tabular.all_members(spaces.load("tabular_digits")())
    rng = np.random.default_rng(0)
    macs = np.array([sum(hash(o) % 7 + 1 for o in map(len, map(str, arch.values()))) for arch in archs], float)
    accuracy = 0.8 + 0.01 * macs[:, None] + rng.normal(0, 0.02, (len(archs), 4))
    made = truth.Truth(tuple(archs), accuracy, accuracy - 0.02, macs, macs * 3, macs / 9)
    monkeypatch.setattr(truth, "tabular", lambda: made)


def quick(name: str, folder: Path, *options: str) -> dict[str, Any]:
    assert main([name, "--quick", "--workers", "1", "--out", str(folder), *options]) == 0
    written: dict[str, Any] = json.loads((folder / f"{name}-quick.json").read_text())
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_the_quick_version_runs_and_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the studies read scikit-learn's digits")
    if name == "A1":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("openvino")
    first = quick(name, tmp_path)
    assert first["verdicts"]
    assert {verdict["answer"] for verdict in first["verdicts"]} <= {HOLDS, FAILS, UNSEEN}
    assert first["rule"]
    assert "seeds" in first["scale"]
    shown = capsys.readouterr().out
    assert "its verdicts mean nothing" in " ".join(shown.split())
    monkeypatch.setattr(parts, "run_part", lambda *_: pytest.fail("a finished part was run again"))
    assert quick(name, tmp_path) == first


@pytest.mark.slow
def test_a_shorter_study_trains_only_what_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the studies read scikit-learn's digits")
    found = quick("A3", tmp_path, "--inherited", "--only", "union (V1)", "--only", "set sampling")
    questions = [verdict["question"] for verdict in found["verdicts"]]
    assert questions == [f"union (V1) > set sampling, equal {axis}" for axis in ("steps", "passes")]
    assert [(row[0], row[1]) for table in found["tables"] for row in table["rows"]] == [
        (axis, name) for axis in ("steps", "passes") for name in ("set sampling", "union (V1)")
    ]
    assert "nothing trained alone" in found["scale"]
    assert {name.partition("-")[0] for name in found["parts"]} == {"supernet"}


@pytest.mark.slow
def test_fronts_of_inherited_weights_need_nothing_trained_alone(tmp_path: Path) -> None:
    for module in ("sklearn", "onnxruntime", "openvino"):
        pytest.importorskip(module)
    found = quick("A1", tmp_path, "--inherited")
    assert {verdict["question"].split(":")[0] for verdict in found["verdicts"]} == {
        f"{device}, accuracy inherited" for device in ("openvino-cpu", "onnxruntime-cpu")
    }
    assert {name.partition("-")[0] for name in found["parts"]} == {"fronts", "latencies"}


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert main(["Z9", *out]) == 2
    assert capsys.readouterr().err.startswith("hnas.benchmarks.papers: no study 'Z9'; known: ")
    assert main(["A2", "--data", str(tmp_path / "none"), *out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["A3", "--only", "unoin", *out]) == 2
    assert capsys.readouterr().err.startswith("hnas.benchmarks.papers: no training 'unoin'; known: spos; ")
    assert main(["A4", "--inherited", *out]) == 2
    assert (
        capsys.readouterr().err
        == "hnas.benchmarks.papers: A4 is a comparison with training alone; leave --inherited out\n"
    )
    assert StudyPlan().smallest.quick
