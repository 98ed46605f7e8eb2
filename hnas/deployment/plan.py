"""The plan of a deployment: all options, checked and completed before any work starts.

Call `resolve(SearchOptions("openvino-cpu", max_latency="5ms"))`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnas import hw_profiles, units
from hnas.deployment.bounds import Bound
from hnas.deployment.options import SearchOptions
from hnas.deployment.site import Site, visit
from hnas.export import backends
from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Unavailable
from hnas.export.device.machine import Machine
from hnas.export.remote.transports import Transport, local
from hnas.export.remote.worker import Worker
from hnas.hw_profiles import Device
from hnas.nearest import did_you_mean

EVALUATIONS = 32
# Largest allowed loss of top-1 on the search images: of a lower precision against fp32. Without a constraint, also of
# the chosen subnet against the largest subnet.
GUARD = 0.01
ROUNDING = 1e-9  # tolerance: in floats 0.90 - 0.89 is more than 0.01
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8", "mixed", "w8")
BF16 = frozenset({"avx512_bf16", "amx_bf16"})  # either of these instruction sets computes in bf16
_PRECISION_WORDS = {
    "float32": "fp32",
    "float": "fp32",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "i8": "int8",
}
_HOW = {"auto": " (the fastest that keeps its accuracy)", "mixed": ", and blocks in float where that is better"}


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of a deployment. Equal plans, data and journals give equal subnets.

    precision: the precision that was asked for, such as "auto".
    precisions: the precisions to build, in order.
    evaluations, seconds: the budget of the search; one of them is None.
    threads: number of threads of the runtime.
    supernet, data: folders; None for the supernet and the images that are shipped with hnas.
    site: the device behind ``--host``; None for this machine.
    asked: the target as the user gave it, which may be an alias.
    """

    device: Device
    precision: str
    precisions: tuple[str, ...]
    bounds: tuple[Bound, ...]
    evaluations: int | None
    seconds: float | None
    seed: int
    threads: int
    supernet: Path | None
    data: Path | None
    out: Path
    site: Site | None = None
    asked: str = ""

    @property
    def searched(self) -> tuple[str, ...]:
        """Return the precisions in which the search may measure subnets: the one that is fastest for the largest."""
        return tuple(each for each in self.precisions if each in ("fp32", "int8")) or self.precisions[:1]

    @property
    def mixes(self) -> bool:
        """Return whether blocks of an int8 artifact may be kept in float. This needs times measured on this machine."""
        return self.device.local and self.site is None and "int8" in self.precisions

    @property
    def measured(self) -> bool:
        """Return whether latency is measured, here or at ``site``. Otherwise the device profile predicts it."""
        return self.device.local or self.site is not None

    @property
    def transport(self) -> Transport:
        """Return the transport to the machine that verifies and measures artifacts."""
        return local if self.site is None else self.site.transport

    @property
    def machine(self) -> Machine:
        """Return the machine that verifies and measures artifacts."""
        return Machine.here() if self.site is None else self.site.machine

    @property
    def versions(self) -> Mapping[str, str]:
        """Return the versions of the runtime that measures; empty on this CPU, where artifacts record them."""
        if self.site is not None:
            return self.site.versions
        return runtimes.load(self.device.backend).versions() if self.builds_engines else {}

    @property
    def builds_engines(self) -> bool:
        """Return whether the runtime that measures may build an engine of its own: at ``site``, or on this GPU."""
        return self.site is not None or (self.device.local and self.device.kind == "gpu")

    def open(self, artifact: Artifact) -> Worker:
        """Start a worker on the machine that verifies and measures artifacts."""
        return Worker(artifact) if self.site is None else self.site.open(artifact)

    def bound(self, metric: str) -> Bound | None:
        """Return the constraint on ``metric``, or None."""
        return next((bound for bound in self.bounds if bound.metric == metric), None)

    def identity(self) -> dict[str, Any]:
        """Return the options that must be equal for a run to be resumed, as a JSON object."""

        def limit(metric: str) -> float | None:
            bound = self.bound(metric)
            return None if bound is None else bound.limit

        record: dict[str, Any] = {
            "device": self.device.name,
            "precision": self.precision,
            "precisions": list(self.precisions),
            "max_latency_ms": limit("latency_ms"),
            "min_accuracy": limit("accuracy"),
            "max_size_bytes": limit("size_bytes"),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "seed": self.seed,
            "threads": self.threads,
            "supernet": None if self.supernet is None else str(self.supernet),
            "data": None if self.data is None else str(self.data),
        }
        if self.device.power:
            record["power"] = self.device.power
        return record if self.site is None else {**record, "host": self.site.where}

    def lines(self) -> list[tuple[str, str]]:
        """Return the plan as pairs of name and value for a person."""
        goal = ", ".join(map(str, self.bounds)) or f"fastest within {GUARD:.0%} of the largest subnet's accuracy"
        budget = f"{self.evaluations} evaluations" if self.evaluations else f"{self.seconds:g} s"
        return [
            ("target", f"{self._aliased()}{self.device.name} ({self.device.title})"),
            *((("power mode", self.device.power_mode),) if self.device.power else ()),
            ("backend", self.device.backend),
            ("latency", self._latency()),
            ("precisions", f"{', '.join(self.precisions)}{_HOW.get(self.precision, '')}"),
            ("goal", goal),
            ("search", f"with predictors, {budget}, seed {self.seed}"),
            ("threads", str(self.threads)),
            ("supernet", str(self.supernet or "shipped with hnas (Fashion-MNIST)")),
            ("data", str(self.data or "shipped with hnas (a slice of Fashion-MNIST)")),
            ("out", str(self.out)),
        ]

    def _aliased(self) -> str:
        """Return the alias that the user gave, and that it stands for another name."""
        return f"{self.asked} stands for " if self.asked not in ("", self.device.name) else ""

    def _latency(self) -> str:
        if self.site is not None:
            return f"measured on {self.site.where} ({self.site.machine.cpu})"
        return "measured here" if self.measured else "predicted from the device's profile: not run on a device here"


