"""The recorded errors of the shipped calibrations, and the methods that a calibration has to beat."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hnas import hw_profiles
from hnas.benchmarks import jetson
from hnas.benchmarks.jetson import __main__ as command
from hnas.benchmarks.jetson import phones, record
from hnas.benchmarks.jetson.baselines import one_factor, uncalibrated
from hnas.benchmarks.jetson.errors import RowPrediction
from hnas.benchmarks.jetson.fitting import fit
from hnas.benchmarks.jetson.report import to_toml
from hnas.benchmarks.peers.nets import mobile, vision
from hnas.cost.roofline import calibrated_ms, latency_ms, trace
from hnas.hw_profiles import calibration
from tests.benchmarks.jetson.test_jetson import SAMPLES, sample

NAMES = (command.NAME, phones.NAME)
PAGE = Path(__file__).parents[3] / "docs" / "devices.md"
RECORDS = Path(jetson.__file__).parent / "records"
FITTED = Path(hw_profiles.__file__).parent / "fitted"
MEND = (
    "fit again: python -m hnas.benchmarks.jetson (or .jetson.phones) TABLE --write hw_profiles/fitted "
    "--record benchmarks/jetson/records"
)


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_every_calibration_has_a_record_and_the_record_is_of_this_file(name: str) -> None:
    assert calibration.names() == tuple(sorted(NAMES))
    assert recorded(name)["sha256"] == sha256((FITTED / f"{name}.toml").read_bytes()).hexdigest(), MEND


def test_the_record_has_the_evidence_of_the_file(name: str) -> None:
    rows = recorded(name)["rows"]
    shipped = calibration.parse(name, (FITTED / f"{name}.toml").read_text(encoding="utf-8"))
    assert shipped.evidence
    for evidence in shipped.evidence:
        place = (evidence.device, evidence.power, evidence.method)
        here = [row for row in rows if (row["device"], row["power"], row["method"]) == place]
        errors = [abs(row["error"]) for row in here]
        assert (len(here), len({row["model"] for row in here})) == (evidence.rows, evidence.models), MEND
        assert (mean(errors), max(errors)) == pytest.approx((evidence.mean, evidence.worst), abs=6e-4), MEND
        assert min(1 / (1 + row["error"]) for row in here) == pytest.approx(evidence.low, abs=1e-3)
        assert max(1 / (1 + row["error"]) for row in here) == pytest.approx(evidence.high, abs=1e-3)


def test_the_page_states_the_errors_of_the_phones() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for device in ("rb3-gen2", "dragonwing-q6690", "snapdragon-7-gen4"):
        found = hw_profiles.load(device)
        shipped = calibration.of(found)
        evidence = None if shipped is None else shipped.evidence_of(found)
        assert evidence is not None
        figures = (f"{100 * each:.1f} %" for each in (evidence.mean, evidence.worst))
        assert f"| {evidence.rows}, {evidence.models} | {' | '.join(figures)}" in page


def test_the_record_holds_no_published_figure(name: str) -> None:
    found = recorded(name)
    assert found["sources"]
    keys = {key for row in found["rows"] for key in row}
    allowed = {"model", "input", "precision", "device", "power", "timing", "attention", "predicted_ms", "error"}
    assert keys <= allowed | {"method", "uncalibrated", "one_factor", "shipped_ms"}


@pytest.mark.parametrize(("model", "make"), [("resnet18", vision.ResNet18), ("mobilenet_v2", mobile.mobilenet_v2)])
def test_the_code_of_today_predicts_what_was_recorded(model: str, make: Callable[[], torch.nn.Module]) -> None:
    """The networks of the benchmarks have the kernels of torchvision's, so a stale fit is seen without it."""
    rows = [row for row in recorded(command.NAME)["rows"] if row["model"] == model]
    assert len(rows) == 6
    with torch.device("meta"):
        net = make()
    for row in rows:
        batch, *shape = row["input"]
        kernels = trace(net, tuple(shape), batch=batch, training=False)
        device = hw_profiles.load(row["device"], row["power"])
        assert latency_ms(kernels, device, row["precision"]) == pytest.approx(row["shipped_ms"], rel=1e-3), MEND


