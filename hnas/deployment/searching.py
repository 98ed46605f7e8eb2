"""The search of a deployment: what windows bound, which subnets are tried, and which of them are worth building."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hnas.cost import Cost, Price
from hnas.cost.flops import parameters
from hnas.cost.roofline import BYTES, roofline
from hnas.deployment.build import Stage
from hnas.deployment.folder import Unreachable
from hnas.deployment.plan import GUARD, Plan
from hnas.deployment.pricing import Measured, failures
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.errors import ExportError
from hnas.pareto import Candidate, front
from hnas.space import Arch
from hnas.study import Study

_SLACK = 0.003  # of top-1: about what int8 takes; of a subnet that is nearer to the goal int8 would seldom be kept
FINALISTS = 3  # how many subnets are built, one after the other, until one keeps every window as an artifact


@contextmanager
def costs_of(study: Study, plan: Plan, compiler: Compiler) -> Iterator[dict[str, Cost]]:
    """What the windows bound: latency as this device has it, and the bytes of the weights."""
    smallest = min({**BYTES, "w8": 1}[p] for p in plan.precisions)

    def size(arch: Arch) -> Price:
        value = float(parameters(study.supernet.skeleton(arch)) * smallest)
        return Price(value, "bytes", value, value, "predicted")

    if not plan.measured:
        precision = plan.precisions[-1]
        yield {
            "latency_ms": roofline(study.supernet.space, study.supernet.skeleton, plan.device, precision),
            "size_bytes": size,
        }
        return
    measured = Measured(study, plan.device, plan.threads, plan.searched, plan.site, compiler=compiler)
    try:
        yield {"latency_ms": measured, "size_bytes": size}
    finally:
        measured.close()


def tried(study: Study, plan: Plan, notify: Stage) -> list[Candidate]:
    """Every subnet that the search looked at, within the budget and what an interrupted run has used of it."""
    from hnas.strategies.evolution import EvolutionOptions, Window, search

    windows = {metric: Window(low, high) for metric, (low, high) in plan.windows.items()}
    seconds = None if plan.seconds is None else max(0.0, plan.seconds - study.journal.spent)
    if seconds is not None and (plan.out / "bundle").exists():
        seconds = 0.0  # a finished run is not searched further, whatever its clock says is left
    space, found = study.supernet.space, []
    total = plan.evaluations or 0
    notify("search", 0, total)
    options = EvolutionOptions(windows, evaluations=plan.evaluations, seconds=seconds, seed=plan.seed)
    for candidate in search(study, space, options):
        found.append(candidate)
        notify("search", len(found), total)
    return found


def finalists(study: Study, plan: Plan, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates to build, best first.

    1. Latency or size is bounded: the most accurate inside all windows; the least of all is the last resort, as files
       and artifacts have more to them than the search knows.
    2. Only accuracy is: the fastest inside.
    3. Nothing is: the fastest within the guard of the largest subnet's accuracy; its artifact is held to that, too.
       Where a lower precision is to be tried, those that have a little accuracy to lose to it come first.
    """
    scored = [c for c in candidates if "accuracy" in c.metrics]
    inside = [c for c in scored if all(low <= c.metrics[m] <= high for m, (low, high) in plan.windows.items())]
    if not inside:
        failed = failures(study)
        if failed and all(np.isinf(c.metrics["latency_ms"]) for c in candidates):
            raise ExportError(f"none of {len(candidates)} subnets could be compiled and run; the first: {failed[0]}")
        without = f"; {len(failed)} could not be compiled and run, the first: {failed[0]}" if failed else ""
        raise Unreachable(nearest(plan, candidates) + without)
    ahead = front(inside, "latency_ms")
    if plan.max_latency_ms is not None or plan.max_size_bytes is not None:
        bound = "latency_ms" if plan.max_size_bytes is None else "size_bytes"
        last = min(inside, key=lambda candidate: candidate.metrics[bound])
        best = [c for c in ahead[::-1] if c.arch != last.arch]
        return [*best[: FINALISTS - 1], last]
    if plan.min_accuracy is not None:
        return ahead[:FINALISTS]
    goal = study.score(study.supernet.space.largest).metrics["accuracy"] - GUARD - 1e-9
    within = [c for c in ahead if c.metrics["accuracy"] >= goal] or ahead[-1:]
    slack = _SLACK if plan.precisions != ("fp32",) else 0.0
    return sorted(within, key=lambda c: c.metrics["accuracy"] < goal + slack)[:FINALISTS]  # stable: by latency in each


def nearest(plan: Plan, candidates: list[Candidate]) -> str:
    """What the search reached of the windows that nothing satisfies, or of all where each can be kept alone."""
    missed: list[str] = []
    kept: list[str] = []
    for metric, (low, high) in plan.windows.items():
        values = [c.metrics[metric] for c in candidates if np.isfinite(c.metrics.get(metric, np.inf))]
        if not values:
            continue
        best = max(values) if metric == "accuracy" else min(values)
        said = kept if low <= best <= high else missed
        if metric == "latency_ms":
            said.append(f"the fastest takes {best:.3g} ms (asked: {high:g})")
        elif metric == "size_bytes":
            said.append(f"the smallest has {best / 1e3:.3g} KB of weights (asked: {high / 1e3:g})")
        else:
            said.append(f"the most accurate inside the other bounds reaches {best:.1%} (asked: {low:.1%})")
    nearest = "; ".join(missed or ["each alone can be kept, no subnet keeps all", *kept])
    return f"no subnet of {len(candidates)} tried keeps every bound: {nearest}; relax one of them"
