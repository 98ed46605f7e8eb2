"""Every hostile bundle and model file is refused in one line, and nothing is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.conftest import Refuse
from tests.hostile.corpus import FILES


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_in_one_line(good: Path, tmp_path: Path, refuse: Refuse, name: str) -> None:
    case = FILES[name]
    (tmp_path / "work").mkdir()
    line = refuse(case.command, *case.build(good, tmp_path / "work"))
    assert case.words in line
