"""Forecast a series or continue a text with a bundle, without torch: ``Forecaster(bundle, run).forecast(table)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hnas.data.series import Floats, Scaling, Table, Values, read_csv, scaled, unscaled
from hnas.data.text import encode
from hnas.export.bundle.bundle import Bundle
from hnas.export.device.errors import needing
from hnas.export.device.records import decode
from hnas.files import read_json

KINDS = {"series-forecasting": "series", "text-modelling": "text"}
_MOST = 100_000  # rows or characters of an answer

_Run = Callable[..., tuple[NDArray[Any], ...]]


@dataclass(frozen=True)
class _SeriesRecord:
    """The keys of ``input.preprocessing`` that a forecast needs, as ``hnas.tasks.series`` writes them."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    scaling: Scaling
    horizon: int
    time: str = ""

    def __post_init__(self) -> None:
        if not (self.features and self.targets):
            raise ValueError("features or targets are empty")
        for name in (*self.features, *self.targets):
            if self.scaling.get(name, (0.0, 0.0))[1] <= 0:
                raise ValueError(f"scaling has no mean and no deviation above 0 of column {name!r}")


@dataclass(frozen=True)
class _TextRecord:
    """The key of ``input.preprocessing`` that a text needs, as ``hnas.tasks.text`` writes it."""

    alphabet: str


_Record = TypeVar("_Record", _SeriesRecord, _TextRecord)


class Forecaster:
    """A bundle of a recurrent network, run from step to step.

    bundle: the bundle; its manifest says how a row becomes an input.
    run: the artifact: (x [1, F], h [1, M]) -> (y [1, D], h [1, M]).

    Raises:
        ValueError: the bundle holds no step of a recurrent network.
    """

    def __init__(self, bundle: Bundle, run: _Run) -> None:
        taken, inputs = bundle.manifest.input, bundle.artifact().inputs
        if not is_sequence_bundle(bundle) or taken is None or taken.preprocessing is None or len(inputs) != 2:
            raise ValueError(f"{bundle.path} holds no step of a recurrent network; it is for {bundle.manifest.task}")
        self.bundle = bundle
        self.kind = KINDS[bundle.manifest.task]
        self._said: Mapping[str, Any] = taken.preprocessing
        self._run = run
        self._state = inputs[1].shape

    def read(self, file: Path) -> Table:
        """Return the series in a CSV file, read as the training read its own: the same column has the timestamps.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the file is faulty (``hnas.data.series.read_csv``).
        """
        return read_csv(file, self._record(_SeriesRecord).time)

    def forecast(self, table: Table, steps: int | None = None) -> tuple[tuple[str, ...], Values]:
        """Return the names of the targets, and their values in the rows after the last one: [steps, targets].

        table: all known rows, in time order; its columns include the features of the network.
        steps: number of rows; None: as many as the network forecasts at once, at least 1. With more rows the network
            reads its own forecasts, which needs every feature to be a target.

        Raises:
            ValueError: a column is missing, there are too few rows, or the forecast cannot be so long.
        """
        said = self._record(_SeriesRecord)
        features, targets, ahead = said.features, said.targets, max(said.horizon, 1)
        count, closed = ahead if steps is None else steps, set(features) <= set(targets)
        if not 1 <= count <= _MOST:
            raise ValueError(f"steps is {steps}; it is 1 to {_MOST}")
        if count > ahead and not (closed and said.horizon):
            why = (
                "it does not forecast all of its features" if said.horizon else "it needs the features of the same row"
            )
            raise ValueError(f"the network forecasts {ahead} rows; {steps} are too many, because {why}")
        values = table.take(features)
        if len(values) < ahead:
            raise ValueError(f"{len(values)} rows are too few for a forecast {said.horizon} rows ahead")
        h, found = np.zeros(self._state, np.float32), list[Floats]()
        for row in scaled(values, features, said.scaling):
            y, h = self._step(row, h)
            found.append(y)
        found = found[-ahead:]  # the output of row t is about row t + horizon
        for k in range(count - ahead):
            y, h = self._step(found[k][[targets.index(name) for name in features]], h)
            found.append(y)
        return targets, unscaled(np.stack(found[:count]), targets, said.scaling)

    def continue_text(self, text: str, characters: int = 200, temperature: float = 0.7, seed: int = 0) -> str:
        """Return the characters that follow ``text``, drawn one after another.

        temperature: the scores are divided by it; 0: the likeliest character.

        Raises:
            ValueError: the text is empty, or has a character that was not in the training text.
        """
        alphabet = self._record(_TextRecord).alphabet
        if not text:
            raise ValueError("the text to continue is empty; give at least one character")
        if not (1 <= characters <= _MOST and 0 <= temperature <= 100):
            raise ValueError(f"characters is 1 to {_MOST}, temperature 0 to 100; got {characters} and {temperature}")
        rng, h, said = np.random.default_rng(seed), np.zeros(self._state, np.float32), []
        pending = encode(text, alphabet).tolist()
        for _ in range(characters):
            for token in pending:
                y, h = self._step(np.eye(len(alphabet), dtype=np.float32)[token], h)
            pending = [_draw(y, temperature, rng)]
            said.append(alphabet[pending[0]])
        return "".join(said)

    def _step(self, row: NDArray[Any], h: Floats) -> tuple[NDArray[Any], Floats]:
        y, h = self._run(row[None].astype(np.float32), h)
        if h.shape != self._state:
            raise ValueError(f"{self.bundle.path} returned a state of {list(h.shape)}, expected {list(self._state)}")
        return y[0], h

    def _record(self, kind: type[_Record]) -> _Record:
        """Return a record of the manifest. Raise ValueError for a key that is missing or has another type."""
        known = {each.name: self._said[each.name] for each in fields(kind) if each.name in self._said}
        return decode(kind, known, f"{self.bundle.path}/manifest.json", "input.preprocessing")


def is_sequence_bundle(bundle: Bundle) -> bool:
    """Return whether a bundle holds the step of a recurrent network."""
    return bundle.manifest.task in KINDS


def plot_forecast(table: Table, targets: tuple[str, ...], values: Values, file: Path) -> None:
    """Draw the last known rows and the forecast of every target into an image file. Needs the extra "plot".

    Raises:
        Unavailable: matplotlib is not installed.
    """
    with needing("plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 2.2 * len(targets)), layout="constrained")
    shown = min(len(table.values), max(4 * len(values), 50))
    for k, name in enumerate(targets):
        axes = figure.add_subplot(len(targets), 1, k + 1)
        if name in table.columns:
            axes.plot(range(1 - shown, 1), table.take([name])[-shown:, 0], label="known")
        axes.plot(range(1, len(values) + 1), values[:, k], marker=".", label="forecast")
        axes.set_ylabel(name)
        axes.legend(loc="upper left")
    figure.savefig(file)


def _draw(scores: NDArray[Any], temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(scores.argmax())
    odds = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
    return int(rng.choice(len(odds), p=odds / odds.sum()))


def is_sequence(supernet: Path | None) -> bool:
    """Return whether a folder holds the supernet of a series or a text."""
    if supernet is None or not (supernet / "supernet.json").is_file():
        return False
    said = read_json(supernet / "supernet.json").get("task")
    return isinstance(said, dict) and said.get("kind") in tuple(KINDS.values())
