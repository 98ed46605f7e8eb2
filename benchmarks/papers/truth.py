"""Read the accuracies that rankings are compared with: the shipped tables, or a published table."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.files import read_json
from hnas.space import Arch
from hnas.spaces.nasbench201 import from_string
from hnas.spaces.tabular_digits import read_table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Every architecture of a space, trained alone.

    accuracy: test accuracies, [architectures, seeds].
    search: accuracies on the search split, [architectures, seeds].
    macs, params, latency_ms: [architectures].
    """

    archs: Sequence[Arch]
    accuracy: Floats
    search: Floats
    macs: Floats
    params: Floats
    latency_ms: Floats

    @cached_property
    def place(self) -> dict[Arch, int]:
        """Return the index of each architecture in the columns."""
        return {arch: k for k, arch in enumerate(self.archs)}

    @property
    def real(self) -> Floats:
        """Return the mean test accuracy over seeds, [architectures]."""
        return np.asarray(self.accuracy.mean(1))


@lru_cache(1)
def tabular() -> Truth:
    """Return the shipped table of ``tabular_digits``."""
    rows = read_table()
    columns = [[row.macs, row.params, row.latency_ms or float("nan")] for row in rows.values()]
    macs, params, latency = np.array(columns, float).T
    test, search = (np.array([getattr(row, split) for row in rows.values()]) for split in ("test", "search"))
    return Truth(tuple(rows), test, search, macs, params, latency)


@lru_cache(1)
def cells() -> Truth:
    """Return the shipped table of ``nasbench201(nodes=3)``: all 125 cells, each trained alone."""
    record = cells_record()
    slots = [name.removesuffix(".op") for name in record["space"]["options"]]
    rows = record["archs"]
    archs = [Arch({f"{slot}.op": kind for slot, kind in zip(slots, row["types"], strict=True)}) for row in rows]
    test, search = (np.array([row[split] for row in rows]) for split in ("test", "search"))
    columns = [[row["macs"], row["params"], row["latency_ms"]] for row in rows]
    macs, params, latency = np.array(columns, float).T
    return Truth(tuple(archs), test, search, macs, params, latency)


def cells_record() -> dict[str, Any]:
    """Return the record of the shipped table of cells: settings, versions, noise, and the rows as ``archs``."""
    with resources.as_file(resources.files("hnas") / "assets" / "nasbench201_cells.json") as shipped:
        return read_json(shipped)


def read_published(file: Path, archs: Sequence[Arch]) -> dict[str, Floats]:
    """Return data set -> accuracy of each NAS-Bench-201 cell.

    file: a CSV (or .gz) with the column ``arch_str`` and one column for each data set.

    Raises:
        ValueError: the column ``arch_str`` or a cell is missing.
    """
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or "arch_str" not in rows[0]:
        raise ValueError(f"{file} has no column arch_str; --nasbench takes the accuracies of NAS-Bench-201 cells")
    by_arch = {from_string(row["arch_str"]): row for row in rows}
    columns = [name for name in rows[0] if name != "arch_str"]
    try:
        return {name: np.array([float(by_arch[arch][name]) for arch in archs]) for name in columns}
    except KeyError:
        raise ValueError(f"{file} lacks a cell; it should have all 15,625") from None
