"""What a subnet costs on the device: measured in turns with the largest one, or predicted from the profile."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export import backends
from export.artifact import Artifact
from export.fusion import fuse
from export.manifest import Machine
from export.measurement import compare, measure
from export.program import Program, capture
from export.worker import Worker
from hnas.cost import Price
from hnas.journal import Journal
from hnas.space import Arch, Shape
from hnas.study import Study
from hw_profiles import Device

QUANTISED = 32  # calibration images of a candidate that is only timed
BLOCKS = 6  # turns of a candidate and the largest subnet; the finalists get more


Inputs = tuple[NDArray[Any], ...]


def sample(study: Study, arch: Arch) -> Inputs:
    """One search image as the inputs of ``arch``, as numpy."""
    return samples(study, "search", study.supernet.space.example(arch), 1)[0]


def samples(study: Study, split: str, shapes: Sequence[Shape], count: int | None = None) -> list[Inputs]:
    """The first ``count`` images of a held-out split, each as the inputs of a network of these shapes (no batch)."""
    raw, _ = study.task.held(split)
    whole = [x.numpy() for x in study.task.inputs(raw[:count], shapes)]
    return [tuple(np.ascontiguousarray(x[i : i + 1]) for x in whole) for i in range(len(whole[0]))]


def fitting(study: Study) -> Callable[[Artifact], Inputs]:
    """What an artifact is timed on: one search image at the size that it reads."""
    return lambda artifact: samples(study, "search", [tensor.shape[1:] for tensor in artifact.inputs], 1)[0]


def program(study: Study, arch: Arch) -> Program:
    """The captured and fused program of a subnet."""
    net = study.supernet.extract(arch, study.calibrate(arch))
    return fuse(capture(net, [torch.from_numpy(x) for x in sample(study, arch)]))


def cache() -> Path:
    """Where latencies live between runs: $XDG_CACHE_HOME/hnas or ~/.cache/hnas."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hnas" / "latency.jsonl"


class Measured:
    """The latency of whole subnets on this machine in ``precision``, each taken in turns with the largest one in fp32.

    The machine's speed drifts by up to 2x within minutes, so a candidate's latency is that of the largest subnet, taken
    once, divided by the ratio of the two in one session. Ratios are cached on disk by what decides them: the digests of
    both programs, precision, device, CPU, backend versions and threads.
    """

    def __init__(self, study: Study, device: Device, threads: int, precision: str = "fp32") -> None:
        self.study, self.device, self.threads, self.precision = study, device, threads, precision
        self.backend = backends.load(device.backend)
        self.largest = study.supernet.space.largest
        self._folder = tempfile.TemporaryDirectory(prefix="hnas-")
        self._programs: dict[Arch, Program] = {}
        self._baseline: Worker | None = None
        self._cache = open_cache()

    def __call__(self, arch: Arch) -> Price:
        """The latency of ``arch`` with the interval of its ratio to the largest subnet."""
        base = self.study.journal.call("baseline_ms", self._measure_baseline)
        if arch == self.largest and self.precision == "fp32":
            return Price(base, "ms", base, base, "measured")
        key = self._key(arch)
        ratio, low, high = self._cache.call(key, lambda: self._ratio(arch))
        return Price(base / ratio, "ms", base / high, base / low, "measured")

    def close(self) -> None:
        """End the worker and remove the files."""
        if self._baseline is not None:
            self._baseline.close()
        self._folder.cleanup()
        self._cache.close()

    def _measure_baseline(self) -> float:
        return float(measure(self._worker(), sample(self.study, self.largest), runs=300).median_ms)

    def _worker(self) -> Worker:
        if self._baseline is None:
            self._baseline = Worker(self._compile(self.largest, "baseline", "fp32"))
        return self._baseline

    def _ratio(self, arch: Arch) -> tuple[float, float, float]:
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            path = self._compile(arch, folder, self.precision)
            with Worker(path) as worker:
                found = compare(self._worker(), worker, fitting(self.study), blocks=BLOCKS)
        return found.ratio, found.low, found.high

    def _compile(self, arch: Arch, folder: str, precision: str) -> Path:
        path = Path(self._folder.name) / folder
        path.mkdir(exist_ok=True)
        found, images = self._program(arch), None
        if precision == "int8":
            images = samples(self.study, "calibration", self.study.supernet.space.example(arch), QUANTISED)
        self.backend.compile(
            found, path, precision=precision, device=self.device, threads=self.threads, calibration=images
        )
        return path

    def _program(self, arch: Arch) -> Program:
        if arch not in self._programs:
            self._programs = {a: p for a, p in self._programs.items() if a == self.largest}
            self._programs[arch] = program(self.study, arch)
        return self._programs[arch]

    def _key(self, arch: Arch) -> str:
        parts = {
            "programs": [self._program(self.largest).digest, self._program(arch).digest],
            "precision": self.precision,
            "device": self.device.name,
            "cpu": Machine.here().cpu,
            "versions": dict(self.backend.versions()),
            "threads": self.threads,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_cache() -> Journal:
    """The cache; one that cannot be written or read is set aside: it saves time and decides nothing."""
    file = cache()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return Journal(file)
        except ValueError:
            file.replace(file.with_suffix(".broken"))
            return Journal(file)
    return Journal()
