"""Read real series from the files of the Python package statsmodels: ``packaged("sunspots")`` returns a ``Table``.

The package is located and not imported, so that pandas is not loaded. Numpy only.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnas.data.series import Table, read_csv
from hnas.files import read_plain

_PACKAGE = "statsmodels"
_LARGEST = 2**20  # bytes of a file
_QUARTERS = ("year", "quarter")


def packaged(name: str) -> Table:
    """Return a series of ``PACKAGED``.

    Raises:
        ValueError: statsmodels is not installed, or lacks the file.
    """
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(f"the series {name!r} is read from the package {_PACKAGE}; pip install {_PACKAGE}")
    file = Path(found.origin).parent / "datasets" / name / f"{name}.csv"
    if not file.exists():
        raise ValueError(f"{file} is missing in this version of {_PACKAGE}; install another one")
    return PACKAGED[name](file)


def _sunspots(file: Path) -> Table:
    """Return the yearly number of sunspots, 1700 to 2008 [309, 1]."""
    return Table(("sunspots",), read_csv(file, "YEAR").values)


def _elnino(file: Path) -> Table:
    """Return the monthly sea surface temperature of the eastern Pacific in degrees, 1950 to 2010 [732, 1]."""
    return Table(("temperature",), read_csv(file, "YEAR").values.reshape(-1, 1))


def _macrodata(file: Path) -> Table:
    """Return twelve columns of the economy of the United States by quarter, 1959 to 2009 [203, 12]."""
    found = read_csv(file)
    kept = tuple(name for name in found.columns if name not in _QUARTERS)
    return Table(kept, found.take(kept))


def _co2(file: Path) -> Table:
    """Return the weekly CO2 at Mauna Loa in ppm, 1958 to 2001 [2284, 1]; 59 gaps are filled by straight lines."""
    rows = list(csv.reader(StringIO(read_plain(file, _LARGEST).decode())))[1:]
    values: NDArray[np.float64] = np.asarray([float(cell or "nan") for _, cell in rows])
    known = np.flatnonzero(np.isfinite(values))
    filled = np.interp(np.arange(len(values)), known, values[known])
    return Table(("co2",), filled[:, None])


PACKAGED: dict[str, Callable[[Path], Table]] = {
    "sunspots": _sunspots,
    "elnino": _elnino,
    "macrodata": _macrodata,
    "co2": _co2,
}
