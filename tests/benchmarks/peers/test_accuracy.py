"""Test the comparison of int8 at several settings of the peers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas import export
from hnas.benchmarks.peers import accuracy, command
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.cases import Case
from hnas.benchmarks.peers.nets import photographs
from hnas.benchmarks.peers.tools import PEERS, TUNED
from hnas.export import backends
from hnas.export.device.artifact import Artifact
from tests.conftest import need


def test_scores_are_decibels_and_the_share_of_equal_answers() -> None:
    want = [(np.array([[1.0, 0.0]]),), (np.array([[0.0, 1.0]]),)]
    wrong = [(np.array([[1.0, 0.0]]),), (np.array([[0.1, 0.0]]),)]
    assert accuracy.scores(want, want)["agreement"] == 1.0
    assert accuracy.scores(want, wrong) == {"sqnr_db": 3.0, "agreement": 0.5, "worst_db": 0.9}


def test_tuned_settings_belong_to_peers() -> None:
    assert set(TUNED) <= {name for peers in PEERS.values() for name in peers}


def test_ours_is_a_row_that_is_kept_and_not_made_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    need("openvino", backends.load("openvino").missing())
    arguments = ["--nets", "tiny", "--backends", "openvino", "--only-ours", "--samples", "8", "--recover", "none"]
    out = tmp_path / "rows.jsonl"
    accuracy.main([*arguments, "--out", str(out)])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["net"], row["maker"], row["edits"]) == ("tiny", "ours, none", [])
    assert row["sqnr_db"] > 20
    assert json.loads(out.read_text()) == row
    accuracy.main([*arguments, "--out", str(out)])
    assert capsys.readouterr().out == ""


def test_the_evidence_is_unseen_and_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    net = export_nets.load("tiny")
    unseen = {part[0].tobytes() for part in net.evidence}
    seen: list[bytes] = []

    def look(module: object, examples: Any, **options: Any) -> Artifact:
        seen.extend(part.numpy().tobytes() for part in examples)
        seen.extend(part[0].tobytes() for part in options["calibration"])
        raise ValueError("seen enough")

    def tool(source: Path, samples: Any, model: Path) -> None:
        seen.extend(part[0].tobytes() for part in samples)

    monkeypatch.setattr(export, "compile", look)
    monkeypatch.setitem(PEERS["openvino"], "ov+nncf", replace(PEERS["openvino"]["ov+nncf"], quantise=tool, needs=()))
    monkeypatch.setattr(accuracy, "TUNED", {})
    assert len(list(accuracy.compare(net, Case("tiny", "openvino", "int8")))) == 2
    assert seen
    assert not unseen & set(seen)


def test_nets_whose_packages_are_missing_are_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    assert export_nets.missing("resnet18") is None
    accuracy.main(["--nets", "timm_resnet50"])
    line = "timm_resnet50 is left out: timm, skimage, sklearn not installed"
    assert capsys.readouterr().out.strip() == line
    command.main(["--nets", "timm_resnet50", "--phase", "build", "--out", str(tmp_path)])
    assert line in capsys.readouterr().err
