"""Series that are read from the files of a package, which is not imported; a missing package is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hnas.data import packaged
from hnas.tasks.series import open_task

FILES = {
    "sunspots": '"YEAR","SUNACTIVITY"\n1700,5\n1701,11\n1702,16\n',
    "elnino": '"YEAR","JAN","FEB"\n1950,23.1,24.2\n1951,24.2,24.6\n',
    "macrodata": "year,quarter,realgdp,cpi\n1959,1,2710.3,28.9\n1959,2,2778.8,29.1\n",
    "co2": "date,co2\n19580329,316.1\n19580405,\n19580412,317.1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package of the same name and form as the real one, which fails if it is imported."""
    root = tmp_path / "statsmodels"
    for name, text in FILES.items():
        (root / "datasets" / name).mkdir(parents=True)
        (root / "datasets" / name / f"{name}.csv").write_text(text)
    (root / "__init__.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    return root


@pytest.mark.parametrize(
    ("name", "columns", "values"),
    [
        ("sunspots", ("sunspots",), [[5], [11], [16]]),
        ("elnino", ("temperature",), [[23.1], [24.2], [24.2], [24.6]]),
        ("macrodata", ("realgdp", "cpi"), [[2710.3, 28.9], [2778.8, 29.1]]),
        ("co2", ("co2",), [[316.1], [316.6], [317.1]]),
    ],
)
def test_the_series_of_the_package_are_tables(package, name, columns, values):
    found = packaged.packaged(name)
    assert found.columns == columns
    assert np.allclose(found.values, values)
    assert "statsmodels" not in sys.modules


def test_a_recipe_names_a_series_of_the_package(package):
    rows = "".join(f"{year},{year % 11}\n" for year in range(1700, 2009))
    (package / "datasets" / "sunspots" / "sunspots.csv").write_text(f'"YEAR","SUNACTIVITY"\n{rows}')
    task = open_task(None, source="sunspots", window=22, burn=11)
    assert task.name == "sunspots"
    assert len(task.targets) == 309


def test_a_missing_package_or_file_is_one_line(package, monkeypatch):
    (package / "datasets" / "co2" / "co2.csv").unlink()
    with pytest.raises(ValueError, match=r"co2\.csv is missing in this version of statsmodels; install another one$"):
        open_task(None, source="co2")
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^the series 'co2' is read from .* statsmodels; pip install statsmodels$"):
        open_task(None, source="co2")
