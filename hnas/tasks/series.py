"""Forecasting of a multivariate series, at every row of a window: ``open_task(Path("power.csv"), horizon=24)``.

A network reads [N, window, features] and returns [N, window, targets]: at every row the targets ``horizon`` rows later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnas.data.packaged import PACKAGED, packaged
from hnas.data.series import SYNTHETIC, Floats, Scaling, Table, read_csv, scaled, season_of
from hnas.data.windows import WORST, Rows, WindowedTask, Windows
from hnas.ranges import Count, PositiveInt, Share
from hnas.space import Shape
from hnas.units import Score

_SOURCES = (*SYNTHETIC, *PACKAGED)
_FLAT = 1e-12  # deviation of a constant column at most, as a share of its values; it is not scaled


@dataclass(frozen=True)
class Series(WindowedTask):
    """A series in the units of its training rows: every column minus its mean, divided by its deviation.

    features: float32 [rows, F], the inputs.
    targets: float32 [rows, D].
    windows: which rows train and which judge.
    season: rows of a season, for the seasonal naive forecast.
    scaling: column -> (mean, deviation) over the training rows.
    names: the columns of the features, and those of the targets.
    digest: of the unscaled table.
    time: the column of timestamps, as ``hnas.data.series.read_csv`` takes it.
    distil: the weight of the teacher's outputs in the loss; the labels have the rest.
    """

    features: Floats
    targets: Floats
    windows: Windows
    season: int
    scaling: Scaling
    names: tuple[tuple[str, ...], tuple[str, ...]]
    digest: str
    batch_size: int = 32
    seed: int = 0
    distil: float = 0.5
    name: str = "series"
    time: str = ""

    @property
    def score(self) -> Score:
        """Return that the metric is the mean squared error, in units of the variance of the training rows."""
        return Score("mean squared error", False, ".4f")

    @property
    def space_arguments(self) -> Mapping[str, int]:
        """Return the numbers of features, outputs and rows of a window."""
        return {"features": len(self.names[0]), "outputs": len(self.names[1]), "window": self.windows.window}

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Return windows as the one input [N, window, F] of a network."""
        del shapes
        return (torch.from_numpy(raw),)

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the mean squared error after the burn-in, mixed with the distance from a teacher if there is one."""
        burn = self.windows.burn
        error = (outputs - labels)[:, burn:].square().mean()
        if teacher is None:
            return error
        return (1 - self.distil) * error + self.distil * (outputs - teacher)[:, burn:].square().mean()

    def metric(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the negative mean squared error after the burn-in."""
        error = float((outputs - labels)[:, self.windows.burn :].double().square().mean())
        return -error if error < -WORST else WORST

    def baselines(self, split: str) -> dict[str, float]:
        """Return the metric of persistence and of the seasonal naive forecast on a split.

        1. Persistence repeats the newest known value of the target: that of the row itself, or of the row before it if
           the horizon is 0.
        2. The seasonal naive forecast repeats the newest known value that is whole seasons before.
        """
        ahead = max(self.windows.horizon, 1)
        lags = {"persistence": ahead}
        if self.season > 1:
            lags[f"seasonal naive, {self.season} rows"] = -(-ahead // self.season) * self.season
        starts, burn = self.windows.starts(split), self.windows.burn
        judged = (starts[:, None] + np.arange(burn, self.windows.window) + self.windows.horizon).ravel()
        return {name: self._naive(judged, lag) for name, lag in lags.items()}

    def to_json(self) -> dict[str, Any]:
        """Return what a forecast needs, and the digest of the data."""
        return {
            "kind": "series",
            "name": self.name,
            "features": list(self.names[0]),
            "targets": list(self.names[1]),
            "time": self.time,
            "scaling": {column: list(each) for column, each in self.scaling.items()},
            "horizon": self.windows.horizon,
            "window": self.windows.window,
            "burn": self.windows.burn,
            "season": self.season,
            "digests": {"series": self.digest},
        }

    def _cut(self, starts: Rows) -> tuple[Floats, Tensor]:
        labels = self.windows.cut(self.targets, starts, self.windows.horizon)
        return self.windows.cut(self.features, starts), torch.from_numpy(labels)

    def _naive(self, judged: Rows, lag: int) -> float:
        known = judged[judged >= lag]
        if not len(known):
            return WORST
        return -float(np.square(self.targets[known] - self.targets[known - lag], dtype=np.float64).mean())


def open_task(
    folder: Path | None,
    *,
    source: str = "",
    length: PositiveInt = 4000,
    targets: tuple[str, ...] = (),
    time: str = "",
    horizon: Count = 1,
    window: PositiveInt = 32,
    burn: Count = 8,
    season: Count = 0,
    alpha: Share = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    distil: float = 0.5,
) -> Series:
    """Return the task of forecasting a series; mean and deviation of each column are those of its training rows.

    folder: a CSV file with a header line; None with ``source``.
    source: a known series in place of a file: "lorenz" or "gated_recall", which are computed, or one of the package
        statsmodels (``hnas.data.packaged``).
    length: rows of a synthetic series.
    targets: the columns to forecast; default: all, or the column "target" where there is one.
    time: the column of timestamps (``hnas.data.series.read_csv``).
    horizon: how many rows ahead to forecast; 0: a target of the same row, which is then no feature.
    window: rows that a network reads in a training step.
    burn: the first rows of a window, whose outputs are not judged.
    season: rows of a season; 0 (default): the lag of the highest autocorrelation in the training rows.
    alpha: share of the training rows that trains architecture parameters and no weights: the split "alpha" (0).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the series has gaps, is too short, lacks a column, or has a constant target; or file and source are
            not exactly one.

    Example: ``open_task(Path("power.csv"), targets=("load",), horizon=24, window=96)``
    """
    table = _table(folder, source, length, time)
    aims = _targets(table, targets)
    inputs = tuple(name for name in table.columns if horizon or name not in aims)
    if not inputs:
        raise ValueError("horizon = 0 forecasts columns from the others of the same row; leave a column out of targets")
    windows = Windows.divide(len(table.values), window, burn, horizon, alpha)
    known = table.values[: windows.spans["train"][1]].astype(np.float64)
    if season >= len(known):
        raise ValueError(f"season is {season}, and the series has {len(known)} training rows; give a shorter one")
    scaling = _scaling(known, table.columns, aims)
    features, wanted = (scaled(table.take(names), names, scaling) for names in (inputs, aims))
    lag = season or season_of(wanted[: len(known)], window)
    return Series(
        features,
        wanted,
        windows,
        lag,
        scaling,
        (inputs, aims),
        table.digest,
        batch_size,
        seed,
        distil,
        source or (folder.stem if folder else "series"),
        time,
    )


def _table(folder: Path | None, source: str, length: int, time: str) -> Table:
    if (folder is None) == (not source):
        given = "neither" if folder is None else "both"
        raise ValueError(f"a series is a CSV file (--data FILE) or a source ({', '.join(_SOURCES)}); {given} is given")
    if folder is not None:
        return read_csv(folder, time)
    if source not in _SOURCES:
        raise ValueError(f"no source {source!r} of a series; known: {', '.join(_SOURCES)}, or give a CSV file")
    if source in PACKAGED:
        return packaged(source)
    return SYNTHETIC[source](length, 0)  # the seed of a run draws batches; the series stays the same


def _targets(table: Table, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns to forecast. Raise ValueError if one is unknown or named twice."""
    found = given or (("target",) if "target" in table.columns else table.columns)
    table.take(found)
    if len(set(found)) < len(found):
        raise ValueError(f"targets name a column twice: {', '.join(found)}; name each once")
    return found


def _scaling(
    known: NDArray[np.float64], columns: Sequence[str], targets: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return mean and deviation of each column; a constant column has the deviation 1.

    known: the training rows.

    Raises:
        ValueError: a target is constant.
    """
    means, deviations, largest = known.mean(0), known.std(0), np.abs(known).max(0)
    flat = deviations <= _FLAT * largest
    if still := [name for name in targets if flat[columns.index(name)]]:
        what = f"column {still[0]!r} has one value in all training rows, so that there is nothing to forecast"
        raise ValueError(f"{what}; give [data] targets without it, or leave the column out")
    pairs = zip(columns, means.tolist(), np.where(flat, 1.0, deviations).tolist(), strict=True)
    return {name: (mean, deviation) for name, mean, deviation in pairs}
