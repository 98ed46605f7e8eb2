"""Deploy a recurrent network: its step, with the state as input and output, is what a device runs.

``deploy_step(plan, options, notify)`` is called by ``hnas.deployment.search`` for the supernet of a series or a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnas.cost.roofline import trace
from hnas.deployment.build import CALIBRATION, EVIDENCE, Run
from hnas.deployment.bundle import Deployment, bundle_result, describe_network
from hnas.deployment.flow import Baseline, NothingKept, Proof, build_baseline, try_networks
from hnas.deployment.folder import Unreachable, open_run
from hnas.deployment.forecaster import KINDS
from hnas.deployment.network import StaticNetwork
from hnas.deployment.options import Progress, SearchOptions
from hnas.deployment.own import AGAINST
from hnas.deployment.plan import Plan
from hnas.deployment.result import Result
from hnas.deployment.sequence_source import SequenceSource, open_sequence
from hnas.export.bundle.manifest import Data, Input, Manifest, SpaceRecord
from hnas.export.compiling.compiler import limited_compiler
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.graph.samples import Sample, to_sample
from hnas.export.remote.transports import local
from hnas.export.remote.worker import Worker
from hnas.space import Arch
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task

_MARKS = (1, 10, 50, 100, 200)  # steps after which the error of the outputs is reported
_CHUNK = 256  # windows that are inputs at a time
_TASKS = {kind: task for task, kind in KINDS.items()}  # kind in the record of a task -> task of a manifest
_LOST = 0.02  # of the score: an artifact that loses more is not taken

Runner = Callable[..., tuple[NDArray[Any], ...]]


@dataclass(frozen=True)
class _StepFigures:
    """The score and the errors of an artifact over many steps.

    metric: the task's metric on the test split, by the artifact from step to step.
    drift: step -> largest error of an output so far, relative to the largest output of the network in torch.
    """

    metric: float
    drift: Mapping[int, float]


@dataclass(frozen=True)
class _TestScores:
    """The scores on the test split: of the artifact from step to step, of the network in torch, and of baselines."""

    artifact: _StepFigures
    network: float
    baselines: Mapping[str, float]


def deploy_step(plan: Plan, options: SearchOptions, notify: Progress) -> Deployment:
    """Deploy the step of a recurrent network, as `hnas.deployment.deploy` documents.

    The artifact maps (x [1, F], h [1, M]) to (y [1, D], h [1, M]). The fastest artifact is taken that keeps the score
    of the network in torch on the search split, from step to step. The test split is only reported.

    Raises:
        ValueError: the data is not that of the training, or a constraint other than the latency is given.
        ExportError: no artifact keeps the score.
    """
    source = open_sequence(plan)
    supernet, task = source.supernet, source.task
    with open_run(plan, source, options.resume) as journal, limited_compiler() as compiler:
        study = Study(supernet, task, journal=journal, seed=plan.seed)
        arch = _best_member(study, plan, notify)
        step, shapes = _step_of(supernet, arch, study)
        samples = step_samples(step, task, shapes[1])
        network = StaticNetwork(
            name=f"step of {task.to_json()['name']}",
            key=arch.digest,
            module=step,
            example=samples[0],
            count_kernels=partial(trace, _step_of(supernet, arch, None)[0], *shapes),
            calibration=samples[:CALIBRATION],
            evidence=samples[:EVIDENCE],
            arch=arch,
            input_names=("x", "h"),
        )
        run = Run(plan, journal, compiler, plan.out / "artifacts", lambda _: network.example, notify)
        baseline = build_baseline(run, network, AGAINST, own=True)
        notify("run step by step", 0, 1)
        proof, artifact = _faithful(_prove(run, baseline, network), step, task, shapes[1], run)
        scores = _test_scores(run, artifact, step, task, shapes[1])
        result = Result(plan, baseline, proof)
        notify("bundle", 0, 1)
        found = bundle_result(result, _manifest(result, supernet, task, options, scores, source))
    return replace(found, table={**found.table, "notes": [*found.table["notes"], *_lines(task, scores)]})


def _best_member(study: Study, plan: Plan, notify: Progress) -> Arch:
    """Return the only member of a grown or derived space, or the best of random members on the search split.

    The smallest and the largest member are always scored. The time of an interrupted run counts in the budget.
    """
    space, rng, scores = study.supernet.space, Random(plan.seed), dict[Arch, float]()
    if space.size == 1:
        return space.largest
    most = space.size if plan.evaluations is None else plan.evaluations
    for k, arch in enumerate(chain((space.smallest, space.largest), (space.sample(rng) for _ in count()))):
        late = plan.seconds is not None and study.journal.spent >= plan.seconds and not study.scored(arch)
        if k >= 2 and (late or k >= most):
            break
        scores[arch] = study.search_accuracy(arch)
        notify("search", len(scores), plan.evaluations or 0)
    return max(sorted(scores, key=lambda arch: arch.digest), key=scores.__getitem__)


def _prove(run: Run, baseline: Baseline, network: StaticNetwork) -> Proof:
    """Build, verify and measure the step. Raise Unreachable if no artifact meets a constraint."""
    try:
        return try_networks(run, baseline, [lambda: network])
    except NothingKept as error:
        kind = Unreachable if run.plan.bounds else ExportError
        raise kind(str(error)) from None


def _step_of(supernet: Supernet, arch: Arch, study: Study | None) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    """Return the step of a member and the shapes of its inputs; without a study, on the meta device."""
    deployed = supernet.space.deployed
    if deployed is None:
        raise ValueError(f"the space {supernet.space.name!r} has no step to deploy")
    net = supernet.skeleton(arch) if study is None else supernet.extract(arch, study.calibrate(arch))
    return deployed(net)


@torch.no_grad()
def step_samples(step: nn.Module, task: Task, state: tuple[int, ...]) -> list[Sample]:
    """Return the inputs of steps in windows of the calibration split, spread over the steps of a window."""
    (x,) = task.inputs(task.held("calibration")[0][:CALIBRATION], ())
    h, found = torch.zeros(len(x), *state), []
    for row in x.unbind(1):
        found.append([to_sample([row[k : k + 1], h[k : k + 1]]) for k in range(len(x))])
        _, h = step(row, h)
    return [sample for k in range(len(x)) for sample in (steps[k] for steps in found[k % 3 :: 3])][: 2 * CALIBRATION]


def _faithful(proof: Proof, step: nn.Module, task: Task, state: tuple[int, ...], run: Run) -> tuple[Proof, Artifact]:
    """Return the proof whose best row keeps the score on the search split, and the artifact of that row.

    The best row is tried first, then the other allowed rows, the fastest of them first; if nothing is measured, the
    lowest precision first. Raise ExportError if none keeps the score.
    """

    def score() -> float:
        with Worker(artifact, transport=run.plan.transport) as worker:
            return run_windows(worker, task, state, "search")

    metric = run_windows(torch_runner(step), task, state, "search", _CHUNK)
    rows, lost = list(proof.rows), []
    allowed = [k for k, row in enumerate(rows) if row.allowed]
    for k in sorted(allowed, key=lambda k: (k == proof.best, rows[k].speed, k), reverse=True):
        artifact = rows[k].built.artifact
        found = float(run.journal.call(f"windows/{artifact.digest}", score))
        if found >= metric - _LOST * abs(metric):
            rows[k] = replace(rows[k], verdict="kept")
            kept = proof if k == proof.best else replace(proof, slowdown=None, ends=None)  # those of another row
            return replace(kept, rows=tuple(rows), best=k), artifact
        said = f"{task.score.name} {task.score.text(found)} on the search rows from step to step"
        said += f", in torch {task.score.text(metric)}"
        rows[k] = replace(rows[k], verdict=f"not taken: {said}", allowed=False)
        lost.append(rows[k].reason)
    raise ExportError(f"no artifact keeps the score over many steps: {'; '.join(lost)}")


def _test_scores(run: Run, artifact: Artifact, step: nn.Module, task: Task, state: tuple[int, ...]) -> _TestScores:
    """Return the scores on the test split. An interrupted run leaves them in its journal."""

    def figures() -> Any:
        found = step_figures(artifact, step, task, state, run.plan)
        network = run_windows(torch_runner(step), task, state, "test", _CHUNK)
        return asdict(_TestScores(found, network, task.baselines("test") if hasattr(task, "baselines") else {}))

    said = run.journal.call(f"figures/{artifact.digest}", figures)
    drift = {int(mark): error for mark, error in said["artifact"]["drift"].items()}  # JSON has no keys that are numbers
    return _TestScores(_StepFigures(said["artifact"]["metric"], drift), said["network"], said["baselines"])


def step_figures(
    artifact: Artifact, step: nn.Module, task: Task, state: tuple[int, ...], plan: Plan | None = None
) -> _StepFigures:
    """Run an artifact from step to step in a process of its own, and compare it with the network in torch.

    The error grows with the steps, because each of the two networks reads its own state.
    """
    with Worker(artifact, transport=local if plan is None else plan.transport) as worker:
        drift = _drift(worker, torch_runner(step), task, state)
        return _StepFigures(run_windows(worker, task, state, "test"), drift)


def run_windows(run: Runner, task: Task, state: tuple[int, ...], split: str, batch: int = 1) -> float:
    """Return the task's metric on a split, by a step (x [N, F], h [N, M]) -> (y [N, D], h [N, M]).

    batch: the number N of windows that the step reads side by side (1: that of an artifact).
    """
    raw, labels = task.held(split)
    outputs = []
    for first in range(0, len(raw), _CHUNK):  # all windows of a text are too large as one-hot inputs
        windows = task.inputs(raw[first : first + _CHUNK], ())[0].numpy()
        outputs += [_run(run, windows[k : k + batch], state) for k in range(0, len(windows), batch)]
    return task.metric(torch.from_numpy(np.concatenate(outputs)), labels)


def _run(run: Runner, x: NDArray[np.float32], state: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the outputs [N, rows, D] of a step that reads windows [N, rows, F] from a zero state."""
    h, found = np.zeros((len(x), *state), np.float32), []
    for k in range(x.shape[1]):
        y, h = run(x[:, k], h)
        found.append(y)
    return np.stack(found, 1)


