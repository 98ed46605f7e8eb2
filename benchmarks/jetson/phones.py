"""Print published and predicted latencies of phones and boards, from the table of Qualcomm's AI Hub.

``python -m hnas.benchmarks.jetson.phones phone_perf.csv.gz`` needs torchvision and timm. Nearly all rows state the time
of an NPU, for which hnas has no backend. Only rows whose layers all run on the CPU, in ONNX Runtime and int8, are
compared. The fit is to one board; the other devices are held out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hnas.benchmarks.jetson import record
from hnas.benchmarks.jetson.baselines import one_factor, uncalibrated
from hnas.benchmarks.jetson.errors import RowPrediction, hold_out, summary
from hnas.benchmarks.jetson.fitting import Sample, fit, leave_one_model_out
from hnas.benchmarks.jetson.networks import kernels_of
from hnas.benchmarks.jetson.report import parameters, to_toml
from hnas.benchmarks.jetson.rows import TIMINGS, Row, read_lines, table_parser
from hnas.hw_profiles import load

NAME = "onnxruntime-rb3-gen2"
# The table's name of a device -> its profile. The efficiencies are fitted to the first.
_PROFILES: Mapping[str, str] = {
    "Dragonwing RB3 Gen 2 Vision Kit": "rb3-gen2",
    "Dragonwing Q-6690 MTP": "dragonwing-q6690",
    "Snapdragon 7 Gen 4 QRD": "snapdragon-7-gen4",
}
_FITTED = "rb3-gen2"
_HEAD = "# Efficiencies of ONNX Runtime. Written by: python -m hnas.benchmarks.jetson.phones TABLE --write FOLDER"
# The table's name of a network -> that of torchvision or timm. All take images of 224 x 224.
_NETWORKS: Mapping[str, str] = {
    **{name: name for name in ("googlenet", "inception_v3", "regnet_y_800mf", "squeezenet1_1")},
    **{name: name for name in ("resnet18", "resnet50", "resnet101")},
    "dla102x": "dla102x",
    "regnet": "regnet_x_3_2gf",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "shufflenet_v2": "shufflenet_v2_x0_5",
    "wideresnet50": "wide_resnet50_2",
}
_SIZE = (224, 224)
# Networks of torchvision for which the table and its source do not settle the size of the input.
_UNSIZED = ("fcn_resnet50", "resnet_2plus1d", "resnet_3d")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print the tables and return 0."""
    parser = table_parser("python -m hnas.benchmarks.jetson.phones", __doc__, "AI Hub's table, .csv or .csv.gz", NAME)
    options = parser.parse_args(arguments)
    try:
        rows, left_out = read_phones(options.table)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    samples = []
    for row in rows:
        kernels = kernels_of(_NETWORKS[row.model], _SIZE, 1)
        if isinstance(kernels, str):
            left_out[f"{row.model}: {kernels}"] += 1
        else:
            samples.append(Sample(row, load(row.profile), kernels))
    fitted = [sample for sample in samples if sample.row.profile == _FITTED]
    if len({sample.row.model for sample in fitted}) < 2:
        parser.error(f"{options.table} has fewer than two networks of {_FITTED} that can be rebuilt")
    found = fit(fitted, NAME, f"{datetime.now(UTC).date()} on {len(fitted)} rows of quic/ai-hub-models")
    left = [RowPrediction(sample, value) for sample, value in leave_one_model_out(fitted)]
    held = hold_out([sample for sample in samples if sample not in fitted], found)
    lines = [*_tables(left, held), "", *parameters(found, {"int8"}), ""]
    lines += [f"rows left out: {sum(left_out.values())}", *(f"  {n} x {why}" for why, n in left_out.most_common())]
    print("\n".join(lines))  # noqa: T201 - the output
    record.write(options, NAME, to_toml(_HEAD, found, left, held), left, held)
    return 0


def _tables(left: Sequence[RowPrediction], held: Sequence[RowPrediction]) -> list[str]:
    """Return the table of rows and the errors, each device that the fit has not seen for itself."""
    samples = [each.sample for each in left]
    lines = ["published and predicted latency, each network left out of the fit", "", *map(str, left), ""]
    lines += [summary("leave-one-model-out", left), summary("uncalibrated", uncalibrated(samples))]
    lines += [summary("one factor, leave-one-model-out", one_factor(samples)), ""]
    for device in dict.fromkeys(each.sample.row.profile for each in held):
        here = [each for each in held if each.sample.row.profile == device]
        plain = uncalibrated([each.sample for each in here])
        lines += [*map(str, here), "", summary(f"held out, {device}", here)]
        lines += [summary(f"uncalibrated, {device}", plain), ""]
    return lines[:-1]


def read_phones(path: Path) -> tuple[list[Row], Counter[str]]:
    """Return the rows that can be compared, and the others by reason.

    Raises:
        ValueError: the file is no such table.
    """
    rows, left_out = [], Counter[str]()
    for line in read_lines(path):
        try:
            why = _reason(line)
            if why:
                left_out[why] += 1
                continue
            ms = float(line["latency_ms"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is no table of AI Hub: {error}") from None
        device, source = line["device"], "quic/ai-hub-models"
        rows.append(Row(device, _PROFILES[device], "", line["model"], _SIZE, "int8", 1, TIMINGS[3], ms, source))
    return rows, left_out


def _reason(line: Mapping[str, str]) -> str:
    """Return why a row cannot be compared; empty if it can."""
    unit = line["primary_unit"] or "no unit"
    if unit != "CPU":
        return f"runs on {unit}, for which there is no backend"
    if (line["runtime"], line["precision"]) != ("onnx", "w8a8"):
        return f"CPU, but {line['runtime']} {line['precision']} instead of onnx w8a8"
    if line["device"] not in _PROFILES:
        return "CPU of a device without a profile"
    if line["model"] in _UNSIZED:
        return "the size of the input is not known"
    return "" if line["model"] in _NETWORKS else "not a convolutional network of torchvision or timm"


if __name__ == "__main__":
    sys.exit(main())
