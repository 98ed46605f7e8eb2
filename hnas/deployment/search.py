"""Deploy a subnet of a supernet: a search supplies the networks to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from hnas.cost import Cost, Price
from hnas.cost.flops import parameters
from hnas.cost.roofline import BYTES, roofline
from hnas.deployment.build import Run
from hnas.deployment.bundle import Deployment, bundle_result, describe_subnet
from hnas.deployment.finalists import choose_finalists, goal_without_bounds, subnet_network
from hnas.deployment.flow import Baseline, NothingKept, Proof, build_baseline, try_networks
from hnas.deployment.folder import Unreachable, open_run
from hnas.deployment.forecaster import is_sequence
from hnas.deployment.options import Progress, SearchOptions
from hnas.deployment.plan import Plan
from hnas.deployment.pricing import MeasuredLatency, timing_sample
from hnas.deployment.result import Result
from hnas.deployment.scores import decode_scores, encode_scores
from hnas.deployment.sequence import deploy_step
from hnas.deployment.source import open_source
from hnas.export.compiling.compiler import Compiler, limited_compiler
from hnas.export.device.errors import ExportError
from hnas.memory import reuse_memory
from hnas.pareto import Candidate, front
from hnas.space import Arch
from hnas.strategies.evolution import Window
from hnas.strategies.surrogate import SurrogateOptions, search
from hnas.study import Study

AGAINST = "the largest subnet in fp32 on the same backend"


def deploy_subnet(plan: Plan, options: SearchOptions, notify: Progress) -> Deployment:
    """Deploy a subnet of a supernet, as `hnas.deployment.deploy` documents. ``plan`` is that of the options."""
    reuse_memory()
    if is_sequence(plan.supernet):
        return deploy_step(plan, options, notify)
    source = open_source(plan.supernet, plan.data)
    with open_run(plan, source, options.resume) as journal:
        study = Study(source.supernet, source.task, journal=journal, seed=plan.seed)
        study.known = _known_scores(study, source.scores)
        with limited_compiler() as compiler, _costs_of(study, plan, compiler) as costs:
            study.costs = costs
            candidates = _search_subnets(study, plan, notify)
            finalists = choose_finalists(study, plan, candidates)
            run = Run(plan, journal, compiler, plan.out / "artifacts", timing_sample(study), notify)
            baseline, proof = _try_finalists(run, study, finalists)
            ahead = front([each for each in candidates if "accuracy" in each.metrics], "latency_ms")
            result = Result(plan, baseline, proof, tuple(ahead), _searched(costs["latency_ms"], plan))
            notify("bundle", 0, 1)
            return bundle_result(result, describe_subnet(result, source, options.command(plan.device.name)))


def _known_scores(study: Study, scores: Mapping[Arch, float]) -> dict[Arch, float]:
    """Return the scores that the run began with: later ones would change which subnets a resumed run tries."""
    space = study.supernet.space
    kept = study.journal.call("scores", lambda: encode_scores(space, scores))
    return decode_scores(space, kept if isinstance(kept, dict) else {})


@contextmanager
def _costs_of(study: Study, plan: Plan, compiler: Compiler) -> Iterator[dict[str, Cost]]:
    """Yield the costs of the search: the latency on the plan's device, and the bytes of the weights."""
    smallest = min({**BYTES, "w8": 1}[precision] for precision in plan.precisions)

    def size(arch: Arch) -> Price:
        value = float(parameters(study.supernet.skeleton(arch)) * smallest)
        return Price(value, "bytes", value, value, "predicted")

    if not plan.measured:
        predicted = roofline(study.supernet.space, study.supernet.skeleton, plan.device, plan.precisions[-1])
        yield {"latency_ms": predicted, "size_bytes": size}
        return
    measured = MeasuredLatency(study, plan.device, plan.threads, plan.searched, plan.site, compiler=compiler)
    try:
        yield {"latency_ms": measured, "size_bytes": size}
    finally:
        measured.close()


def _searched(latency: Cost, plan: Plan) -> str:
    """Return the precision in which the search priced subnets."""
    return latency.precision if isinstance(latency, MeasuredLatency) else plan.precisions[-1]


def _search_subnets(study: Study, plan: Plan, notify: Progress) -> list[Candidate]:
    """Return every subnet that the search tried. The time of an interrupted run counts in the budget."""
    seconds = None if plan.seconds is None else max(0.0, plan.seconds - study.journal.spent)
    if seconds is not None and (plan.out / "bundle").exists():
        seconds = 0.0  # a finished run is not searched further, even if its budget is not used up
    candidates: list[Candidate] = []
    total = plan.evaluations or 0
    notify("search", 0, total)
    options = _search_options(study, plan, seconds)
    for candidate in search(study, study.supernet.space, options):
        candidates.append(candidate)
        notify("search", len(candidates), total)
    return candidates


def _search_options(study: Study, plan: Plan, seconds: float | None) -> SurrogateOptions:
    """Return what the search looks for; `hnas.deployment.finalists.choose_finalists` has the same cases.

    A constraint on latency or size: the most accurate subnet inside. Otherwise the fastest one that is accurate enough:
    as the constraint says, or as the largest subnet within the guard.
    """
    windows = {bound.metric: Window(bound.low, bound.high) for bound in plan.bounds}
    accurate = bool(windows.keys() - {"accuracy"})
    relative = not windows
    if relative:
        windows = {"accuracy": Window(low=goal_without_bounds(study, plan))}
    return SurrogateOptions(
        windows,
        accurate=accurate,
        relative=relative,
        evaluations=plan.evaluations,
        seconds=seconds,
        seed=plan.seed,
    )


def _try_finalists(run: Run, study: Study, finalists: Sequence[Candidate]) -> tuple[Baseline, Proof]:
    """Try the finalists. Raise Unreachable or ExportError, with every reason, if no artifact can be kept."""
    largest = study.supernet.space.largest
    baseline = build_baseline(run, subnet_network(study, largest, name="largest"), AGAINST, own=False)
    try:
        return baseline, try_networks(run, baseline, [partial(subnet_network, study, each.arch) for each in finalists])
    except NothingKept as error:
        kind = Unreachable if run.plan.bounds else ExportError
        raise kind(f"no artifact of the best {len(finalists)} subnets can be kept: {error}") from None
