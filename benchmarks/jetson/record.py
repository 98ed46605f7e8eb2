"""Record the prediction and the relative error of each published row, with the digest of the fitted file.

The published figures stay with their sources. ``records/NAME.json`` belongs to ``hw_profiles/fitted/NAME.toml``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from hnas.benchmarks.jetson.baselines import one_factor, uncalibrated
from hnas.benchmarks.jetson.errors import RowPrediction
from hnas.deployment.installed import versions_of
from hnas.hw_profiles.calibration import Calibration, parse

_PACKAGES = ("torch", "torchvision", "timm", "ultralytics")  # they define the networks


def write(
    options: argparse.Namespace, name: str, text: str, left: Sequence[RowPrediction], held: Sequence[RowPrediction]
) -> None:
    """Write what the options of a command ask for.

    options: ``write``, a folder for NAME.toml, and ``record``, a folder for NAME.json; None writes nothing.
    text: the fitted file, whose digest the record has.
    left: predictions of the rows of the fit, each without the rows of its network.
    held: predictions of the other rows.
    """
    if options.write is not None:
        (options.write / f"{name}.toml").write_text(text, encoding="utf-8")
    if options.record is not None:
        (options.record / f"{name}.json").write_text(to_json(name, text, left, held), encoding="utf-8")


def to_json(name: str, text: str, left: Sequence[RowPrediction], held: Sequence[RowPrediction]) -> str:
    """Return the record: one row a line, in the order of the predictions.

    ``predicted_ms`` and ``error`` are those of the method of the row. ``shipped_ms`` is predicted by ``text``, without
    what the kind of timing adds.
    """
    samples, shipped = [each.sample for each in left], parse(name, text)
    rows = [
        _row(each, shipped)
        | {"method": "leave-one-model-out", "uncalibrated": _error(plain), "one_factor": _error(factor)}
        for each, plain, factor in zip(left, uncalibrated(samples), one_factor(samples), strict=True)
    ]
    rows += [{**_row(each, shipped), "method": "held out"} for each in held]
    head = {
        "calibration": name,
        "sha256": sha256(text.encode()).hexdigest(),
        "sources": sorted({each.sample.row.source for each in (*left, *held)}),
        "packages": versions_of(_PACKAGES),
    }
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'


def _row(each: RowPrediction, shipped: Calibration) -> dict[str, Any]:
    row = each.sample.row
    return {
        "model": row.model,
        "input": [row.batch, 3, *row.resolution],
        "precision": row.precision,
        "device": row.profile,
        "power": row.power,
        "timing": row.timing,
        "attention": each.attends,
        "predicted_ms": float(f"{each.ms:.4g}"),
        "shipped_ms": float(f"{each.sample.predict(shipped):.4g}"),
        "error": _error(each),
    }


def _error(each: RowPrediction) -> float:
    return round(each.error, 4)
