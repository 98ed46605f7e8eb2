"""Read tables of published latencies. Each row keeps the kind of timing that its note states."""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# The devices of the table -> profile and power mode. "max" is the highest mode without the Super modes of JetPack 6.2.
# "not stated" is taken as MAXN, which is an assumption.
_DEVICES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("Jetson Orin Nano 8GB", "MAXN_SUPER"): ("jetson-orin-nano", "MAXN_SUPER"),
    ("Jetson Orin Nano Super 8GB", "MAXN/max"): ("jetson-orin-nano", "MAXN_SUPER"),
    ("Jetson Orin NX 16GB", "MAXN/max"): ("jetson-orin-nx", "MAXN"),
    ("Jetson AGX Orin 64GB", "MAXN/max"): ("jetson-agx-orin", "MAXN"),
    ("Jetson AGX Orin", "not stated"): ("jetson-agx-orin", "MAXN"),
}
# Words of a note -> kind of timing, in the order of the search.
_TIMINGS = (
    ("noDataTransfers", "GPU only"),
    ("pipeline", "whole pipeline"),
    ("end to end", "whole pipeline"),
    ("transfer", "with transfers"),
)
TIMINGS = ("GPU only", "with transfers", "whole pipeline", "inference only")


@dataclass(frozen=True)
class Row:
    """One published latency.

    profile: name of the device profile; empty if there is none.
    power: power mode of the profile.
    model: name of the network.
    resolution: height and width of the input.
    timing: one of ``TIMINGS``; empty if the note states none.
    latency_ms: of one call of ``batch`` images.
    source: where it was published.
    """

    device: str
    profile: str
    power: str
    model: str
    resolution: tuple[int, int]
    precision: str
    batch: int
    timing: str
    latency_ms: float
    source: str

    @property
    def name(self) -> str:
        """Return network, resolution and batch in words."""
        return f"{self.model} @{self.resolution[0]} batch {self.batch}"


def read_jetson(path: Path) -> list[Row]:
    """Return the rows of a table with the columns device, power_mode, model, resolution, precision, batch, value, note.

    Raises:
        ValueError: the file is no such table.
    """
    rows = []
    for line in read_lines(path):
        try:
            profile, power = _DEVICES.get((line["device"], line["power_mode"]), ("", ""))
            height, _, width = line["resolution"].partition("x")
            timing = next((kind for word, kind in _TIMINGS if word in line["note"]), "")
            rows.append(
                Row(
                    device=line["device"],
                    profile=profile,
                    power=power,
                    model=line["model"],
                    resolution=(int(height), int(width or height)),
                    precision=line["precision"],
                    batch=int(line["batch"]),
                    timing=timing,
                    latency_ms=float(line["value"]),
                    source=line["source"].partition("@")[0],
                )
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is no table of Jetson latencies: {error}") from None
    return rows


def read_lines(path: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of a CSV file, which may be compressed, as column -> text."""
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}")
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    yield from csv.DictReader(text.splitlines())


def table_parser(program: str, about: str | None, table: str, written: str) -> argparse.ArgumentParser:
    """Return the parser of a command that fits the efficiencies ``written`` to the published rows in a ``table``."""
    made = argparse.ArgumentParser(program, description=about)
    made.add_argument("table", type=Path, metavar="FILE", help=table)
    made.add_argument("--write", type=Path, metavar="FOLDER", help=f"write the efficiencies to FOLDER/{written}.toml")
    made.add_argument("--record", type=Path, metavar="FOLDER", help=f"write the errors to FOLDER/{written}.json")
    return made
