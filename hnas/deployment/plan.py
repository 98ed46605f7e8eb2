"""What a deployment will do, resolved before anything runs: device, backend, windows, precisions, budget, folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hnas import hw_profiles, units
from hnas.deployment.site import Site, visit
from hnas.export import backends
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Unavailable
from hnas.export.device.machine import Machine
from hnas.export.remote.transports import Transport, local
from hnas.export.remote.worker import Worker
from hnas.hw_profiles import Device

EVALUATIONS = 32
GUARD = 0.01  # of top-1: what a lower precision may lose on the search images, and what the default goal may lose
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8", "mixed", "w8")
_HOW = {"auto": " (the fastest that keeps its accuracy)", "mixed": ", and blocks in float where that is better"}
BF16 = frozenset({"avx512_bf16", "amx_bf16"})  # either set of instructions computes in bf16


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome; equal plans with equal data and journals end in equal subnets."""

    device: Device
    precision: str
    precisions: tuple[str, ...]
    max_latency_ms: float | None
    min_accuracy: float | None
    max_size_bytes: float | None
    evaluations: int | None
    seconds: float | None
    seed: int
    threads: int
    supernet: Path | None
    data: Path | None
    out: Path
    site: Site | None = None

    @property
    def searched(self) -> str:
        """The precision in which the search measures subnets."""
        return "fp32" if self.precision == "auto" else self.precisions[0]

    @property
    def mixes(self) -> bool:
        """Whether blocks of an int8 artifact may go to float: they are chosen by times that are measured here."""
        return self.device.local and self.site is None and "int8" in self.precisions

    @property
    def measured(self) -> bool:
        """Whether latency is measured, here or at ``site``; otherwise it is predicted from the device's profile."""
        return self.device.local or self.site is not None

    @property
    def transport(self) -> Transport:
        """To where artifacts are verified and measured."""
        return local if self.site is None else self.site.transport

    @property
    def machine(self) -> Machine:
        """Where that is."""
        return Machine.here() if self.site is None else self.site.machine

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the runtime at ``site``; empty for this machine, whose artifacts know them."""
        return {} if self.site is None else self.site.versions

    def open(self, artifact: Artifact) -> Worker:
        """A worker where artifacts are verified and measured."""
        return Worker(artifact) if self.site is None else self.site.open(artifact)

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """Hard bounds of the search: metric -> (low, high)."""
        inf = float("inf")
        bounds = {
            "latency_ms": (-inf, self.max_latency_ms),
            "size_bytes": (-inf, self.max_size_bytes),
            "accuracy": (self.min_accuracy, inf),
        }
        return {m: (low, high) for m, (low, high) in bounds.items() if low is not None and high is not None}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as JSON."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        record |= {"device": self.device.name, "precisions": list(self.precisions)}
        del record["out"], record["site"]
        if self.site is not None:
            record["host"] = self.site.where
        return {key: str(value) if isinstance(value, Path) else value for key, value in record.items()}

    def lines(self) -> list[tuple[str, str]]:
        """The plan for a person: (what, value)."""
        bounds = [
            f"latency <= {self.max_latency_ms:g} ms" if self.max_latency_ms else "",
            f"accuracy >= {self.min_accuracy:.1%}" if self.min_accuracy is not None else "",
            f"size <= {self.max_size_bytes / 1e6:g} MB" if self.max_size_bytes else "",
        ]
        goal = ", ".join(filter(None, bounds)) or f"fastest within {GUARD:.0%} of the largest subnet's accuracy"
        budget = f"{self.evaluations} evaluations" if self.evaluations else f"{self.seconds:g} s"
        return [
            ("target", f"{self.device.name} ({self.device.title})"),
            ("backend", self.device.backend),
            ("latency", self._latency()),
            ("precisions", f"{', '.join(self.precisions)}{_HOW.get(self.precision, '')}"),
            ("goal", goal),
            ("search", f"NSGA-II, {budget}, seed {self.seed}"),
            ("threads", str(self.threads)),
            ("supernet", str(self.supernet or "shipped with hnas (Fashion-MNIST)")),
            ("data", str(self.data or "shipped with hnas (a slice of Fashion-MNIST)")),
            ("out", str(self.out)),
        ]

    def _latency(self) -> str:
        if self.site is not None:
            return f"measured on {self.site.where} ({self.site.machine.cpu})"
        return "measured here" if self.measured else "predicted from the device's profile: not run on a device here"


def resolve(
    target: str,
    *,
    max_latency: str | None = None,
    min_accuracy: str | None = None,
    max_size: str | None = None,
    precision: str | None = None,
    budget: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    supernet: Path | str | None = None,
    data: Path | str | None = None,
    out: Path | str | None = None,
    host: str | None = None,
    resume: bool = False,
) -> Plan:
    """The plan of these options; ValueError for what is not understood, Unavailable where a runtime is missing.

    ``host``, the address of a device, is connected to: artifacts are verified and measured there.
    """
    device = hw_profiles.load(target)
    wanted = device.precision if precision is None else precision
    evaluations, seconds = (EVALUATIONS, None) if budget is None else units.budget(budget)
    if seed < 0:
        raise ValueError(f"seed is {seed}; it is 0 or more")
    site = None if host is None else visit(host, device.backend)
    cores = (os.cpu_count() or 1) if site is None else site.machine.cores
    if threads is not None and not 1 <= threads <= cores:
        raise ValueError(f"threads is {threads}; {'this machine' if site is None else site.where} has {cores} cores")
    if site is None and not device.local and threads not in (None, device.threads):
        what = f"the latency of {device.name} is predicted for {device.threads} thread(s)"
        raise ValueError(f"threads is {threads}; {what}; --threads is for devices at hand or with --host")
    return Plan(
        device=device,
        precision=wanted,
        precisions=precisions(device, wanted, site),
        max_latency_ms=None if max_latency is None else units.latency_ms(max_latency),
        min_accuracy=None if min_accuracy is None else units.share(min_accuracy),
        max_size_bytes=None if max_size is None else units.size_bytes(max_size),
        evaluations=evaluations,
        seconds=seconds,
        seed=seed,
        threads=threads or device.threads,
        supernet=None if supernet is None else Path(supernet),
        data=None if data is None else Path(data),
        out=_folder(device.name, resume) if out is None else Path(out),
        site=site,
    )


def precisions(device: Device, wanted: str, site: Site | None = None) -> tuple[str, ...]:
    """The precisions to build: for "auto" all that device and backend offer, fp32 first, else the one wanted.

    "mixed" begins with int8. "w8" is tried where it is asked for: int8 is faster wherever it holds.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"no precision {wanted!r}; known: {', '.join(PRECISIONS)}")
    backend = backends.load(device.backend)
    if device.local and (missing := backend.missing()):
        raise Unavailable(missing)
    offered = tuple(p for p in backend.precisions if p in device.precisions)
    if wanted == "auto":
        # The runtime says so itself when it is asked for bf16; this saves a conversion that it would refuse.
        machine = Machine.here() if site is None else site.machine
        lacking = device.local and BF16.isdisjoint(machine.instructions)
        return tuple(p for p in offered if p != "w8" and not (lacking and p == "bf16"))
    if wanted == "mixed":
        if not device.local or site is not None:
            where = device.name if site is None else site.where
            raise ValueError(f"mixed precision is chosen by times measured on this machine, and {where} is not it")
        wanted = "int8"
    if wanted not in offered:
        raise ValueError(f"{device.name} with {device.backend} has no {wanted}; offered: {', '.join(offered)}")
    return (wanted,)


def _folder(target: str, resume: bool) -> Path:
    """runs/TARGET, or the next free runs/TARGET-2, -3, ...; with ``resume`` the last one that is there."""
    taken: list[Path] = []
    path = Path("runs") / target
    while path.exists():
        taken.append(path)
        path = Path("runs") / f"{target}-{len(taken) + 1}"
    return taken[-1] if resume and taken else path
