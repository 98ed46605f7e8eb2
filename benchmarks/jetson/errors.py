"""Compare predictions with published latencies, each kind of timing for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from hnas.benchmarks.jetson.fitting import Sample
from hnas.benchmarks.jetson.rows import TIMINGS
from hnas.hw_profiles.calibration import Calibration, RowErrors

_BYTES = 4  # of an input value that is copied to the GPU


@dataclass(frozen=True, eq=False)
class RowPrediction:
    """A published row with the predicted time of the GPU, and what its kind of timing adds to it.

    gpu_ms: predicted time of the GPU.
    added_ms: time of the copies, or a constant of the pipeline.
    """

    sample: Sample
    gpu_ms: float
    added_ms: float = 0.0

    @property
    def ms(self) -> float:
        """Return the prediction of the published figure."""
        return self.gpu_ms + self.added_ms

    @property
    def error(self) -> float:
        """Return the relative error."""
        return self.ms / self.sample.row.latency_ms - 1

    @property
    def attends(self) -> bool:
        """Return whether the network has attention."""
        return any(kernel.kind == "attention" for kernel in self.sample.kernels)

    @property
    def group(self) -> str:
        """Return device, power mode and kind of timing."""
        row = self.sample.row
        return f"{row.profile} {row.power}, {row.timing}"

    def __str__(self) -> str:
        row, added = self.sample.row, f" (of it {self.added_ms:.3g} {self.sample.row.timing})" if self.added_ms else ""
        tf32 = " TF32" if row.precision == "fp32" and "tf32" in self.sample.device.peaks else ""
        said = f"{row.profile} {row.power}  {row.name}  {row.precision}{tf32}"
        return f"{said:<66} {row.latency_ms:8.3f} ms  predicted {self.ms:8.3f}  {self.error:+7.1%}{added}"


def hold_out(samples: Sequence[Sample], found: Calibration) -> list[RowPrediction]:
    """Return predictions of rows that the fit has not used.

    1. With transfers: the copy of the input to the GPU is read and written once.
    2. Whole pipeline: a constant for each device, the median of what the rows of the *other* networks need.
    """
    plain = [RowPrediction(sample, sample.predict(found)) for sample in samples]
    predictions = []
    for each in plain:
        row = each.sample.row
        added = 0.0
        if row.timing == TIMINGS[1]:  # case 1
            values = 3 * row.resolution[0] * row.resolution[1] * row.batch
            added = 2e-6 * _BYTES * values / each.sample.device.bandwidth
        elif row.timing == TIMINGS[2]:  # case 2
            others = [o for o in plain if o.group == each.group and o.sample.row.model != row.model]
            added = max(0.0, median([o.sample.row.latency_ms - o.gpu_ms for o in others] or [0.0]))
        predictions.append(replace(each, added_ms=added))
    return predictions


def summary(name: str, predictions: Sequence[RowPrediction]) -> str:
    """Return the mean and the worst error in words."""
    if not predictions:
        return f"{name}: no rows"
    errors = [abs(each.error) for each in predictions]
    models = len({each.sample.row.model for each in predictions})
    worst = max(predictions, key=lambda each: abs(each.error)).sample.row
    return (
        f"{name}: {len(errors)} rows of {models} networks, mean error {mean(errors):.1%}, "
        f"worst {max(errors):.1%} ({worst.name} {worst.precision})"
    )


def evidence_of(predictions: Sequence[RowPrediction], method: str) -> list[RowErrors]:
    """Return the errors for each device and power mode."""
    found = []
    for device, power in dict.fromkeys((each.sample.row.profile, each.sample.row.power) for each in predictions):
        here = [each for each in predictions if (each.sample.row.profile, each.sample.row.power) == (device, power)]
        errors = [abs(each.error) for each in here]
        quotients = [1 / (1 + each.error) for each in here]
        sizes = [each.sample.gflop for each in here]
        timings = {each.sample.row.timing for each in here}
        found.append(
            RowErrors(
                device=device,
                power=power,
                method=method,
                timing=", ".join(timing for timing in TIMINGS if timing in timings),
                rows=len(here),
                models=len({each.sample.row.model for each in here}),
                mean=mean(errors),
                worst=max(errors),
                low=min(quotients),
                high=max(quotients),
                gflop=(min(sizes), max(sizes)),
            )
        )
    return found
