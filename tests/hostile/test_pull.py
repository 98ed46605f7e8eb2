"""Every hostile bundle of the corpus, published as it is, is refused by ``pull`` in one line, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnas.export.bundle.bundle import read_bundle
from hnas.export.zoo.fetch import pull
from hnas.export.zoo.stores import open_store
from tests.hostile.conftest import Refuse
from tests.hostile.corpus import FOLDERS, MANIFESTS, RECORDS

pytest.importorskip("onnxruntime")
# What these hold is fine, and beside it lies something that no manifest lists: it is not fetched.
BESIDE = ("a pipe more", "a link out", "a file more")
CASES = {**MANIFESTS, **FOLDERS, **RECORDS}


@pytest.mark.parametrize("name", [name for name in CASES if name not in BESIDE])
def test_it_is_refused_in_one_line(good: Path, tmp_path: Path, refuse: Refuse, name: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    CASES[name](good, work)  # a folder store with one bundle, called "bundle"
    refuse("deploy", "pull", "bundle", "--store", ".", "--out", "out")


@pytest.mark.parametrize("name", BESIDE)
def test_what_no_manifest_lists_stays_there(good: Path, tmp_path: Path, name: str) -> None:
    CASES[name](good, tmp_path)
    found = pull("bundle", tmp_path / "out", store=open_store(str(tmp_path)))
    assert found.digest == read_bundle(good / "bundle").digest
    with pytest.raises(ValueError, match="is not in the manifest"):
        read_bundle(tmp_path / "bundle")


def test_a_store_of_nothing(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "work").mkdir()
    assert "no store" in refuse("deploy", "zoo", "--store", "nowhere")
    assert "has no x/manifest.json" in refuse("deploy", "pull", "x", "--store", ".", "--out", "out")
    assert "name of a bundle" in refuse("deploy", "pull", "../x", "--store", ".", "--out", "out")
    assert "no store; give --store" in refuse("deploy", "pull", "x", "--out", "out")