def errors_of(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [abs(row[key]) for row in rows]


def test_the_rows_of_orin_are_predicted_within_the_limits() -> None:
    """Networks that were left out of the fit: the limits that were set for this calibration."""
    rows = [row for row in recorded(command.NAME)["rows"] if row["method"] == "leave-one-model-out"]
    convolutional = [row for row in rows if not row["attention"]]
    assert 0 < len(convolutional) < len(rows)
    assert mean(errors_of(convolutional, "error")) <= 0.12
    assert max(errors_of(convolutional, "error")) <= 0.26
    assert mean(errors_of(rows, "error")) <= 0.15
    assert max(errors_of(rows, "error")) <= 0.40


@pytest.mark.parametrize("measure", [mean, max])
def test_the_rows_of_orin_are_predicted_better_than_without_a_fit(measure: Callable[[list[float]], float]) -> None:
    rows = [row for row in recorded(command.NAME)["rows"] if row["method"] == "leave-one-model-out"]
    for part in (rows, [row for row in rows if not row["attention"]]):
        own, plain, factor = (measure(errors_of(part, key)) for key in ("error", "uncalibrated", "one_factor"))
        assert own < factor
        assert own < plain


# --- the page ---------------------------------------------------------------------------------------------------------

# A line of the table of errors -> which rows it is about, and which of their errors.
NANO, PIPELINE = ("jetson-orin-nano", "MAXN_SUPER", "GPU only"), "whole pipeline"
LINES: dict[str, tuple[tuple[str, str, str], str, str]] = {
    "Orin Nano, GPU only, convolutional networks, left out": (NANO, "convolutional", "error"),
    "the same with ViT-B/16, left out": (NANO, "all", "error"),
    "the two groups uncalibrated": (NANO, "convolutional all", "uncalibrated"),
    "the two groups with one factor for each precision, left out": (NANO, "convolutional all", "one_factor"),
    "Orin Nano, whole pipeline: YOLO11 n to x": (("jetson-orin-nano", "MAXN_SUPER", PIPELINE), "all", "error"),
    "Orin NX, whole pipeline: YOLO11 n to x": (("jetson-orin-nx", "MAXN", PIPELINE), "all", "error"),
    "AGX Orin, whole pipeline: YOLO11 n to x": (("jetson-agx-orin", "MAXN", PIPELINE), "all", "error"),
    "AGX Orin, with transfers: EfficientViT B1 to B3; power mode not stated": (
        ("jetson-agx-orin", "MAXN", "with transfers"),
        "all",
        "error",
    ),
}


def lines_of_the_page() -> dict[str, str]:
    """Return the lines of the first table of errors of the page: first cell -> line."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    assert "| rows | n, networks | mean error | worst |" in lines
    next(lines)
    return {line.split(" | ")[0].removeprefix("| "): line for line in takewhile(lambda line: line[:1] == "|", lines)}


def percent(share: float) -> str:
    """Return a share with one decimal. The record has four digits, and a half is rounded up."""
    return f"{int(1000 * share + 0.5 + 1e-9) / 10:.1f} %"


def test_the_page_has_no_line_of_orin_that_no_test_computes() -> None:
    rows = recorded(command.NAME)["rows"]
    assert set(lines_of_the_page()) == set(LINES)
    assert {(row["device"], row["power"], row["timing"]) for row in rows} == {place for place, _, _ in LINES.values()}


@pytest.mark.parametrize("label", LINES)
def test_the_page_states_the_recorded_errors_of_orin(label: str) -> None:
    place, groups, key = LINES[label]
    rows = [row for row in recorded(command.NAME)["rows"] if (row["device"], row["power"], row["timing"]) == place]
    parts = [[row for row in rows if group == "all" or not row["attention"]] for group in groups.split()]
    counts = [f"{len(part)}, {len({row['model'] for row in part})}" for part in parts]
    means, worst = ([percent(f(errors_of(part, key))) for part in parts] for f in (mean, max))
    cells = [label, *(" and ".join(dict.fromkeys(cell)) for cell in (counts, means, worst))]
    assert lines_of_the_page()[label] == f"| {' | '.join(cells)} |", MEND


# --- the methods to beat ----------------------------------------------------------------------------------------------


def test_the_uncalibrated_prediction_is_that_of_the_data_sheet() -> None:
    found = uncalibrated(SAMPLES)
    assert [each.sample for each in found] == SAMPLES
    for each in found:
        row = each.sample.row
        assert each.ms == calibrated_ms(each.sample.kernels, each.sample.device, row.precision, None)


def test_one_factor_is_learned_from_the_other_networks() -> None:
    factors = {"fp32": 3.0, "fp16": 2.0, "int8": 0.5}
    slow = [
        replace(each.sample, row=replace(each.sample.row, latency_ms=each.gpu_ms * factors[each.sample.row.precision]))
        for each in uncalibrated(SAMPLES)
    ]
    assert [each.error for each in one_factor(slow)] == pytest.approx([0.0] * len(slow))
    odd = slow[0]
    slow[0] = replace(odd, row=replace(odd.row, latency_ms=100 * odd.row.latency_ms))
    found = one_factor(slow)
    assert found[0].error == pytest.approx(-0.99)  # its own row is not used for it
    assert found[1].error == pytest.approx(0.0)  # nor for another precision
    (alone,) = one_factor(slow[:1])
    assert alone.ms == uncalibrated(slow[:1])[0].ms


def test_the_tables_compare_with_the_methods_to_beat() -> None:
    lines = "\n".join(command._tables([RowPrediction(each, each.row.latency_ms) for each in SAMPLES], []))
    for method in ("leave-one-model-out", "uncalibrated", "one factor per precision, leave-one-model-out"):
        for rows in ("convolutional networks", "with transformers"):
            assert f"\n{method}, {rows}: 12 rows of 4 networks, mean error " in lines


def test_a_record_is_written_beside_the_fit(tmp_path: Path) -> None:
    left = [RowPrediction(each, 1.1 * each.row.latency_ms) for each in SAMPLES]
    held = [RowPrediction(sample("mixed", "fp16", "whole pipeline"), 1.0)]
    text = to_toml("# mine", fit(SAMPLES, "mine", "today"), left, held)
    record.write(SimpleNamespace(write=tmp_path, record=tmp_path), "mine", text, left, held)
    found = json.loads((tmp_path / "mine.json").read_text())
    assert (tmp_path / "mine.toml").read_text() == text
    assert (found["sha256"], found["sources"]) == (sha256(text.encode()).hexdigest(), ["somebody"])
    assert [row["error"] for row in found["rows"][:-1]] == [0.1] * len(SAMPLES)
    plain = uncalibrated(SAMPLES)
    assert [row["uncalibrated"] for row in found["rows"][:-1]] == [round(each.error, 4) for each in plain]
    assert found["rows"][-1]["method"] == "held out"
    record.write(SimpleNamespace(write=None, record=None), "none", text, left, held)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.toml"]
