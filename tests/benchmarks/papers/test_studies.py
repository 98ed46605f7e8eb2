"""Studies run end to end at their smallest and continue where they stopped; the page has the committed verdicts."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas import spaces
from hnas.benchmarks.papers import catalogue, parts, printing, report, searches, supernets, tabular, truth
from hnas.benchmarks.papers.__main__ import main
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, UNSEEN
from hnas.training.step import SubnetPath

FOUND = catalogue.find_claims()
ROOT = Path(__file__).parents[3]


# --- the committed records --------------------------------------------------------------------------------------------


def test_the_page_has_the_verdicts_of_the_committed_records() -> None:
    records = report.committed_records()
    assert records
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert report.verdict_table(records) in page, (
        "paste the output of python -m hnas.benchmarks.papers.report into the page"
    )
    for name, record in records.items():
        assert not record["quick"], name
        assert record["seeds"] >= printing.FEWEST, name
        assert name.partition("-")[0] == record["claim"] in catalogue.find_claims()


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
    assert supernets.count_passes(SubnetPath(several, trains=False)) == pytest.approx(7 / 12)


def test_types_without_weights_do_not_count_and_one_alone_is_a_pass() -> None:
    cells = spaces.load("nasbench201")(nodes=3)
    every = type(cells.smallest)({name: choice.options for name, choice in cells.choices.items()})
    assert supernets.count_passes(SubnetPath(every)) == 3, "none and skip_connect are free"
    assert supernets.count_passes(SubnetPath(cells.smallest)) == 1


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
    """Replace the shipped tables by invented accuracies, on which the tests do not depend."""
    monkeypatch.setattr(truth, "tabular", lambda: invented("tabular_digits"))
    monkeypatch.setattr(truth, "cells", lambda: invented("cells"))


@lru_cache(2)
def invented(name: str) -> truth.Truth:
    archs = tabular.all_members(searches.TABLES[name].whole)
    rng = np.random.default_rng(0)
    macs = np.array([sum(hash(o) % 7 + 1 for o in map(len, map(str, arch.values()))) for arch in archs], float)
    accuracy = 0.8 + 0.01 * macs[:, None] + rng.normal(0, 0.02, (len(archs), 4))
    return truth.Truth(tuple(archs), accuracy, accuracy - 0.02, macs, macs * 3, macs / 9)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the studies C and E, some of which share their parts."""
    return tmp_path_factory.mktemp("family")


def quick(name: str, folder: Path, *options: str) -> dict[str, Any]:
    assert main([name, "--quick", "--workers", "1", "--out", str(folder), *options]) == 0
    written: dict[str, Any] = json.loads((folder / f"{name}-quick.json").read_text())
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_the_quick_version_runs_and_goes_on(
    name: str, tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the studies read scikit-learn's digits")
    if name in ("A1", "C6"):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("openvino")
    if name in ("C6", "E6"):
        pytest.importorskip("ai_edge_litert")
    folder = family if name.startswith(("C", "E")) else tmp_path
    first = quick(name, folder)
    assert first["verdicts"]
    assert {verdict["answer"] for verdict in first["verdicts"]} <= {HOLDS, FAILS, UNSEEN}
    assert first["rule"]
    assert "seeds" in first["scale"]
    shown = capsys.readouterr().out
    assert "its verdicts mean nothing" in " ".join(shown.split())
    monkeypatch.setattr(parts, "run_part", lambda *_: pytest.fail("a finished part was run again"))
    assert quick(name, folder) == first


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
    assert {name.partition("-")[0] for name in found["parts"]} == {"fronts", "subnet_latencies"}


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
