"""The record of measured latencies: it is read, continued, and predicted by kernels far better than without."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from hnas.benchmarks.costs import predicted
from hnas.deployment.source import open_source
from hnas.journal import read_entries

LITERT = "tflite-cpu fp32"


@pytest.fixture(scope="module")
def source():
    return open_source(None, None)


@pytest.fixture(scope="module")
def recorded(source):
    with resources.as_file(resources.files("hnas.benchmarks") / "costs/results/predicted.jsonl") as file:
        return predicted.read(source.supernet.space, read_entries(file), LITERT)


def test_kernels_predict_the_recorded_latencies(source, recorded, monkeypatch):
    monkeypatch.setattr(predicted, "_SIZES", (16,))
    monkeypatch.setattr(predicted, "_DRAWS", 2)
    lines = list(predicted.table(source, recorded))
    ours, alone = (float(cell) for cell in lines[2].split("|")[3:5])
    assert ours < 0.1
    assert alone > 4 * ours
    assert "depthwise 7 17" in lines[-1]


def test_measured_subnets_are_not_measured_again(source, recorded, monkeypatch, tmp_path, capsys):
    asked = []

    class Counted:
        def __init__(self, *_, **__):
            pass

        def __call__(self, arch):
            asked.append(arch)
            return type("Price", (), {"value": 0.5})

        def close(self):
            pass

    monkeypatch.setattr(predicted, "MeasuredLatency", Counted)
    monkeypatch.setattr(predicted, "_DRAWS", 1)
    arguments = ["--subnets", "12", "--out", str(tmp_path / "runs" / "x.jsonl")]
    assert predicted.main(arguments) == 0
    assert len(asked) == len(set(asked)) == 12
    first = asked[0]
    options = [first.get(name) for name in source.supernet.space.choices]
    assert read_entries(tmp_path / "runs" / "x.jsonl")[f"{LITERT} {json.dumps(options)}"] == 0.5
    with (tmp_path / "runs" / "x.jsonl").open("a") as file:
        file.write('["cut')
    assert predicted.main(arguments) == 0
    assert len(asked) == 12
    assert "nan" not in capsys.readouterr().out
    assert predicted.main(["--target", "openvino-cpu", *arguments]) == 0
    assert predicted.main(["--target", "openvino-cpu", *arguments]) == 0
    assert len(asked) == 24
