"""Predict the latency of an architecture by a linear model: ``fit_latency(archs, shares)``, ``predict_latency(...)``.

A latency is a share of the latency of the largest subnet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hnas.space import Arch, Option


def _features(arch: Mapping[str, Option]) -> dict[str, float]:
    """Return the features of an architecture: the type of each slot, and the sums of sizes of each type."""
    found: dict[str, float] = {"": 1.0}
    for name, option in arch.items():
        if name.endswith(".op"):
            found[f"{name}={option}"] = 1.0
        elif isinstance(option, int | float) and name.count(".") > 3:
            kind = ".".join(name.split(".")[-2:])
            found[kind] = found.get(kind, 0.0) + float(option)
    return found


def fit_latency(
    archs: Sequence[Mapping[str, Option]], shares: Sequence[float], ridge: float = 1e-3
) -> dict[str, float]:
    """Return the coefficients of a ridge regression; a feature that no architecture has gets none."""
    rows = [_features(arch) for arch in archs]
    names = sorted({name for row in rows for name in row})
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    solved = np.linalg.solve(x.T @ x + ridge * np.eye(len(names)), x.T @ np.array(shares))
    return {name: round(float(value), 6) for name, value in zip(names, solved, strict=True)}


def predict_latency(model: Mapping[str, float], arch: Mapping[str, Option]) -> float:
    """Return the latency that the model predicts, as a share of the latency of the largest subnet."""
    return max(1e-3, sum(model.get(name, 0.0) * value for name, value in _features(arch).items()))


def cross_validate(archs: Sequence[Arch], shares: Sequence[float], folds: int = 4) -> float:
    """Return the mean relative error on architectures that the model was not fitted on."""
    found = []
    for fold in range(min(folds, len(archs))):
        kept = [k for k in range(len(archs)) if k % folds != fold]
        model = fit_latency([archs[k] for k in kept], [shares[k] for k in kept])
        held = range(fold, len(archs), folds)
        found += [abs(predict_latency(model, archs[k]) / shares[k] - 1) for k in held]
    return float(np.mean(found))
