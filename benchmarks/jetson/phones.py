"""Print published and predicted latencies of phones and boards, from the table of Qualcomm's AI Hub.

``python -m hnas.benchmarks.jetson.phones phone_perf.csv.gz`` needs torchvision. Nearly all rows state the time of an
NPU, for which hnas has no backend. Only rows whose layers all run on the CPU, in ONNX Runtime and int8, are compared.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hnas.benchmarks.jetson.errors import RowPrediction, summary
from hnas.benchmarks.jetson.fitting import Sample, fit, leave_one_model_out
from hnas.benchmarks.jetson.networks import kernels_of
from hnas.benchmarks.jetson.report import parameters, to_toml
from hnas.benchmarks.jetson.rows import TIMINGS, Row, read_lines, table_parser
from hnas.hw_profiles import load

NAME, PROFILE, DEVICE = "onnxruntime-rb3-gen2", "rb3-gen2", "Dragonwing RB3 Gen 2 Vision Kit"
_HEAD = "# Efficiencies of ONNX Runtime. Written by: python -m hnas.benchmarks.jetson.phones TABLE --write FOLDER"
# The table's name of a network -> torchvision's. All take images of 224 x 224.
_NETWORKS: Mapping[str, str] = {
    **{name: name for name in ("googlenet", "inception_v3", "regnet_y_800mf", "squeezenet1_1")},
    **{name: name for name in ("resnet18", "resnet50", "resnet101")},
    "regnet": "regnet_x_3_2gf",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "shufflenet_v2": "shufflenet_v2_x0_5",
    "wideresnet50": "wide_resnet50_2",
}
_SIZE = (224, 224)


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
    if len({sample.row.model for sample in samples}) < 2:
        parser.error(f"{options.table} has fewer than two networks of {DEVICE} that can be rebuilt")
    found = fit(samples, NAME, f"{datetime.now(UTC).date()} on {len(samples)} rows of quic/ai-hub-models")
    left = [RowPrediction(sample, value) for sample, value in leave_one_model_out(samples)]
    lines = ["published and predicted latency, each network left out of the fit", "", *map(str, left), ""]
    lines += [summary("leave-one-model-out", left), "", *parameters(found, {"int8"}), ""]
    lines += [f"rows left out: {sum(left_out.values())}", *(f"  {n} x {why}" for why, n in left_out.most_common())]
    print("\n".join(lines))  # noqa: T201 - the output
    if options.write is not None:
        (options.write / f"{NAME}.toml").write_text(to_toml(_HEAD, found, left, []), encoding="utf-8")
    return 0


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
        rows.append(Row(DEVICE, PROFILE, "", line["model"], _SIZE, "int8", 1, TIMINGS[3], ms, "quic/ai-hub-models"))
    return rows, left_out


def _reason(line: Mapping[str, str]) -> str:
    """Return why a row cannot be compared; empty if it can."""
    unit = line["primary_unit"] or "no unit"
    if unit != "CPU":
        return f"runs on {unit}, for which there is no backend"
    if line["device"] != DEVICE:
        return "CPU of a device without a profile"
    if (line["runtime"], line["precision"]) != ("onnx", "w8a8"):
        return "CPU, but not ONNX Runtime in int8"
    return "" if line["model"] in _NETWORKS else "the network is not one of torchvision's convolutional networks"


if __name__ == "__main__":
    sys.exit(main())
