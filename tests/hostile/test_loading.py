"""`export.load` in Python refuses hostile artifacts and model files in one line of a documented error."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnas import export
from tests.hostile.conftest import SECONDS, cpu, in_time, listing
from tests.hostile.corpus import COMPARED, FOLDERS, RECORDS

# The file opens. The first is an empty network; the second needs its memory only when it runs.
OPENS = ("openvino text", "bare bomb")
READ = ("a terabyte of record", "record is a pipe", "model is a pipe", "model is a socket", "model is a device")
CASES = {**RECORDS, **COMPARED, **{name: FOLDERS[name] for name in READ}}


@pytest.mark.parametrize("name", [name for name in CASES if name not in OPENS])
def test_it_is_refused_in_one_line(good: Path, tmp_path: Path, name: str) -> None:
    _, file, *_ = CASES[name](good, tmp_path)
    allowed = FileNotFoundError if name == "bare pipe" else (ValueError, export.Unavailable, export.ExportError)
    before, begun = listing(tmp_path), cpu()
    with in_time(), pytest.raises(allowed) as refused:
        export.load(tmp_path / str(file))
    line = str(refused.value)
    assert line.isprintable(), repr(line)
    assert 0 < len(line) < 1200
    assert listing(tmp_path) == before, "something was written or removed"
    assert cpu() - begun < SECONDS
