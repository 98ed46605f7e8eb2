"""The sweep over foreign networks: it runs at its smallest, continues, tells failures apart, and its page holds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from hnas.benchmarks.zoo import architectures, command, table
from hnas.benchmarks.zoo.jobs import ZooJob, run_job
from hnas.benchmarks.zoo.results_file import ResultsFile
from hnas.export.device.errors import ExportError
from tests.conftest import need

PAGE = Path(__file__).parents[3] / "docs" / "coverage.md"
JOB = ZooJob("timm.resnet18", "openvino", "fp32")


def result(net="timm.resnet18", backend="openvino", precision="fp32", outcome="right", **more):
    return {"net": net, "backend": backend, "precision": precision, "outcome": outcome, "seconds": 1.0, **more}


def test_two_tiny_networks_are_compiled_and_a_second_run_repeats_nothing(tmp_path, capsys):
    from hnas.export import backends

    need("openvino", backends.load("openvino").missing())
    arguments = [
        "--quick",
        "--out",
        str(tmp_path / "zoo.jsonl"),
        "--backends",
        "openvino",
        "--only",
        "torch.conv*",
        "--json",
    ]
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [(each["net"], each["precision"], each["outcome"]) for each in found] == [
        ("torch.convolutions", "fp32", "right"),
        ("torch.convolutions", "int8", "right"),
    ]
    assert found[0]["sqnr_db"] > 90 > found[1]["sqnr_db"]
    assert command.main(arguments) == 0
    assert "torch.convolutions" not in capsys.readouterr().err


def _crash(job):
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(job):
    while True:
        pass


def _refuse(job):
    raise ExportError("openvino refuses aten.cdist in head; supported by onnxruntime")


def _bug(job):
    return {"sqnr_db": [][len(job.net)]}


@pytest.mark.parametrize(
    ("work", "outcome", "kind"),
    [
        (_crash, "crashed", "crashed: the process died: SIGSEGV"),
        (_hang, "timeout", "timeout: not finished in N s"),
        (_refuse, "refused", "openvino refuses aten.cdist"),
        (_bug, "traceback", "traceback: IndexError: list index out of range"),
    ],
)
def test_every_end_of_a_job_is_a_record(work, outcome, kind):
    record = run_job(JOB, seconds=1 if work is _hang else 300, work=work)
    assert (record["outcome"], table.kind_of(record)) == (outcome, kind)
    assert ZooJob(record["net"], record["backend"], record["precision"]) == JOB


def test_failures_of_one_kind_are_counted_together():
    lines = [
        "openvino refuses aten.index.Tensor in layers.1; supported by tflite (openvino cannot compile A to fp32: x)",
        "openvino refuses aten.index.Tensor in blocks.3.attn and 2 more; supported by tflite (no rule)",
        "openvino cannot compile ResNet to fp32: RuntimeError: got [1, 2] at 0x123",
        "openvino cannot compile VGG to fp32: RuntimeError: got [3] at 0x456",
        "tflite does not compute what VGG does: fp32 fails on 5 samples: SQNR 12.5 dB",
    ]
    found = table.failures([result(outcome="refused", line=line) for line in lines])
    assert [len(those) for _, those in found] == [2, 2, 1]


def test_the_last_result_counts_and_half_a_line_is_skipped(tmp_path):
    path = tmp_path / "zoo.jsonl"
    results = ResultsFile(path)
    results.add(result(outcome="refused", line="no"))
    results.add(result())
    with path.open("a") as file:
        file.write('{"net": "timm.res')
    again = ResultsFile(path)
    assert [each["outcome"] for each in again.records] == ["right"]
    assert again.get(JOB) is not None


def test_the_table_has_totals_families_and_kinds():
    two = ("timm.mobilenetv3_small_050", "torchvision.mobilenet_v2")
    records = [result(), result(two[0], outcome="refused", line="a | b"), result(two[1])]
    rendered = table.render(records)
    assert "3 architectures of 2 families." in rendered
    assert "| **all** |  | 2 of 3 (67%) |" in rendered
    assert "| MobileNet |  | 1 of 2 |" in rendered
    assert f"| 1 | a / b | {two[0]} |" in rendered


def test_the_list_is_broad():
    names = architectures.names()
    assert len(names) >= 70
    assert len({architectures.find(name).family for name in names}) >= 25
    assert {architectures.find(name).library for name in names} == {"timm", "torchvision", "transformers"}
    with pytest.raises(ValueError, match="no architecture 'vgg'; known: timm"):
        architectures.find("vgg")


def test_an_unknown_backend_is_a_usage_error_and_a_page_needs_marks(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--backends", "tensort"])
    (tmp_path / "page.md").write_text("# Page\n")
    with pytest.raises(ValueError, match="has no lines <!-- zoo -->"):
        command.write_page(tmp_path / "page.md", [result()], "")


def test_the_page_shows_the_recorded_results(tmp_path):
    copy = tmp_path / "coverage.md"
    copy.write_text(PAGE.read_text("utf-8"), "utf-8")
    recorded = ResultsFile(command.RECORDED)
    command.write_page(copy, recorded.records, recorded.about)
    assert copy.read_text("utf-8") == PAGE.read_text("utf-8")
