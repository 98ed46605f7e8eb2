"""Test the record of typed files that TensorRT-RTX builds: its rows, its verdicts, and the page that states them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.benchmarks.peers import typed
from hnas.export.backends.tensorrt import rtx as tensorrt_rtx
from hnas.export.backends.tensorrt.rtx import RtxVerdict
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "benchmarks" / "peers" / "results" / "typed.jsonl"


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Replace TensorRT-RTX: it builds for every SM but 75, and finds the precisions of the returned table.

    The typed file is made once.
    """
    precisions: dict[str, str] = {}
    make, made = typed.make_typed, list[Artifact]()

    def make_once(net: Any, precision: str, _: Path) -> Artifact:
        if not made:
            (tmp_path / "made").mkdir()
            made.append(make(net, precision, tmp_path / "made"))
        return made[0]

    def verdict(model: Path, targets: Any) -> RtxVerdict:
        nodes = sorted(typed._node_names(model), key=len)
        refused = {sm: f"no kernel for {nodes[-1]}" for sm in targets if sm == "75"}
        found = dict.fromkeys(nodes, "f16") | precisions
        return RtxVerdict("1.7", "", {sm: 0.5 for sm in targets if sm != "75"}, refused, found)

    monkeypatch.setattr(tensorrt_rtx, "rtx_note", lambda _: {})
    monkeypatch.setattr(typed, "make_typed", make_once)
    monkeypatch.setattr(typed, "missing", lambda: None)
    monkeypatch.setattr(typed, "version", lambda _: "1")
    monkeypatch.setattr(typed, "check_with_rtx", verdict)
    return precisions


def test_a_row_for_each_sm_is_kept_and_not_made_again(
    rtx: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    out = tmp_path / "typed.jsonl"
    words = ["--nets", "tiny", "--precisions", "fp16", "--out", str(out)]
    assert typed.main([*words, "--sm", "86,75"]) == 0
    about, *lines = out.read_text().splitlines()
    assert "with tensorrt-rtx-cu12-bindings 1, torch 1" in json.loads(about)["about"]
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    built, refused = typed.read_rows(out)
    assert (built["sm"], built["built"], built["seconds"], built["refused"], built["node"]) == ("86", True, 0.5, "", "")
    assert (refused["sm"], refused["built"]) == ("75", False)
    assert refused["refused"] == f"no kernel for {refused['node']}"
    assert refused["node"]
    assert built["sqnr_db"] >= 40
    assert (built["above"], built["missing"], built["fp32"]) == ([], [], 0)
    rtx["gelu"] = "f32"  # planted: a layer above fp16
    assert typed.main([*words, "--sm", "86,89"]) == 1
    assert [row["sm"] for row in typed.read_rows(out)] == ["86", "75", "89"]
    capsys.readouterr()
    assert typed.main(["--print", str(out)]) == 0
    line = f"| tiny | fp16 | 86 89 | fp16 SM75 | 1 | 0 | {built['sqnr_db']} |"
    assert capsys.readouterr().out.splitlines()[-1] == line

    def refuse(*_: Any) -> None:
        raise ExportError("fp16 holds none of its values")

    monkeypatch.setattr(typed, "make_typed", refuse)
    (row,) = typed.build_rows("tiny", "int8", ["86"])
    assert "fp16 holds none of its values" in row["refused"]
    assert not typed.passes(row)
    assert typed.table([{**built, "above": []}, row])[-1] == (
        f"| tiny | fp16, int8 | - | int8 SM86 | 0 | 0, - | {built['sqnr_db']}, - |"
    )


def test_a_file_without_a_reason_that_names_a_node_fails() -> None:
    row = {"above": [], "built": False, "node": ""}
    assert not typed.passes(row)
    assert typed.passes({**row, "node": "conv"})
    assert typed.passes({**row, "built": True})
    assert not typed.passes({**row, "built": True, "above": ["conv"]})


def test_a_layer_without_a_reported_precision_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(typed, "_node_names", lambda *_: {"conv", "fc"})
    made = SimpleNamespace(model=tmp_path, notes={typed.TYPES: {"fp32": {}, "int8": ["conv", "mul"]}})
    verdict = RtxVerdict("1.7", "", {"86": 0.5}, {}, {"fc": "f16", "mul": "f16"})
    assert typed.layers_above(made, verdict) == ["mul"]
    assert typed.layers_missing(made, verdict) == ["conv"]
    assert not typed.passes({"above": [], "missing": ["conv"], "built": True})


def test_a_node_is_named_by_a_whole_word() -> None:
    assert tensorrt_rtx.named_in("the address is not mapped", ["add"]) == ""
    assert tensorrt_rtx.named_in("no kernel for /block/add", ["add", "/block/add"]) == "/block/add"
    assert tensorrt_rtx.named_in("no kernel for add.1.", ["add", "add.1", ""]) == "add.1"


def test_where_no_network_can_be_built_the_end_says_so(rtx: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed.export_nets, "missing", lambda _: "timm is not installed")
    assert typed.main(["--nets", "tiny,vit"]) == 3


def test_a_record_is_continued_with_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = tmp_path / "typed.jsonl", ["1"]
    monkeypatch.setattr(typed, "version", lambda _: now[0])
    typed._keep(out, {"sm": "80"})
    typed._keep(out, {"sm": "86"})
    with out.open("a") as file:
        file.write('{"sm": "8')  # planted: a killed run
    now[0] = "2"
    typed._keep(out, {"sm": "89"})
    typed._keep(out, {"sm": "120"})
    assert [row["sm"] for row in typed.read_rows(out)] == ["80", "86", "89", "120"]
    about = [line for line in out.read_text().splitlines() if "about" in line]
    assert ["torch 1," in line for line in about] == [True, False]
    assert "torch 2," in about[1]


def test_without_tensorrt_rtx_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(typed, "missing", lambda: "TensorRT-RTX is not installed")
    with pytest.raises(SystemExit) as ended:
        typed.main(["--nets", "tiny"])
    assert (ended.value.code, capsys.readouterr().err) == (3, "TensorRT-RTX is not installed\n")


def test_the_page_states_the_record() -> None:
    rows = typed.read_rows(RECORD)
    assert rows
    assert all(typed.passes(row) for row in rows)
    assert {row["net"] for row in rows if row["precision"] == "fp16"} == {row["net"] for row in rows}
    assert all(row["sqnr_db"] >= 40 for row in rows if row["precision"] == "fp16")
    page = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    assert "\n".join(typed.table(rows)) in page
