"""Predict rows with the data sheet alone, or with one factor for each precision: a calibration has to beat both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from statistics import mean

from hnas.benchmarks.jetson.errors import RowPrediction
from hnas.benchmarks.jetson.fitting import Sample
from hnas.cost.roofline import calibrated_ms


def uncalibrated(samples: Sequence[Sample]) -> list[RowPrediction]:
    """Return the predictions of the roofline with the figures of the profile, in the order of the samples."""
    return [RowPrediction(each, calibrated_ms(each.kernels, each.device, each.row.precision, None)) for each in samples]


def one_factor(samples: Sequence[Sample]) -> list[RowPrediction]:
    """Return ``uncalibrated``, each times one factor for its precision.

    The factor is the geometric mean of published over uncalibrated latency on the rows of this precision of all other
    networks; 1 if there are none.
    """
    plain = uncalibrated(samples)
    return [replace(each, gpu_ms=each.gpu_ms * _factor(each, plain)) for each in plain]


def _factor(wanted: RowPrediction, plain: Sequence[RowPrediction]) -> float:
    row = wanted.sample.row
    others = [
        log(each.sample.row.latency_ms / each.gpu_ms)
        for each in plain
        if each.sample.row.precision == row.precision and each.sample.row.model != row.model
    ]
    return exp(mean(others or [0.0]))
