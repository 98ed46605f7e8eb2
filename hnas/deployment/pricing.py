"""Measure the latency of subnets on the device, each interleaved with the largest subnet."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, cached_property
from importlib.metadata import version
from math import inf
from pathlib import Path

import numpy as np
import torch

from hnas import export
from hnas.cost import Price
from hnas.deployment.site import Site
from hnas.export import backends
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.machine import Machine
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.graph.samples import Sample
from hnas.export.proof.timing import compare, measure
from hnas.export.remote.scratch import Scratch
from hnas.export.remote.transports import local
from hnas.export.remote.worker import Worker
from hnas.hw_profiles import Device
from hnas.journal import Journal
from hnas.space import Arch, Shape
from hnas.study import Study

QUANTISED = 8  # calibration images of a candidate, which is only timed
FAILED = "failed/"  # prefix of the journal keys of subnets without a latency
BLOCKS = 4  # interleaved blocks of a candidate and the largest subnet; the finalists get more
_CONFIRMING = 3  # new processes of a confirmed latency


def _sample(study: Study, arch: Arch) -> Sample:
    """Return one search image as a sample of ``arch``."""
    return held_out_samples(study, "search", study.supernet.space.example(arch), 1)[0]


def held_out_samples(study: Study, split: str, shapes: Sequence[Shape], count: int | None = None) -> list[Sample]:
    """Return the first ``count`` images of a held-out split as samples of a network. ``shapes`` have no batch."""
    raw, _ = study.task.held(split)
    whole = [x.numpy() for x in study.task.inputs(raw[:count], shapes)]
    return [tuple(np.ascontiguousarray(x[i : i + 1]) for x in whole) for i in range(len(whole[0]))]


def timing_sample(study: Study) -> Callable[[Artifact], Sample]:
    """Return a function that gives the sample to time an artifact on: one search image at the size that it takes."""
    return lambda artifact: held_out_samples(study, "search", [tensor.shape[1:] for tensor in artifact.inputs], 1)[0]


def subnet_program(study: Study, arch: Arch) -> Program:
    """Return the captured and fused program of a subnet."""
    net = study.supernet.extract(arch, study.calibrate(arch))
    return fuse(capture(net, [torch.from_numpy(x) for x in _sample(study, arch)]))


def _release_memory() -> None:
    """Give the memory that captures have freed back to the system; glibc keeps it. Other C libraries: nothing."""
    with suppress(
        AttributeError, OSError, TypeError
    ):  # no malloc_trim (musl, macOS), no library without a name (Windows)
        ctypes.CDLL(None).malloc_trim(0)


def _cache_file() -> Path:
    """Return the file that keeps latencies between runs, in $XDG_CACHE_HOME/hnas or ~/.cache/hnas."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hnas" / "latency.jsonl"


@cache
def builder_versions() -> dict[str, str]:
    """Return the version of hnas and a digest of the code of ``hnas.export``, which both decide an artifact.

    The code is digested because passes and policies may change without a new version.
    """
    root = Path(export.__path__[0])
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return {"hnas": version("hnas"), "export": digest.hexdigest()}


