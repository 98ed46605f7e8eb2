"""From a trained supernet to a bundle: plan, search, materialise, fuse, quantise, export, verify, measure, bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Any

from hnas.deployment import bundling
from hnas.deployment.build import Stage, limited_compiler
from hnas.deployment.bundling import Result
from hnas.deployment.folder import opened
from hnas.deployment.plan import Plan, resolve
from hnas.deployment.proving import best_of
from hnas.deployment.searching import costs_of, finalists, tried
from hnas.deployment.source import open_source
from hnas.export.bundle.bundle import Bundle
from hnas.memory import reuse_memory
from hnas.study import Study


@dataclass(frozen=True)
class Deployment:
    """What ``deploy`` did, and the bundle that it left."""

    result: Result
    bundle: Bundle

    def to_json(self) -> dict[str, Any]:
        """Rows, front and manifest as plain values."""
        return bundling.summary(self.result, self.bundle)


def deploy(target: str, *, resume: bool = False, on: Stage | None = None, **options: Any) -> Deployment:
    """Search the supernet for ``target`` and leave a verified, measured bundle in ``out``.

    options: those of the command (``max_latency="5ms"``, ``min_accuracy="92%"``, ``max_size``, ``precision``,
    ``budget="40evals"``, ``seed``, ``threads``, ``supernet``, ``data``, ``out``, ``host``). ``on(stage, done, total)``
    follows.
    ValueError for wrong use, Unavailable for a missing runtime, ExportError when no artifact passes. A run's folder
    holds the journal and every artifact that was tried; the bundle in it appears whole or not at all.

    resume:
    1. the run was interrupted: finished evaluations, builds and measurements answer from its journal, the rest is done.
    2. it was finished: nothing is done again; its records and its bundle, checked byte for byte, are returned.
    3. there is no run in ``out``: it begins.
    4. the options, weights, images, CPU or version of hnas are others than those of the run: ValueError names which.
    5. another process uses ``out``: ValueError.
    """
    plan = resolve(target, resume=resume, **options)
    notify = on or _silent
    reuse_memory()
    source = open_source(plan.supernet, plan.data)
    with opened(plan, source, resume) as journal:
        study = Study(source.supernet, source.task, journal=journal, seed=plan.seed)
        with limited_compiler() as compiler, costs_of(study, plan, compiler) as costs:
            study.costs = costs
            candidates = tried(study, plan, notify)
            chosen = finalists(study, plan, candidates)
            result = best_of(study, plan, chosen, candidates, notify, compiler)
            notify("bundle", 0, 1)
            return Deployment(result, bundling.write(result, source, bundling.command(plan, options)))


def estimate(plan: Plan) -> str:
    """What the search of ``plan`` will take, from pricing and scoring one subnet here."""
    source = open_source(plan.supernet, plan.data)
    if plan.seconds is not None:
        return f"about {plan.seconds:.0f} s of search and a minute of building and measuring"
    study = Study(source.supernet, source.task, seed=plan.seed)
    with limited_compiler() as compiler, costs_of(study, plan, compiler) as costs:
        study.costs = costs
        arch = source.supernet.space.sample(Random(plan.seed))
        study.price(source.supernet.space.largest, "latency_ms")
        begun = time.monotonic()
        study.score(arch)
        each = time.monotonic() - begun
    total = each * (plan.evaluations or 0)
    return f"about {total:.0f} s of search ({each:.1f} s for one subnet here), then building and measuring"


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass
