"""Every hostile supernet, recipe, run, data set and argument is refused in one line, and nothing is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.conftest import Refuse
from tests.hostile.corpus import FILES
from tests.hostile.corpus_search import SEARCH


@pytest.mark.parametrize("name", SEARCH)
def test_it_is_refused_in_one_line(good: Path, tmp_path: Path, refuse: Refuse, name: str) -> None:
    (tmp_path / "work").mkdir()
    refuse(SEARCH[name].command, *SEARCH[name].build(good, tmp_path / "work"))


def test_the_corpus_is_large() -> None:
    assert len(FILES) + len(SEARCH) >= 200
