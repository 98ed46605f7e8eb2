"""Windows of one long sequence, in time order: which rows train a network, and which rows judge it.

``Windows.divide(rows=1000, window=32, burn=8, horizon=1)`` returns the windows of every split. Numpy only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from hnas.units import Score

Rows = NDArray[np.int64]

WORST = -1e9  # the metric of outputs that are not finite
SHARES = {"train": 0.65, "calibration": 0.05, "search": 0.15, "test": 0.15}  # of the rows, in time order


@dataclass(frozen=True)
class Windows:
    """The windows of a sequence. A network reads the rows of a window from a zero state, one after another.

    spans: split -> (first, last + 1) row whose label belongs to the split. The spans do not overlap.
    window: rows of a window.
    burn: the first rows of a window, whose outputs are not judged: the state is still filling.
    horizon: the label of row t is in row t + horizon.

    A window of a held-out split may begin up to ``burn + horizon`` rows before its span. The outputs there are not
    judged: the label of every judged row lies in the span.

        windows = Windows.divide(rows=1000, window=32, burn=8, horizon=1)
        windows.starts("search")    # the first row of each window
    """

    spans: Mapping[str, tuple[int, int]]
    window: int
    burn: int
    horizon: int

    @classmethod
    def divide(cls, rows: int, window: int, burn: int, horizon: int, alpha: float = 0.0) -> Windows:
        """Return the windows of ``rows`` rows: 65 % train, then calibration (5 %), search (15 %) and test (15 %).

        alpha: share of the training rows, the last of them, that trains architecture parameters: the split "alpha".

        Raises:
            ValueError: the burn-in takes the whole window, or the rows do not hold a window of every split.
        """
        if not 0 <= burn < window:
            raise ValueError(f"burn is {burn}, and a window has {window} rows; burn is from 0 to {window - 1}")
        shares = {**SHARES, "train": SHARES["train"] * (1 - alpha)}
        if alpha:
            shares = {"train": shares["train"], "alpha": SHARES["train"] * alpha, **shares}
        edges = np.round(np.cumsum([0.0, *shares.values()]) * rows).astype(int).tolist()
        spans = dict(zip(shares, pairwise(edges), strict=True))
        found = cls(spans, window, burn, horizon)
        for split in spans:
            if window + horizon > rows or not found.first_rows(split):
                need = f"a window of {window} rows and a horizon of {horizon}"
                empty = f"the split {split!r} would be empty; give more rows, or a smaller window"
                raise ValueError(f"{rows} rows are too few for {need}: {empty}")
        return found

    def first_rows(self, split: str) -> range:
        """Return the first row of every window of a split.

        "train": every window. Other splits: windows whose judged rows do not overlap, so that each label counts once.
        """
        begin, end = self.spans[split]
        first = max(0, begin - self.horizon - self.burn)
        last = end - self.horizon - self.window
        return range(first, last + 1, 1 if split == "train" else self.window - self.burn)

    def starts(self, split: str) -> Rows:
        """Return the first row of every window of a split, as an array [N]."""
        rows = self.first_rows(split)
        return np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)

    def per_epoch(self, batch: int) -> int:
        """Return the number of batches in which every training row is judged about once; at least 1."""
        return max(1, len(self.first_rows("train")) // (batch * (self.window - self.burn)))

    def batch(self, step: int, size: int, seed: int) -> Rows:
        """Return the first rows of ``size`` random training windows; they depend on seed and step alone."""
        rows = self.first_rows("train")
        return rows.start + np.random.default_rng([seed, 3, step]).integers(0, len(rows), size)

    def cut(self, values: NDArray[Any], starts: Rows, shift: int = 0) -> NDArray[Any]:
        """Return the rows of the windows: [rows, ...] -> [N, window, ...].

        shift: added to every row; the horizon for labels.
        """
        found: NDArray[Any] = values[starts[:, None] + np.arange(shift, shift + self.window)]
        return found


class WindowedTask(ABC):
    """A task whose batches are windows of a sequence. A subclass has the sequence, its loss and its metric.

    windows: which rows train and which judge.
    batch_size: windows of a batch.
    seed: of the drawn windows.
    """

    windows: Windows
    batch_size: int
    seed: int

    @property
    @abstractmethod
    def score(self) -> Score:
        """Return how the metric is written."""

    @abstractmethod
    def baselines(self, split: str) -> dict[str, float]:
        """Return the metric of simple models on a split, by name."""

    @abstractmethod
    def _cut(self, starts: Rows) -> tuple[Any, Tensor]:
        """Return (raw, labels) of the windows that begin in these rows."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the score of each simple model on the search rows, as a line."""
        found = self.baselines("search").items()
        return tuple(f"baseline  {self.score.text(value)} {self.score.name} of {name}" for name, value in found)

    @property
    def splits(self) -> Mapping[str, range]:
        """Return the first row of every window of each split."""
        return {split: self.windows.first_rows(split) for split in self.windows.spans}

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in which every training row is judged about once."""
        return self.windows.per_epoch(self.batch_size)

    def batch(self, step: int) -> tuple[Any, Tensor]:
        """Return (raw, labels) of random training windows; they depend on seed and step alone."""
        return self._cut(self.windows.batch(step, self.batch_size, self.seed))

    def held(self, split: str) -> tuple[Any, Tensor]:
        """Return (raw, labels) of all windows of a held-out split."""
        return self._cut(self.windows.starts(split))
