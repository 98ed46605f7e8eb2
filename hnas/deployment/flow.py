"""Build, verify, measure and judge networks one after the other, until an artifact can be kept.

Every deployment uses this module: a search supplies several subnets, a user supplies one network. Call
`try_networks(run, baseline, networks)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hnas.cost import Price
from hnas.deployment import mixing
from hnas.deployment.build import Built, Refused, Run, build_each, build_mixed, build_precision
from hnas.deployment.ends import EndToEnd, measure_ends, preprocessing_arrays
from hnas.deployment.judge import INT8_GAIN, JudgedArtifact, hardly_faster, judge_artifacts, objection_of
from hnas.deployment.network import NetworkRecord, StaticNetwork
from hnas.deployment.plan import GUARD, Plan
from hnas.export.bundle.manifest import Mixed
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.records import decode, encode
from hnas.export.graph.samples import tell
from hnas.export.proof.load import compare_again_if_busy
from hnas.export.proof.measurement import Comparison
from hnas.export.proof.slowdown import Slowdown
from hnas.export.proof.timing import compare_many

PROCESSES, BLOCKS = 5, 10  # of the final measurement


class NothingKept(ExportError):
    """No artifact of any network can be kept. The message states the reason for each artifact."""


@dataclass(frozen=True)
class Baseline:
    """The fp32 artifact that speedups are relative to.

    name: the name of its network in tables.
    against: a description, for instance "the same network in fp32 on the same backend".
    latency: the latency that the device profile predicts.
    own: whether it is the fp32 artifact of the network that is deployed.
    """

    built: Built
    name: str
    against: str
    latency: Price
    own: bool


@dataclass(frozen=True)
class Proof:
    """A network in every precision, measured and judged.

    make: makes the network again.
    rows: the artifacts with their verdicts.
    best: the index of the row to keep; None if no row can be kept.
    refused: the precisions without an artifact.
    predicted: precision -> latency that the device profile predicts.
    slowdown, mixed: as in the manifest.
    ends: a call of the kept artifact from end to end; None without ``--host``.
    """

    network: NetworkRecord
    make: Callable[[], StaticNetwork]
    rows: tuple[JudgedArtifact, ...]
    best: int | None
    refused: tuple[Refused, ...]
    predicted: Mapping[str, Price]
    slowdown: Slowdown | None = None
    mixed: Mixed | None = None
    ends: EndToEnd | None = None

    @property
    def kept(self) -> JudgedArtifact | None:
        """Return the row to keep, or None."""
        return None if self.best is None else self.rows[self.best]

    @property
    def speed(self) -> float:
        """Return the speedup of the row to keep; 0 if no row can be kept."""
        return 0.0 if self.kept is None else self.kept.speed

    @property
    def objections(self) -> list[str]:
        """Return why no row can be kept: one reason for each artifact that was tried."""
        found = [row.reason for row in self.rows]
        found += [f"{r.precision}: {r.reason}" for r in self.refused] if not self.rows else []
        return found + ([self.mixed.line()] if self.mixed else [])


def build_baseline(run: Run, network: StaticNetwork, against: str, *, own: bool) -> Baseline:
    """Build the fp32 artifact of ``network`` as the baseline."""
    run.notify(f"build {network.name} fp32", 0, len(wanted_precisions(run.plan, network)[0]) + 1)
    built = build_precision(run, network, "fp32")
    return Baseline(built, network.name, against, network.predict(run.plan.device, "fp32"), own)


def try_networks(run: Run, baseline: Baseline, networks: Sequence[Callable[[], StaticNetwork]]) -> Proof:
    """Try the networks in order until one is good enough. Return the proof of the best.

    1. The fastest artifact can be kept, or any artifact can be kept and a constraint is given: stop.
    2. Only a slower artifact can be kept, and no constraint is given: try the next network too. The highest speedup
       wins.
    3. For the best network, int8 with blocks in float is tried at the end, if it may help.

    networks: functions that make them, best first, so that only one is held in memory at a time.

    Raises:
        NothingKept: no artifact can be kept.
    """
    proofs: list[Proof] = []
    objections: list[str] = []
    for make in networks:
        try:
            proofs.append(_prove(run, baseline, make))
        except Unavailable:
            raise
        except ExportError as error:
            objections.append(str(error))
            continue
        if _good_enough(run.plan, proofs[-1]):  # case 1
            break
    if proofs:
        chosen = max(proofs, key=lambda proof: proof.speed)  # case 2
        final = _with_mixed(run, baseline, _with_slowdown(run, chosen))  # case 3
        if final.best is not None:
            return _with_ends(run, final)
        objections += [said for proof in proofs for said in (final if proof is chosen else proof).objections]
    raise NothingKept("; ".join(dict.fromkeys(objections)))


def _good_enough(plan: Plan, proof: Proof) -> bool:
    return proof.best is not None and (bool(plan.bounds) or proof.speed >= max(row.speed for row in proof.rows))


def _prove(run: Run, baseline: Baseline, make: Callable[[], StaticNetwork]) -> Proof:
    """Build one network in every precision, then measure and judge the artifacts."""
    network = make()
    wanted, left_out = wanted_precisions(run.plan, network)
    built, failed = build_each(
        wanted,
        lambda precision: build_precision(run, network, precision),
        lambda done: run.notify(f"build {network.name} {wanted[done - 1]}", done, len(wanted) + 1),
        spare=run.plan.mixes and network.record.mixable,
    )
    run.notify(f"measure {', '.join(each.label for each in built)}", 0, 1)
    predicted = {precision: network.predict(run.plan.device, precision) for precision in run.plan.precisions}
    _tell_small_gain(run.plan, network)
    return _judge(run, baseline, Proof(network.record, make, (), None, (*left_out, *failed), predicted), built)


def _tell_small_gain(plan: Plan, network: StaticNetwork) -> None:
    """Tell the user if int8 alone was asked for on a GPU, where it is predicted to be hardly faster than fp16."""
    device = plan.device
    if device.kind != "gpu" or plan.precision != "int8" or "fp16" not in device.peaks:
        return
    gain = network.predict(device, "fp16").value / network.predict(device, "int8").value
    if gain < INT8_GAIN:
        tell(f"{network.name}: {hardly_faster(gain, 'predicted')}; it is built because you asked for it")


def wanted_precisions(plan: Plan, network: StaticNetwork) -> tuple[list[str], list[Refused]]:
    """Return the precisions to build, and the precisions that "auto" leaves out: int8 if there are no real inputs.

    Raises:
        ValueError: int8 is asked for, and there are no real inputs.
    """
    if network.calibration is not None or "int8" not in plan.precisions:
        return list(plan.precisions), []
    if plan.precision != "auto":
        raise ValueError("int8 needs real inputs; give them with --calibration FILE (.npz or .npy, [N, ...] each)")
    missing = Refused("int8", "no real inputs were given; add --calibration FILE")
    return [precision for precision in plan.precisions if precision != "int8"], [missing]


def _judge(run: Run, baseline: Baseline, proof: Proof, built: Sequence[Built]) -> Proof:
    """Return the proof with these artifacts, measured interleaved with the baseline."""
    comparisons = _compare(run, baseline, proof.network, built)
    objection = objection_of(run.plan, proof.predicted, _default_goal(run.plan, baseline))
    on_gpu = run.plan.device.kind == "gpu" and {"fp16", "int8"} <= set(proof.predicted)
    predicted = {name: price.value for name, price in proof.predicted.items()} if on_gpu else None
    accuracy = proof.network.accuracy.get("search", 0.0)
    best, rows = judge_artifacts(built, comparisons, accuracy, GUARD, objection, predicted)
    return replace(proof, rows=tuple(rows), best=best)


def _default_goal(plan: Plan, baseline: Baseline) -> float | None:
    """Return the accuracy that an artifact must reach if the user gives no constraint and labels are known."""
    if plan.bounds or "search" not in baseline.built.accuracy:
        return None
    return baseline.built.accuracy["search"] - GUARD


def _compare(run: Run, baseline: Baseline, network: NetworkRecord, built: Sequence[Built]) -> list[Comparison | None]:
    """Time every artifact interleaved with the baseline, in fresh processes. All are None if nothing is measured."""
    plan = run.plan
    if not plan.measured or not built:
        return [None] * len(built)

    def compare(seed: int) -> list[Comparison]:
        return compare_many(
            baseline.built.artifact,
            [each.artifact for each in built],
            run.sample_of,
            seed=seed,
            processes=PROCESSES,
            blocks=BLOCKS,
            transport=plan.transport,
        )

    def measure() -> Any:
        found = compare(plan.seed) if plan.site else compare_again_if_busy(compare, plan.seed)
        return [comparison.to_json() for comparison in found]

    names = "+".join(each.artifact.digest[:12] for each in (baseline.built, *built))
    return [Comparison.from_json(c) for c in run.journal.call(f"comparison/{network.key}/{names}", measure)]


def _with_slowdown(run: Run, proof: Proof) -> Proof:
    """Return the proof. If int8 is not faster than the kept artifact, add the layers that are the reason."""

    def profile() -> Any:
        return encode(mixing.explain_slowdown(run.plan, proof.rows, proof.best))

    found = run.journal.call(f"slowdown/{proof.network.key}", profile)
    return proof if found is None else replace(proof, slowdown=decode(Slowdown, found, "journal"))


def _with_ends(run: Run, proof: Proof) -> Proof:
    """Return the proof. With ``--host``, add what a call of the kept artifact takes there from end to end."""
    if run.plan.site is None or proof.kept is None:
        return proof
    artifact = proof.kept.built.artifact

    def measure() -> Any:
        network = proof.make()
        pixels = network.preprocessing is not None
        arrays = preprocessing_arrays(network.preprocessing) if network.preprocessing else run.sample_of(artifact)
        with run.plan.open(artifact) as worker:
            return encode(measure_ends(worker, arrays, pixels=pixels))

    try:
        found = run.journal.call(f"ends/{proof.network.key}/{artifact.digest[:12]}", measure)
    except ExportError as error:  # the deployment is proved without this figure
        tell(f"the call from end to end was not measured: {error}")
        return proof
    return replace(proof, ends=decode(EndToEnd, found, "journal"))


def _with_mixed(run: Run, baseline: Baseline, proof: Proof) -> Proof:
    """Return the proof. If `mixing.reason_to_mix` gives a reason, add int8 with blocks in float as one more row."""
    if not proof.network.mixable:
        return proof
    floor = _floor(run.plan, baseline, proof.network)
    why = mixing.reason_to_mix(run.plan, proof.rows, proof.refused, proof.slowdown, floor)
    if why is None:
        return proof
    run.notify("mixed int8 with blocks in float", 0, 1)
    network = proof.make()

    def make() -> Built:
        slow = () if proof.slowdown is None else [layer.name for layer in proof.slowdown.layers]
        return build_mixed(run, network, floor, [row.built for row in proof.rows], slow)

    def outcome() -> str:
        found = mixing.attempt_mixed(make)
        return found if isinstance(found, str) else ""

    if said := run.journal.call(f"mixed/{proof.network.key}", outcome):
        return replace(proof, mixed=Mixed(why, said))
    made = make()
    run.notify("measure all with mixed", 0, 1)
    found = _judge(run, baseline, proof, [*(row.built for row in proof.rows), made])
    return replace(found, mixed=mixing.mixing_record(why, found.rows[-1]))


def _floor(plan: Plan, baseline: Baseline, network: NetworkRecord) -> float:
    """Return the accuracy that an artifact must reach on the search images: by guard, constraint or default goal."""
    if not network.accuracy:
        return 0.0
    bound = plan.bound("accuracy")
    goal = _default_goal(plan, baseline) or (0.0 if bound is None else bound.limit)
    return max(network.accuracy["search"] - GUARD, goal)
