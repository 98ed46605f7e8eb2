"""Make the pilot that the rates of the study C3 come from: ``python -m hnas.benchmarks.papers.cell_rates``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from hnas.benchmarks.cli import count
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.sequence_cells import CELLS, GRU, LSTM, STEPS, cell_error, setting_of
from hnas.benchmarks.papers.sequences import SEQUENCES
from hnas.report import print_lines

_TRIED = {"grown": (0.03, 0.1), "plain": (0.003, 0.01, 0.03)}  # rates of SGD, and of Adam for LSTM and GRU
_PILOT_SEEDS = (100,)


def _tried(name: str, cell: str, steps: int, folder: Path | None) -> dict[float, list[StudyPart]]:
    """Return the trainings of a cell with each rate, judged on the search split."""
    found = {}
    for rate in _TRIED["plain" if cell in (LSTM, GRU) else "grown"]:
        setting = replace(setting_of(name, cell, steps, rate, folder, False), split="search")
        found[rate] = [part(cell_error, seed, setting) for seed in _PILOT_SEEDS]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every cell on every sequence with each rate; print the errors on the search split, the best rate first."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.papers.cell_rates", description=main.__doc__)
    parser.add_argument("--names", nargs="+", choices=SEQUENCES, default=SEQUENCES, metavar="NAME", help="of sequences")
    parser.add_argument("--steps", type=count, default=STEPS, metavar="N", help="of a training (default %(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="its text.txt is the text (default: Python's manual)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/cells"), metavar="DIR", help="parts (default %(default)s)"
    )
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default %(default)s)")
    options = parser.parse_args(arguments)
    parts = StudyParts(options.out, options.data, options.workers)
    try:
        for name in options.names:
            tried = {cell: _tried(name, cell, options.steps, options.data) for cell in CELLS}
            parts.complete([each for rates in tried.values() for listed in rates.values() for each in listed], name)
            for cell, rates in tried.items():
                errors = {rate: fmean(parts[each]["error"] for each in listed) for rate, listed in rates.items()}
                ranked = sorted(errors, key=errors.__getitem__)
                print_lines([f"{name}, {cell}: " + ", ".join(f"{rate:g} {errors[rate]:.4g}" for rate in ranked)])
    finally:
        parts.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
