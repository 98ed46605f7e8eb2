"""Test the comparison of int8 at several settings of the peers."""

import json
from pathlib import Path

import numpy as np
import pytest

from hnas.benchmarks.peers import accuracy, command
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.nets import photographs
from hnas.benchmarks.peers.tools import PEERS, TUNED
from hnas.export import backends
from tests.conftest import need


def test_scores_are_decibels_and_the_share_of_equal_answers() -> None:
    want = [(np.array([[1.0, 0.0]]),), (np.array([[0.0, 1.0]]),)]
    wrong = [(np.array([[1.0, 0.0]]),), (np.array([[0.1, 0.0]]),)]
    assert accuracy.scores(want, want)["agreement"] == 1.0
    assert accuracy.scores(want, wrong) == {"sqnr_db": 3.0, "agreement": 0.5}


def test_tuned_settings_belong_to_peers() -> None:
    assert set(TUNED) <= {name for peers in PEERS.values() for name in peers}


def test_ours_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    need("openvino", backends.load("openvino").missing())
    accuracy.main(["--nets", "tiny", "--backends", "openvino", "--only-ours", "--samples", "8", "--recover", "none"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["net"], row["maker"]) == ("tiny", "ours")
    assert row["sqnr_db"] > 20


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
