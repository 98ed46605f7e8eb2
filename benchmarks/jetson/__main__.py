"""Print published and predicted latencies of Jetsons, and the errors of networks that were left out of the fit.

``python -m hnas.benchmarks.jetson jetson.csv`` needs torchvision and timm; with ultralytics also the YOLO rows count.
The efficiencies are fitted on the rows that state the time of the GPU alone. Every other row is held out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from hnas.benchmarks.jetson import record
from hnas.benchmarks.jetson.baselines import one_factor, uncalibrated
from hnas.benchmarks.jetson.errors import RowPrediction, hold_out, summary
from hnas.benchmarks.jetson.fitting import Sample, fit, leave_one_model_out
from hnas.benchmarks.jetson.networks import kernels_of
from hnas.benchmarks.jetson.report import parameters, to_toml
from hnas.benchmarks.jetson.rows import TIMINGS, Row, read_jetson, table_parser
from hnas.hw_profiles import load

NAME = "tensorrt-orin"
_HEAD = "# Efficiencies of TensorRT on Jetson Orin. Written by: python -m hnas.benchmarks.jetson TABLE --write FOLDER"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print the tables and return 0."""
    parser = table_parser("python -m hnas.benchmarks.jetson", __doc__, "published latencies as CSV, one a line", NAME)
    options = parser.parse_args(arguments)
    try:
        rows = read_jetson(options.table)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    samples, left_out = rebuild(rows)
    fitted = [sample for sample in samples if sample.row.timing == TIMINGS[0]]
    if len({sample.row.model for sample in fitted}) < 2:
        parser.error(f"{options.table} has fewer than two networks with the time of the GPU alone that can be rebuilt")
    said = f"{datetime.now(UTC).date()} on {len(fitted)} rows of {', '.join(sorted({s.row.source for s in fitted}))}"
    found = fit(fitted, NAME, said)
    left = [RowPrediction(sample, value) for sample, value in leave_one_model_out(fitted)]
    held = hold_out([sample for sample in samples if sample not in fitted], found)
    _print("\n".join([*_tables(left, held), "", *parameters(found, found.compute), "", *_lines(left_out)]))
    record.write(options, NAME, to_toml(_HEAD, found, left, held), left, held)
    return 0


def rebuild(rows: Sequence[Row]) -> tuple[list[Sample], Counter[str]]:
    """Return the rows whose device has a profile and whose network can be had, and the others by reason."""
    samples, left_out = [], Counter[str]()
    for row in rows:
        if not row.profile:
            left_out[f"no profile of {row.device}"] += 1
        elif not row.timing:
            left_out["the kind of timing is not stated"] += 1
        elif isinstance(kernels := kernels_of(row.model, row.resolution, row.batch), str):
            left_out[f"{row.model}: {kernels}"] += 1
        else:
            samples.append(Sample(row, load(row.profile, row.power), kernels))
    return samples, left_out


def _tables(left: Sequence[RowPrediction], held: Sequence[RowPrediction]) -> list[str]:
    """Return the table of rows and the tables of errors, with those of the methods to beat."""
    lines = ["published and predicted latency, each network left out of the fit", "", *map(str, left), ""]
    samples = [each.sample for each in left]
    methods = {
        "leave-one-model-out": left,
        "uncalibrated": uncalibrated(samples),
        "one factor per precision, leave-one-model-out": one_factor(samples),
    }
    for name, found in methods.items():
        lines += [summary(f"{name}, convolutional networks", [each for each in found if not each.attends])]
        lines += [summary(f"{name}, with transformers", found)]
    lines.append("")
    if held:
        lines += ["held out: no row of these was used in the fit", "", *map(str, held), ""]
        for group in dict.fromkeys(each.group for each in held):
            lines.append(summary(f"held out, {group}", [each for each in held if each.group == group]))
    return lines


def _lines(left_out: Counter[str]) -> list[str]:
    total = sum(left_out.values())
    return [f"rows left out: {total}", *(f"  {count} x {reason}" for reason, count in left_out.most_common())]


def _print(text: str) -> None:
    print(text)  # noqa: T201 - the output


if __name__ == "__main__":
    sys.exit(main())
