"""Fit the efficiencies of a calibration to published latencies: least squares in logarithms, with a prior.

Seven parameters, each with a physical meaning. The prior keeps a parameter that the rows do not determine where the
literature and the data sheets would put it. ``fit(samples)`` returns a calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hnas.benchmarks.jetson.rows import Row
from hnas.cost.kernels import Kernel
from hnas.cost.roofline import calibrated_ms
from hnas.hw_profiles import Device
from hnas.hw_profiles.calibration import Calibration

# Parameter -> its likely value, and the standard deviation of its logarithm.
PRIOR = {
    "fp32": (0.6, 0.5),
    "fp16": (0.6, 0.5),
    "int8": (0.5, 0.5),
    "bandwidth": (0.75, 0.2),
    "depthwise": (1.0, 0.2),
    "elementwise": (0.5, 0.5),
    "launch_us": (5.0, 0.5),
}
_NOISE = 0.1  # standard deviation of the logarithm of a published latency
_Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """A published row with its device and the kernels of its network."""

    row: Row
    device: Device
    kernels: Sequence[Kernel]

    @property
    def gflop(self) -> float:
        """Return the operations of one call in 1e9."""
        return sum(kernel.flops for kernel in self.kernels) / 1e9

    def predict(self, found: Calibration) -> float:
        """Return the predicted time of the GPU in ms."""
        return calibrated_ms(self.kernels, self.device, self.row.precision, found)


def fit(samples: Sequence[Sample], name: str = "fitted", said: str = "") -> Calibration:
    """Return the efficiencies that explain the samples best, within the prior."""
    kinds = tuple(sorted({kernel.kind for sample in samples for kernel in sample.kernels}))
    start = np.log([value for value, _ in PRIOR.values()])
    spread = np.array([spread for _, spread in PRIOR.values()])

    def residuals(logs: _Vector) -> _Vector:
        found = _calibration(logs, kinds, name, said)
        errors = [np.log(sample.predict(found) / sample.row.latency_ms) / _NOISE for sample in samples]
        return np.concatenate([errors, (logs - start) / spread])

    return _calibration(_least_squares(residuals, start), kinds, name, said)


def _calibration(logs: _Vector, kinds: tuple[str, ...], name: str, said: str) -> Calibration:
    value = dict(zip(PRIOR, np.exp(logs).tolist(), strict=True))
    return Calibration(
        name=name,
        fitted=said,
        compute={precision: value[precision] for precision in ("fp32", "fp16", "int8")},
        bandwidth=value["bandwidth"],
        depthwise=min(1.0, value["depthwise"]),
        elementwise=min(1.0, value["elementwise"]),
        launch_us=value["launch_us"],
        kinds=kinds,
        evidence=(),
    )


def _least_squares(residuals: Callable[[_Vector], _Vector], start: _Vector, steps: int = 60) -> _Vector:
    """Return the minimum of the sum of squares (Levenberg-Marquardt with a numerical Jacobian)."""
    point, damping = start, 1e-3
    value = residuals(point)
    for _ in range(steps):
        jacobian = np.stack([(residuals(point + step) - value) / 1e-5 for step in 1e-5 * np.eye(len(point))], axis=1)
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -jacobian.T @ value)
        tried = residuals(point + step)
        if tried @ tried < value @ value:
            small = float(np.abs(step).max()) < 1e-6
            point, value, damping = point + step, tried, damping / 3
            if small:
                break
        else:
            damping *= 5
    return point


def leave_one_model_out(samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    """Return each sample with the latency in ms that a fit without any row of its network predicts."""
    predicted = []
    for model in dict.fromkeys(sample.row.model for sample in samples):
        found = fit([sample for sample in samples if sample.row.model != model])
        predicted += [(sample, sample.predict(found)) for sample in samples if sample.row.model == model]
    return predicted