class MeasuredLatency:
    """The measured latency of whole subnets, as a `Cost`.

    Each subnet is timed interleaved with the largest subnet in fp32. Its latency is the ratio of the two times the
    latency of the largest, which the journal keeps. Ratios are cached between runs. The key of the cache has everything
    that decides a ratio: both networks, precision, device, CPU, threads, and the versions of the runtime and of hnas.

    threads: number of threads of the runtime.
    precisions: the precision of the subnets is the one in which the largest subnet is fastest; the journal keeps it.
    site: the device that measures; None: this machine.
    compiler: converts each subnet in a separate process.
    """

    def __init__(
        self,
        study: Study,
        device: Device,
        threads: int,
        precisions: Sequence[str] = ("fp32",),
        site: Site | None = None,
        *,
        compiler: Compiler,
    ) -> None:
        self.study, self.device, self.threads, self._precisions = study, device, threads, precisions
        self.largest = study.supernet.space.largest
        self._backend, self._site, self._compiler = backends.load(device.backend), site, compiler
        self._programs: dict[Arch, Program] = {}
        self._compiled: tuple[Arch, str] | None = None  # subnet and precision of the file of the candidate
        self._stack = ExitStack()
        self.folder = self._stack.enter_context(Scratch())
        self._baseline: Worker | None = None
        self._candidate: Worker | None = None
        self._cache = _open_cache()
        self._stack.callback(self._cache.close)

    def __call__(self, arch: Arch) -> Price:
        """Return the latency of ``arch`` in ms, with the interval of its ratio to the largest subnet.

        The latency is infinite if the subnet could not be compiled or run. The journal then has the reason.

        Raises:
            Unavailable: a runtime or the device is missing.
            ExportError: the largest subnet could not be compiled or run.
        """
        return self._price(arch)

    def confirmed(self, arch: Arch) -> Price:
        """Return the latency of ``arch`` over three new processes; otherwise as a call.

        A file that is opened again in another process may be 7 to 15 % faster or slower.
        """
        return self._price(arch, _CONFIRMING)

    def _price(self, arch: Arch, processes: int = 1) -> Price:
        base = self.study.journal.call("baseline_ms", self._measure_baseline)
        if arch == self.largest and self.precision == "fp32":
            return Price(base, "ms", base, base, "measured")
        try:
            ratio, low, high = self._cached_ratio(arch, self.precision, processes)
        except Unavailable:
            raise
        except ExportError as error:
            self._note_failure(arch.digest, str(error))
            return Price(inf, "ms", inf, inf, "measured")
        return Price(base / ratio, "ms", base / high, base / low, "measured")

    @cached_property
    def precision(self) -> str:
        """Return the precision in which subnets are measured. Raise ExportError if the largest runs in none."""
        if len(self._precisions) == 1:
            return self._precisions[0]
        return str(self.study.journal.call("searched precision", self._fastest))

    def close(self) -> None:
        """Stop the workers and remove the files."""
        self._stack.close()

    def _fastest(self) -> str:
        """Return the precision in which the largest subnet is fastest. One that cannot be built is left out."""
        ratios = {"fp32": 1.0} if "fp32" in self._precisions else {}  # the baseline itself is not compared
        for precision in [each for each in self._precisions if each not in ratios]:
            try:
                ratios[precision] = self._cached_ratio(self.largest, precision)[0]
            except Unavailable:  # a lost connection decides nothing; the run can be continued
                raise
            except ExportError as error:
                self._note_failure(precision, f"the largest subnet in {precision}: {error}")
        if not ratios:
            raise ExportError(f"the largest subnet runs in none of {', '.join(self._precisions)}")
        return max(ratios, key=lambda precision: ratios[precision])

    def _note_failure(self, key: str, reason: str) -> None:
        self.study.journal.call(f"{FAILED}{key}", lambda: reason)

    def _cached_ratio(self, arch: Arch, precision: str, processes: int = 1) -> tuple[float, float, float]:
        key = self._key(arch, precision, processes)
        ratio, low, high = self._cache.call(key, lambda: self._ratio(arch, precision, processes))
        return ratio, low, high

    def _measure_baseline(self) -> float:
        return float(measure(self._largest(), _sample(self.study, self.largest), runs=300).median_ms)

    def _largest(self) -> Worker:
        """Return the worker of the largest subnet. If the worker has ended, start a new worker."""
        folder = self.folder / "baseline"
        if self._baseline is None:
            folder.mkdir(exist_ok=True)
            self._baseline = self._started(self._compile(self.largest, folder, "fp32"))
        elif not self._baseline.alive:
            self._baseline = self._started(folder)
        return self._baseline

    def _ratio(self, arch: Arch, precision: str, processes: int) -> tuple[float, float, float]:
        baseline, file, sample = self._largest(), self._candidate_file(arch, precision), timing_sample(self.study)
        if processes == 1:
            found = compare(baseline, self._open(file), sample, blocks=BLOCKS)
        else:
            transport = local if self._site is None else self._site.transport
            paths = self.folder / "baseline", file
            found = compare(*paths, sample, blocks=BLOCKS, processes=processes, transport=transport)
        return found.ratio, found.low, found.high

    def _candidate_file(self, arch: Arch, precision: str) -> Path:
        """Return the file of a subnet; it takes the place of the one before. It is kept for a confirmation."""
        folder = self.folder / "candidate"
        if self._compiled != (arch, precision):
            self._compiled = None
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._compile(arch, folder, precision)
            self._compiled = (arch, precision)
        return folder

    def _open(self, path: Path) -> Worker:
        """Return a worker on a candidate. A living worker is reused, so that the runtime is imported once."""
        if self._candidate is not None and self._candidate.alive:
            self._candidate.open(path)
        else:
            self._candidate = self._started(path)
        return self._candidate

    def _started(self, path: Path) -> Worker:
        return self._stack.enter_context(Worker(path) if self._site is None else self._site.open(Artifact.read(path)))

    def _compile(self, arch: Arch, path: Path, precision: str) -> Path:
        found, images = self._program(arch), None
        if precision == "int8":
            found = replace(found, draft=True)
            images = held_out_samples(self.study, "calibration", self.study.supernet.space.example(arch), QUANTISED)
        self._compiler.convert(
            self.device.backend,
            found,
            path,
            precision=precision,
            device=self.device,
            threads=self.threads,
            calibration=images,
            called="a subnet",
        )
        return path

    def _program(self, arch: Arch) -> Program:
        if arch not in self._programs:
            self._programs = {a: p for a, p in self._programs.items() if a == self.largest}
            self._programs[arch] = subnet_program(self.study, arch)
            _release_memory()
        return self._programs[arch]

    def _key(self, arch: Arch, precision: str, processes: int = 1) -> str:
        parts = {
            "networks": [self._program(each).digest for each in (self.largest, arch)],
            "precision": precision,
            "device": self.device.name,
            "cpu": (Machine.here() if self._site is None else self._site.machine).processor,
            "versions": [dict(self._backend.versions()), *([dict(self._site.versions)] if self._site else [])],
            "builder": builder_versions(),
            "threads": self.threads,
            **({"processes": processes} if processes > 1 else {}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def failures(study: Study) -> list[str]:
    """Return one line for each subnet that could not be compiled or run."""
    return [str(line) for key, line in study.journal.entries.items() if key.startswith(FAILED)]


def _open_cache() -> Journal:
    """Open the cache. A broken file is renamed. If the file cannot be written, the cache is kept in memory only."""
    file = _cache_file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return Journal(file)
        except ValueError:
            file.replace(file.with_suffix(".broken"))
            return Journal(file)
    return Journal()