def resolve(options: SearchOptions) -> Plan:
    """Return the plan of ``options``. Connect to the ``host`` if one is given.

    Raises:
        ValueError: an option is not understood or does not fit the device.
        Unavailable: the host does not answer.
    """
    device = hw_profiles.load(options.target, options.power)
    precision = device.precision if options.precision is None else options.precision
    evaluations, seconds = (EVALUATIONS, None) if options.budget is None else units.parse_budget(options.budget)
    if options.seed < 0:
        raise ValueError(f"seed is {options.seed}; it is 0 or more")
    site = None if options.host is None else visit(options.host, device)
    return Plan(
        device=device,
        threads=_threads(options.threads, device, site),
        precision=precision,
        precisions=_precisions_to_build(device, precision, site),
        bounds=_bounds(options),
        evaluations=evaluations,
        seconds=seconds,
        seed=options.seed,
        supernet=_path(options.supernet),
        data=_path(options.data),
        out=_path(options.out) or _run_folder(options.target, options.resume),
        site=site,
        asked=options.target,
    )


def require_packages(plan: Plan, *, search: bool) -> None:
    """Raise Unavailable, with the command that installs them, if packages that build for the plan are missing.

    search: whether the packages of the search are needed too.
    """
    device = plan.device
    if (missing := backends.cannot_build(device.backend, plan.precisions, search=search)) is not None:
        raise Unavailable(missing)


def _precisions_to_build(device: Device, wanted: str, site: Site | None = None) -> tuple[str, ...]:
    """Return the precisions to build, fp32 first.

    1. "auto": all precisions that the device and its backend offer, without w8, because int8 is faster. bf16 is left
       out if the CPU cannot compute in bf16.
    2. "mixed": int8. Later, blocks of int8 are kept in float.
    3. Any other: that precision.

    Raises:
        ValueError: the precision is unknown or not offered, or "mixed" is asked for a device that is not this machine.
    """
    if wanted not in PRECISIONS:
        mend = did_you_mean(_PRECISION_WORDS.get(wanted.lower(), wanted.lower()), PRECISIONS)
        raise ValueError(f"no precision {wanted!r}{mend}; known: {', '.join(PRECISIONS)}")
    backend = backends.load(device.backend)
    offered = tuple(precision for precision in backend.precisions if precision in device.precisions)
    if wanted == "auto":  # case 1
        lacking = {"w8"} if _has_bf16(device, site) else {"w8", "bf16"}
        return tuple(precision for precision in offered if precision not in lacking)
    if wanted == "mixed":  # case 2
        _require_this_machine(device, site)
        wanted = "int8"
    if wanted not in offered:
        raise ValueError(f"{device.name} with {device.backend} has no {wanted}; offered: {', '.join(offered)}")
    return (wanted,)  # case 3


def _require_this_machine(device: Device, site: Site | None) -> None:
    """Raise ValueError for mixed precision on another machine."""
    if not device.local or site is not None:
        where = device.name if site is None else site.where
        raise ValueError(f"mixed precision is chosen by times measured on this machine, and {where} is not it")


def _has_bf16(device: Device, site: Site | None) -> bool:
    """Return whether the CPU computes in bf16. Otherwise the runtime would refuse bf16, but only after a conversion."""
    if not device.local:
        return True
    machine = Machine.here() if site is None else site.machine
    return not BF16.isdisjoint(machine.instructions)


def _threads(wanted: int | None, device: Device, site: Site | None) -> int:
    """Return the number of threads of the runtime. Raise ValueError for more threads than the device has cores."""
    cores = (os.cpu_count() or 1) if site is None else site.machine.cores
    if wanted is not None and not 1 <= wanted <= cores:
        raise ValueError(f"threads is {wanted}; {'this machine' if site is None else site.where} has {cores} cores")
    if site is None and not device.local and wanted not in (None, device.threads):
        what = f"the latency of {device.name} is predicted for {device.threads} thread(s)"
        raise ValueError(f"threads is {wanted}; {what}; --threads needs a device on this machine or --host")
    return wanted or device.threads


def _bounds(options: SearchOptions) -> tuple[Bound, ...]:
    texts = {
        "latency_ms": options.max_latency,
        "accuracy": options.min_accuracy,
        "size_bytes": options.max_size,
    }
    return tuple(Bound.parse(metric, text) for metric, text in texts.items() if text is not None)


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)


def _run_folder(target: str, resume: bool) -> Path:
    """Return runs/TARGET or the next free runs/TARGET-2, -3, ...; with ``resume`` the last one that exists."""
    taken: list[Path] = []
    path = Path("runs") / target
    while path.exists():
        taken.append(path)
        path = Path("runs") / f"{target}-{len(taken) + 1}"
    return taken[-1] if resume and taken else path
