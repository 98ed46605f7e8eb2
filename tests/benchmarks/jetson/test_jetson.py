"""Published latencies of Jetsons: reading, fitting, leaving a network out, and the file that is shipped."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from hnas import hw_profiles
from hnas.benchmarks.jetson import __main__ as command
from hnas.benchmarks.jetson import phones
from hnas.benchmarks.jetson.errors import RowPrediction, evidence_of, hold_out, summary
from hnas.benchmarks.jetson.fitting import PRIOR, Sample, fit, leave_one_model_out
from hnas.benchmarks.jetson.report import to_toml
from hnas.benchmarks.jetson.rows import Row, read_jetson
from hnas.cost.kernels import Kernel
from hnas.cost.roofline import calibrated_ms
from hnas.hw_profiles import calibration

NANO = hw_profiles.load("jetson", "MAXN_SUPER")
HEAD = "device,power_mode,jetpack_trt,model,resolution,precision,batch,value,unit,source,note\n"
NOTES = {
    "GPU only": '"trtexec --noDataTransfers, mean GPU compute ms"',
    "with transfers": "trtexec; data transfer included",
    "whole pipeline": '"python pipeline; ms/im"',
}
TRUE = replace(fit([]), compute={"fp32": 0.4, "fp16": 0.55, "int8": 0.6}, bandwidth=0.7, launch_us=6.0)
NETWORKS = {
    "compute": [Kernel("convolution", 2 * 10**9, 10**5)] * 8,
    "memory": [Kernel("convolution", 10**6, 10**7)] * 8,
    "launch": [Kernel("convolution", 10**5, 10**3)] * 100,
    "mixed": [Kernel("convolution", 10**8, 10**6), Kernel("cat", 0, 10**6, "reformat")] * 20,
}


def sample(model: str, precision: str, timing: str = "GPU only", device: hw_profiles.Device = NANO) -> Sample:
    found = NETWORKS[model]
    ms = calibrated_ms(found, device, precision, TRUE)
    ms += 2.0 if timing == "whole pipeline" else 0.0
    row = Row("a device", device.name, device.power, model, (224, 224), precision, 1, timing, ms, "somebody")
    return Sample(row, device, found)


SAMPLES = [sample(model, precision) for model in NETWORKS for precision in ("fp32", "fp16", "int8")]


def table(path: Path, *lines: str) -> Path:
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return path


def test_a_row_keeps_its_kind_of_timing_its_profile_and_its_power_mode(tmp_path: Path) -> None:
    lines = [
        f"Jetson Orin Nano 8GB,MAXN_SUPER,TRT 10.3,resnet18,224,fp16,8,3.5,ms,a/b@1 x.md,{NOTES['GPU only']}",
        f"Jetson AGX Orin,not stated,,seg_b0,1024x2048,fp16,1,9.9,ms,c/d@2 y.md,{NOTES['with transfers']}",
        f"Jetson Orin NX 16GB,MAXN/max,,yolo11n,640,int8,1,4.4,ms,e/f@3 z.md,{NOTES['whole pipeline']}",
        "Jetson Nano (Maxwell),not stated,,b1,224,fp16,1,25,ms,c/d@2 y.md,something else",
    ]
    rows = read_jetson(table(tmp_path / "t.csv", *lines))
    assert [row.timing for row in rows] == ["GPU only", "with transfers", "whole pipeline", ""]
    assert [(row.profile, row.power) for row in rows] == [
        ("jetson-orin-nano", "MAXN_SUPER"),
        ("jetson-agx-orin", "MAXN"),
        ("jetson-orin-nx", "MAXN"),
        ("", ""),
    ]
    assert (rows[1].resolution, rows[0].batch, rows[0].latency_ms, rows[0].source) == ((1024, 2048), 8, 3.5, "a/b")


@pytest.mark.parametrize("text", ["a,b\n1,2\n", HEAD + "d,p,j,m,tall,fp16,1,2,ms,s,n\n"])
def test_another_table_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        command.main([str(path)])
    assert caught.value.code == 2
    assert "is no table of Jetson latencies" in capsys.readouterr().err


def test_a_missing_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nowhere.csv"])
    assert "no table at nowhere.csv" in capsys.readouterr().err


def test_the_fit_finds_the_efficiencies_that_made_the_rows() -> None:
    found = fit(SAMPLES)
    for precision, share in TRUE.compute.items():
        assert found.compute[precision] == pytest.approx(share, rel=0.05)
    assert found.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.05)
    assert found.launch_us == pytest.approx(TRUE.launch_us, rel=0.05)
    assert found.kinds == ("dense", "reformat")


def test_what_no_row_determines_stays_where_it_was_expected() -> None:
    found = fit(SAMPLES)
    assert found.depthwise == pytest.approx(PRIOR["depthwise"][0])
    assert found.elementwise == pytest.approx(PRIOR["elementwise"][0])
    assert fit([]).launch_us == pytest.approx(PRIOR["launch_us"][0])


def test_a_network_is_predicted_without_its_own_rows() -> None:
    spoilt = [
        replace(each, row=replace(each.row, latency_ms=each.row.latency_ms * (9 if each.row.model == "launch" else 1)))
        for each in SAMPLES
    ]
    left = {(s.row.model, s.row.precision): value for s, value in leave_one_model_out(spoilt)}
    assert len(left) == len(SAMPLES)
    for each in SAMPLES:
        if each.row.model == "launch":  # its wrong rows were not used to predict it
            assert left["launch", each.row.precision] < 2 * each.row.latency_ms


def test_a_pipeline_gets_the_constant_of_the_other_networks_and_a_transfer_its_copy() -> None:
    held = hold_out([sample(model, "fp16", "whole pipeline") for model in NETWORKS], TRUE)
    assert [each.added_ms for each in held] == pytest.approx([2.0] * len(NETWORKS))
    assert max(abs(each.error) for each in held) < 1e-9
    (copied,) = hold_out([sample("memory", "fp16", "with transfers")], TRUE)
    assert copied.added_ms == pytest.approx(2e-6 * 4 * 3 * 224 * 224 / NANO.bandwidth)


def test_the_lines_name_tf32_error_and_worst_row() -> None:
    wrong = RowPrediction(SAMPLES[0], 1.25 * SAMPLES[0].row.latency_ms)
    right = RowPrediction(SAMPLES[1], SAMPLES[1].row.latency_ms)
    assert "fp32 TF32" in str(wrong)
    assert "+25.0%" in str(wrong)
    assert summary("all", [wrong, right]) == (
        "all: 2 rows of 1 networks, mean error 12.5%, worst 25.0% (compute @224 batch 1 fp32)"
    )
    (found,) = evidence_of([wrong, right], "held out")
    assert (found.rows, found.models, found.mean, found.worst) == (2, 1, 0.125, 0.25)
    assert (found.low, found.high) == (pytest.approx(0.8), 1.0)


def test_the_written_file_is_read_again() -> None:
    left = [RowPrediction(each, each.row.latency_ms) for each in SAMPLES]
    other = sample("mixed", "fp16", "whole pipeline", hw_profiles.load("jetson-orin-nx"))
    text = to_toml("# mine", fit(SAMPLES, "mine", "today on 12 rows"), left, hold_out([other], TRUE))
    found = calibration.parse("mine", text)
    assert found.fitted == "today on 12 rows"
    assert [(each.device, each.method) for each in found.evidence] == [
        ("jetson-orin-nano", "leave-one-model-out"),
        ("jetson-orin-nx", "held out"),
    ]


def test_rows_without_profile_network_or_timing_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "kernels_of", lambda model, *_: "not there" if model == "lost" else NETWORKS["mixed"])
    row = SAMPLES[0].row
    rows = [row, replace(row, profile=""), replace(row, timing=""), replace(row, model="lost")]
    samples, left_out = command.rebuild(rows)
    assert [each.row for each in samples] == [row]
    assert dict(left_out) == {
        "no profile of a device": 1,
        "the kind of timing is not stated": 1,
        "lost: not there": 1,
    }


def test_the_jetsons_are_fitted_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "kernels_of", lambda model, *_: NETWORKS.get(model, "not there"))
    lines = [
        f"Jetson Orin Nano 8GB,MAXN_SUPER,,{r.model},224,{r.precision},1,{r.latency_ms},ms,a/b@1,{NOTES['GPU only']}"
        for r in (each.row for each in SAMPLES)
    ]
    lines.append(f"Jetson AGX Orin,not stated,,mixed,224,fp16,1,1e9,ms,c/d@2,{NOTES['with transfers']}")
    lines.append(f"Jetson AGX Orin,not stated,,lost,224,fp16,1,1,ms,c/d@2,{NOTES['with transfers']}")
    folder = str(tmp_path)
    assert command.main([str(table(tmp_path / "t.csv", *lines)), "--write", folder, "--record", folder]) == 0
    said = capsys.readouterr().out
    assert "\nleave-one-model-out, with transformers: 12 rows of 4 networks, mean error " in said
    assert "\nheld out, jetson-agx-orin MAXN, with transfers: 1 rows of 1 networks, mean error 100.0%" in said
    assert said.endswith("\nrows left out: 1\n  1 x lost: not there\n")
    found = calibration.parse("again", (tmp_path / f"{command.NAME}.toml").read_text())
    # the slow row of the other device would spoil this fit
    assert found.compute == pytest.approx(TRUE.compute, rel=0.05)
    assert (found.bandwidth, found.launch_us) == pytest.approx((TRUE.bandwidth, TRUE.launch_us), rel=0.05)
    assert found.fitted.endswith(" on 12 rows of a/b")
    assert [(each.device, each.method, each.rows) for each in found.evidence] == [
        ("jetson-orin-nano", "leave-one-model-out", 12),
        ("jetson-agx-orin", "held out", 1),
    ]
    rows = json.loads((tmp_path / f"{command.NAME}.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["leave-one-model-out"] * 12 + ["held out"]


def test_one_network_cannot_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "kernels_of", lambda *_: NETWORKS["mixed"])
    line = f"Jetson Orin Nano 8GB,MAXN_SUPER,,mixed,224,fp16,1,2,ms,a/b@1,{NOTES['GPU only']}"
    with pytest.raises(SystemExit):
        command.main([str(table(tmp_path / "t.csv", line, line))])
    assert "has fewer than two networks with the time of the GPU alone that can be rebuilt" in capsys.readouterr().err


AI_HUB = "model,component,precision,device,runtime,status,latency_ms,peak_mem_mb_max,primary_unit,layers,npu,gpu,cpu\n"
BOARD = "Dragonwing RB3 Gen 2 Vision Kit"


def ai_hub(path: Path, *rows: tuple[str, str, str, str, str, str]) -> Path:
    """A table of rows of (model, precision, device, runtime, latency, unit)."""
    lines = [f"{m},A,{p},{d},{r},Passed,{ms},9,{unit},5,,,5" for m, p, d, r, ms, unit in rows]
    path.write_bytes(gzip.compress((AI_HUB + "\n".join(lines) + "\n").encode()))
    return path


def test_only_rows_of_the_cpu_of_a_known_board_in_int8_are_compared(tmp_path: Path) -> None:
    table = ai_hub(
        tmp_path / "t.csv.gz",
        ("resnet18", "w8a8", BOARD, "onnx", "13.7", "CPU"),
        ("resnet18", "w8a8", BOARD, "onnx", "1.7", "NPU"),
        ("resnet18", "w8a8", "Some Phone", "onnx", "8.5", "CPU"),
        ("resnet18", "float", BOARD, "tflite", "30", "CPU"),
        ("yolov7", "w8a8", BOARD, "onnx", "80", "CPU"),
        ("resnet_3d", "w8a8", BOARD, "onnx", "280", "CPU"),
        ("resnet18", "w8a8", "Snapdragon 7 Gen 4 QRD", "onnx", "8.6", "CPU"),
    )
    rows, left_out = phones.read_phones(table)
    assert [(row.model, row.profile, row.precision, row.latency_ms) for row in rows] == [
        ("resnet18", "rb3-gen2", "int8", 13.7),
        ("resnet18", "snapdragon-7-gen4", "int8", 8.6),
    ]
    assert dict(left_out) == {
        "runs on NPU, for which there is no backend": 1,
        "CPU of a device without a profile": 1,
        "CPU, but tflite float instead of onnx w8a8": 1,
        "not a convolutional network of torchvision or timm": 1,
        "the size of the input is not known": 1,
    }


def test_the_phones_are_fitted_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phones, "kernels_of", lambda *_: NETWORKS["mixed"])
    rows = [(model, "w8a8", BOARD, "onnx", "10", "CPU") for model in ("resnet18", "resnet50")]
    rows.append(("resnet18", "w8a8", "Snapdragon 7 Gen 4 QRD", "onnx", "1e9", "CPU"))
    assert phones.main([str(ai_hub(tmp_path / "t.csv.gz", *rows)), "--write", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    # the slow row of the other device would spoil this fit
    assert re.search(r"\nleave-one-model-out: 2 rows of 2 networks, mean error \d\.\d%", said)
    assert "\nheld out, snapdragon-7-gen4: 1 rows of 1 networks, mean error 100.0%" in said
    assert "share of the peak: int8" in said
    found = calibration.parse("again", (tmp_path / f"{phones.NAME}.toml").read_text())
    assert set(found.compute) == {"int8"}  # the others are the prior's and no row supports them
    assert [(each.device, each.method, each.timing) for each in found.evidence] == [
        ("rb3-gen2", "leave-one-model-out", "inference only"),
        ("snapdragon-7-gen4", "held out", "inference only"),
    ]


def test_another_table_of_phones_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        phones.main([str(path)])
    assert "is no table of AI Hub" in capsys.readouterr().err


def test_the_page_states_the_errors_of_the_shipped_file() -> None:
    shipped = calibration.of(NANO)
    assert shipped is not None
    evidence = shipped.evidence_of(NANO)
    assert evidence is not None
    page = (Path(__file__).parents[3] / "docs" / "devices.md").read_text(encoding="utf-8")
    mean, worst = (f"{100 * value:.1f} %" for value in (evidence.mean, evidence.worst))
    assert f"| {evidence.rows}, {evidence.models} | {mean} | {worst} |" in page


@pytest.mark.skipif(not find_spec("torchvision") or not find_spec("timm"), reason="needs torchvision and timm")
@pytest.mark.skipif("HNAS_TABLES" not in os.environ, reason="HNAS_TABLES names no folder of public tables")
def test_the_shipped_efficiencies_keep_their_promise(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = Path(os.environ["HNAS_TABLES"], "jetson.csv")
    if not path.is_file():
        pytest.skip(f"no table at {path}")
    assert command.main([str(path), "--write", str(tmp_path)]) == 0
    assert "rows left out: " in capsys.readouterr().out
    found = calibration.parse("again", (tmp_path / f"{command.NAME}.toml").read_text())
    shipped = calibration.of(NANO)
    assert shipped is not None
    assert found.launch_us == pytest.approx(shipped.launch_us, rel=0.02)
    (evidence,) = [each for each in found.evidence if each.method == "leave-one-model-out"]
    assert evidence.mean <= 0.08
    assert evidence.worst <= 0.23
