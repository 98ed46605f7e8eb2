"""The sequences of the studies: the same for every seed, identified by their digest, and long enough for each split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hnas.benchmarks.papers.sequences import COMPUTED, SEQUENCES, TEXT, SequenceData, open_sequence, sequence_data


@pytest.mark.parametrize("name", [*COMPUTED, TEXT])
def test_a_sequence_is_the_same_for_every_seed_and_only_its_batches_differ(name: str) -> None:
    data = sequence_data(name, quick=True)
    one, other = (open_sequence(data, seed, batch_size=4) for seed in (0, 1))
    assert len(one.batch(0)[1]) == 4
    assert not torch.equal(one.batch(0)[1], other.batch(0)[1])
    for split in ("calibration", "search", "test"):
        assert len(one.splits[split])
        assert torch.equal(one.held(split)[1], other.held(split)[1])
    assert sequence_data(name, quick=True) == data
    assert len(data.digest) == 16


def test_another_sequence_than_that_of_the_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("in the beginning " * 100)
    own = sequence_data(TEXT, quick=True, folder=tmp_path)
    assert own.digest != sequence_data(TEXT, quick=True).digest
    assert len(open_sequence(own, 0, folder=tmp_path).space_arguments) == 3
    with pytest.raises(ValueError, match=r"^this part needs the text [0-9a-f]{16}, but got [0-9a-f]{16}; check --data"):
        open_sequence(own, 0)
    with pytest.raises(ValueError, match=f"^no sequence 'weather'; known: {', '.join(SEQUENCES)}$"):
        open_sequence(SequenceData(name="weather", digest=own.digest), 0)
