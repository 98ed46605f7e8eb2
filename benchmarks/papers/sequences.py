"""Open the sequences of the studies C1 to C6: two computed series, two real ones, and the characters of a text.

Call ``sequence_data("lorenz", quick=False)`` for a setting, and ``open_sequence(data, seed)`` in a run. Training reads
``train``. Choices are made on ``search``, and ``test`` is only reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hnas.data.text import alphabet_of, encode, read_text
from hnas.data.windows import Windows
from hnas.tasks import Task
from hnas.tasks.series import Series
from hnas.tasks.series import open_task as open_series
from hnas.tasks.text import Text

TEXT = "text"
# Name -> options of the task. The windows fit the shortest split: a test split of sunspots has 46 rows.
_WINDOWS: Mapping[str, Mapping[str, Any]] = {
    "lorenz": {"horizon": 5, "window": 32, "burn": 8},
    "gated_recall": {"horizon": 0, "window": 32, "burn": 8},
    "sunspots": {"horizon": 1, "window": 22, "burn": 11},  # a cycle of the sun takes 11 years
    "elnino": {"horizon": 3, "window": 36, "burn": 12},
    TEXT: {"window": 64, "burn": 8},
}
SEQUENCES = tuple(_WINDOWS)
COMPUTED = ("lorenz", "gated_recall")  # the other two series are read from the package statsmodels
_ROWS, _QUICK_ROWS = 4000, 700  # of a computed series
_CHARACTERS, _QUICK_CHARACTERS = 200_000, 4000
_FILE = "text.txt"  # of the folder --data; a part of Python's manual otherwise


@dataclass(frozen=True, kw_only=True)
class SequenceData:
    """The sequence of a part, as a part of its setting.

    name: one of ``SEQUENCES``.
    digest: sixteen hex digits that identify the sequence.
    quick: whether only the short sequence of a quick run is used.
    """

    name: str
    digest: str
    quick: bool = False


def sequence_data(name: str, quick: bool = False, folder: Path | None = None) -> SequenceData:
    """Return the description of a sequence for a setting.

    folder: its file ``text.txt`` is the text, if there is one; None, or no such file: a part of Python's manual.

    Raises:
        ValueError: the name is unknown, or the package of a real series is not installed.
    """
    return SequenceData(name=name, digest=_opened(name, quick, _file(name, folder))[1], quick=quick)


def open_sequence(data: SequenceData, seed: int, batch_size: int = 32, folder: Path | None = None) -> Task:
    """Return the task whose windows are drawn by ``seed``; its score, loss and baselines are those of hnas-train.

    folder: as in ``sequence_data``.

    Raises:
        ValueError: the sequence is another one than that of the setting, or cannot be read.
    """
    task, digest = _opened(data.name, data.quick, _file(data.name, folder))
    if digest != data.digest:
        raise ValueError(f"this part needs the {data.name} {data.digest}, but got {digest}; check --data and packages")
    return replace(task, seed=seed, batch_size=batch_size)


def _file(name: str, folder: Path | None) -> Path | None:
    """Return the file of the text; None for another sequence, and for Python's manual."""
    return folder / _FILE if name == TEXT and folder is not None and (folder / _FILE).exists() else None


@lru_cache(8)
def _opened(name: str, quick: bool, file: Path | None) -> tuple[Series | Text, str]:
    """Return the task of a sequence, and the digest of the sequence."""
    if name not in SEQUENCES:
        raise ValueError(f"no sequence {name!r}; known: {', '.join(SEQUENCES)}")
    options = _WINDOWS[name]
    if name != TEXT:
        task = open_series(None, source=name, length=_QUICK_ROWS if quick else _ROWS, **options)
        return task, task.digest[:16]
    text = (_manual() if file is None else read_text(file))[: _QUICK_CHARACTERS if quick else _CHARACTERS]
    alphabet = alphabet_of(text)
    windows = Windows.divide(len(text), options["window"], options["burn"], 1)
    return Text(encode(text, alphabet), alphabet, windows), hashlib.sha256(text.encode()).hexdigest()[:16]


def _manual() -> str:
    """Return the topics of Python's manual that ``help()`` shows, in ASCII. Each version of Python has its own text."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore").decode()