def _drift(run: Runner, exact: Runner, task: Task, state: tuple[int, ...]) -> dict[int, float]:
    """Return the largest error of an output up to each of ``_MARKS``, over successive windows without a reset."""
    (x,) = task.inputs(task.held("test")[0][: _MARKS[-1]], ())  # each window has at least one row
    rows = x.flatten(0, 1).numpy()
    rows = np.concatenate([rows] * -(-_MARKS[-1] // len(rows)))[: _MARKS[-1]]
    found, wanted = (_run(each, rows[None], state)[0] for each in (run, exact))
    errors = np.abs(found - wanted).max(1) / max(float(np.abs(wanted).max()), 1e-12)
    return {mark: float(errors[:mark].max()) for mark in _MARKS}


def torch_runner(step: nn.Module) -> Runner:
    """Return the function that runs a step in torch on arrays."""

    @torch.no_grad()
    def run(*inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        outputs: tuple[Tensor, ...] = step(*map(torch.from_numpy, inputs))
        return tuple(each.numpy() for each in outputs)

    return run


def _manifest(
    result: Result, supernet: Supernet, task: Task, options: SearchOptions, found: _TestScores, source: SequenceSource
) -> Manifest:
    """Return the manifest: ``input.preprocessing`` holds all that a forecast needs, and the scores."""
    said, plan, built, arch = task.to_json(), result.plan, result.kept.built, result.arch
    assert arch is not None
    (first, _), space, score = built.artifact.inputs, supernet.space.to_json(), task.score
    sign = 1 if score.higher else -1
    scores = {"name": score.name, "artifact": sign * found.artifact.metric, "network": sign * found.network}
    scores |= {"baselines": {name: sign * value for name, value in found.baselines.items()}}
    drift = {str(mark): error for mark, error in found.artifact.drift.items()}
    return replace(
        describe_network(result, options.command(plan.device.name), seed=plan.seed),
        name=f"{said['name']}-{plan.device.name}-{built.label}-{arch.digest}",
        task=_TASKS[said["kind"]],
        arch=arch.to_json(),
        space=SpaceRecord(space["name"], space["arguments"], source.digest),
        input=Input(first.shape, first.dtype, "a row, then the state", {**said, "score": scores, "drift": drift}),
        seeds={"search": plan.seed, "supernet": supernet.seed},
        data=Data(said["name"], source.digests),
    )


def _lines(task: Task, found: _TestScores) -> list[str]:
    score = task.score
    said = [f"{score.text(found.artifact.metric)} by the artifact from step to step"]
    said += [f"{score.text(found.network)} in torch"]
    said += [f"{score.text(value)} {name}" for name, value in found.baselines.items()]
    drift = ", ".join(f"{error:.1e} in {mark}" for mark, error in found.artifact.drift.items())
    return [f"{score.name} on the test rows: {', '.join(said)}", f"largest error of an output, by steps: {drift}"]
