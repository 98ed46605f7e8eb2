"""Split labels off the real inputs of a user: ``split_labels(value, inputs, count)``; judge by them: ``judged_by``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.deployment.build import CALIBRATION, EVIDENCE
from hnas.deployment.network import SPLITS, HeldOutSamples, StaticNetwork
from hnas.export.compiling.originals import run_eager
from hnas.export.graph.samples import Sample
from hnas.export.onnx.source import Original

_LABELS = "labels"  # the array of a file that holds the class of each sample
LEAST = 200  # labelled samples; half of them decide, and the guard is one point

_Labels = NDArray[np.int64]


def split_labels(value: Any, inputs: Sequence[str], count: int) -> tuple[Any, _Labels | None]:
    """Return a value of a file of real inputs without its labels, and the labels; None if it has none.

    inputs: the names of the network's inputs; empty if they have no names.
    count: the number of the network's inputs.

    1. A dict with an array ``labels``, which is no input of the network, beside its inputs.
    2. A pair (inputs, labels) for a network with one input. The labels are a whole number, or an array [N] of them.
    3. Anything else: no labels.

    Raises:
        ValueError: case 1, and the array does not hold a whole number for each sample.

    Example: ``split_labels({"x": images, "labels": classes}, ["x"], 1)`` is ``({"x": images}, classes)``.
    """
    if isinstance(value, Mapping):
        if _LABELS not in value or _LABELS in inputs or len(value) <= count:
            return value, None
        found = _whole_numbers(value[_LABELS])
        if found is None:
            shown = np.asarray(value[_LABELS])
            raise ValueError(f"labels is {shown.dtype}{list(shown.shape)}, expected a whole number for each sample")
        return {name: part for name, part in value.items() if name != _LABELS}, found  # case 1
    if isinstance(value, tuple | list) and len(value) == 2 and count == 1:
        found = _whole_numbers(value[1])
        return (value, None) if found is None else (value[0], found)  # case 2
    return value, None  # case 3


def _whole_numbers(value: Any) -> _Labels | None:
    """Return a whole number, or an array [N] or [N, 1] of whole numbers, as an array [N]; None for anything else."""
    plain = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    flat = plain[:, 0] if plain.ndim == 2 and plain.shape[1] == 1 else np.atleast_1d(plain)
    return flat.astype(np.int64) if flat.ndim == 1 and flat.dtype.kind in "iu" else None


def judged_by(network: StaticNetwork, samples: Sequence[Sample], labels: _Labels) -> StaticNetwork:
    """Return the network with labelled samples, on whose accuracy its artifacts are judged.

    A quarter of the samples is for calibration, half of them decide (the split "search"), and the rest only reports
    (the split "test"). Chance chooses, with a fixed seed, because samples often stand in the order of their classes.

    Raises:
        ValueError: there are too few samples, the first output is not [1, classes], or a label is no class.
    """
    if len(labels) < LEAST:
        need = f"the accuracy guard of one point needs {LEAST} or more"
        raise ValueError(f"there are labels for {len(labels)} samples; {need}; leave the labels out to verify by dB")
    splits = {"calibration": slice(0, None, 4), "search": slice(1, None, 2), "test": slice(2, None, 4)}
    order = np.random.default_rng(0).permutation(len(labels))
    parts = {name: [samples[row] for row in order[part]] for name, part in splits.items()}
    classes = {name: labels[order[splits[name]]] for name in SPLITS}
    expected = {name: _scores(network, parts[name]) for name in SPLITS}
    many = expected["search"].shape[1]
    if not (labels.min() >= 0 and labels.max() < many):
        raise ValueError(f"labels are {labels.min()} to {labels.max()}, and the network has {many} classes, from 0")
    held = HeldOutSamples(parts["search"], parts["test"], classes, expected)
    return replace(
        network, calibration=parts["calibration"][:CALIBRATION], evidence=parts["search"][:EVIDENCE], labelled=held
    )


def _scores(network: StaticNetwork, samples: Sequence[Sample]) -> NDArray[np.float32]:
    """Return the class scores of the network in fp32, [N, classes]."""
    module = network.module
    outputs = module.outputs(samples) if isinstance(module, Original) else run_eager(module, samples)
    shape = outputs[0][0].shape
    if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
        raise ValueError(f"labels need class scores [1, classes]; the first output of a call is {list(shape)}")
    return np.concatenate([first for first, *_ in outputs])
