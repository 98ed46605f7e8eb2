"""Print published and predicted latencies of Jetsons, and the errors of networks that were left out of the fit.

``python -m hnas.benchmarks.jetson jetson.csv`` needs torchvision and timm; with ultralytics also the YOLO rows count.
The efficiencies are fitted on the rows that state the time of the GPU alone. Every other row is held out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hnas.benchmarks.jetson.errors import RowPrediction, evidence_of, hold_out, summary
from hnas.benchmarks.jetson.fitting import Sample, fit, leave_one_model_out
from hnas.benchmarks.jetson.networks import kernels_of
from hnas.benchmarks.jetson.rows import TIMINGS, Row, read_jetson
from hnas.hw_profiles import load
from hnas.hw_profiles.calibration import Calibration

NAME = "tensorrt-orin"
_HEAD = "# Efficiencies of TensorRT on Jetson Orin. Written by: python -m hnas.benchmarks.jetson TABLE --write FOLDER"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print the tables and return 0."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.jetson", description=__doc__)
    parser.add_argument("table", type=Path, metavar="FILE.csv", help="published latencies, one a line")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"write the efficiencies to FOLDER/{NAME}.toml")
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
    _print("\n".join([*_tables(left, held), "", *_parameters(found), "", *_lines(left_out)]))
    if options.write is not None:
        (options.write / f"{NAME}.toml").write_text(to_toml(found, left, held), encoding="utf-8")
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
    """Return the table of rows and the tables of errors."""
    lines = ["published and predicted latency, each network left out of the fit", "", *map(str, left), ""]
    convolutional = [each for each in left if not each.attends]
    lines += [summary("leave-one-model-out, convolutional networks", convolutional)]
    lines += [summary("leave-one-model-out, with transformers", left), ""]
    if held:
        lines += ["held out: no row of these was used in the fit", "", *map(str, held), ""]
        for group in dict.fromkeys(each.group for each in held):
            lines.append(summary(f"held out, {group}", [each for each in held if each.group == group]))
    return lines


def _parameters(found: Calibration) -> list[str]:
    shares = ", ".join(f"{precision} {share:.3f}" for precision, share in found.compute.items())
    return [
        f"fitted {found.fitted}",
        f"share of the peak: {shares}; fp32 is TF32 on the tensor cores, as TensorRT computes by default",
        f"share of the bandwidth {found.bandwidth:.3f}, of it in depthwise convolutions {found.depthwise:.3f}",
        f"share of an element-wise pass {found.elementwise:.3f}, launch {found.launch_us:.2f} us",
    ]


def _lines(left_out: Counter[str]) -> list[str]:
    total = sum(left_out.values())
    return [f"rows left out: {total}", *(f"  {count} x {reason}" for reason, count in left_out.most_common())]


def to_toml(found: Calibration, left: Sequence[RowPrediction], held: Sequence[RowPrediction]) -> str:
    """Return the text of the file that `hnas.hw_profiles.calibration` reads."""
    kinds = ", ".join(f'"{kind}"' for kind in found.kinds)
    lines = [_HEAD, f'fitted = "{found.fitted}"', f"kinds = [{kinds}]"]
    lines += [f"{key} = {getattr(found, key):.3f}" for key in ("bandwidth", "depthwise", "elementwise", "launch_us")]
    lines += ["", "[compute]", *(f"{precision} = {share:.3f}" for precision, share in found.compute.items())]
    known = evidence_of(left, "leave-one-model-out")
    fitted = {(each.device, each.power) for each in known}
    others = [each for each in evidence_of(held, "held out") if (each.device, each.power) not in fitted]
    for each in (*known, *others):
        lines += ["", "[[evidence]]"]
        lines += [f'{key} = "{getattr(each, key)}"' for key in ("device", "power", "method", "timing")]
        lines += [f"{key} = {getattr(each, key)}" for key in ("rows", "models")]
        lines += [f"{key} = {getattr(each, key):.3f}" for key in ("mean", "worst", "low", "high")]
        lines += [f"gflop = [{each.gflop[0]:.3f}, {each.gflop[1]:.3f}]"]
    return "\n".join(lines) + "\n"


def _print(text: str) -> None:
    print(text)  # noqa: T201 - the output


if __name__ == "__main__":
    sys.exit(main())
