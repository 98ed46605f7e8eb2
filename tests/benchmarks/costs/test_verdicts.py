"""Test the study of wrong verdicts: its table, its journal, and the blocks that it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.benchmarks.costs import verdicts
from hnas.benchmarks.gate.trials import LOOKS
from hnas.journal import read_entries
from tests.benchmarks.bundles import network

PROCESSES = 5


def record(seed: int, spread: float, bias: float = 0.0, drift: float = 0.0) -> dict[str, Any]:
    """Return a comparison in which starts differ by ``spread``, the artifact by ``bias``, and time drifts."""
    rng = np.random.default_rng(seed)
    noise, speed = rng.normal(0, spread, (2, LOOKS * PROCESSES, 1)) + rng.normal(0, 0.002, (2, LOOKS * PROCESSES, 6))
    return {
        "noise": noise.tolist(), "speed": (speed - bias).tolist(), "seconds": 30.0, "others": 0.5,
        "sequential": [1.0, float(np.exp(drift))],
    }  # fmt: skip


def test_the_table_counts_the_verdicts() -> None:
    records = [record(seed, 0.008, drift=0.05 * (seed - 1)) for seed in range(3)]
    rows = list(verdicts.table(records, PROCESSES))
    equal, two, five, ten, twenty = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:7])
    assert equal[0] == "equal, called different"
    assert equal[1].startswith("0 of 3 [0.0%, ")
    assert [each[1].split()[0] for each in (five, ten, twenty)] == ["3"] * 3
    assert float(two[2]) > float(twenty[2]) == 1, "what is hard to tell takes more looks"
    assert equal[3].startswith("2 of 3"), "medians that drift are called different"
    assert "3 comparisons of 30 s (median); other programs used 0.5 cores" in rows[-1]


@pytest.mark.parametrize(
    ("percent", "bias", "word"), [(0, 0.1, "slower"), (0, -0.1, "faster"), (10.5, -0.1, "same within 1 %")]
)
def test_a_slowdown_multiplies_the_times(percent: float, bias: float, word: str) -> None:
    found, looks = verdicts.verdict_of(verdicts.looks_of(record(1, 0.004, bias), PROCESSES), percent)
    assert (found, looks) == (word, 1)


def test_a_record_that_was_cut_has_fewer_looks() -> None:
    cut = record(2, 0.05)
    for name in ("noise", "speed"):
        cut[name] = cut[name][: PROCESSES + 1]
    assert verdicts.verdict_of(verdicts.looks_of(cut, PROCESSES), 0) == ("inconclusive", 2)


def test_real_blocks_are_measured_once(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(verdicts, "LOOKS", 1)
    network(tmp_path / "net", 4)
    options = ("--count", "1", "--processes", "1", "--time", "1s")
    words = [str(tmp_path / "net"), *options, "--out", str(tmp_path / "v.jsonl")]
    assert verdicts.main(words) == 0
    (kept,) = read_entries(tmp_path / "v.jsonl").values()
    assert np.shape(kept["speed"]) == np.shape(kept["noise"]) == (1, 6)
    assert min(kept["sequential"]) > 0
    first = capsys.readouterr().out
    monkeypatch.setattr(verdicts, "_compare", lambda *_: {})  # nothing is measured again
    assert verdicts.main(words) == 0
    assert capsys.readouterr().out == first
