"""C6: the step of a grown network as an artifact, beside torch, and beside the LSTM operator of the runtime itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from hnas import export, spaces
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.own_lstm import LstmStep, first_inputs, lstm_of_size, write_own_lstm
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.sequences import SequenceData, open_sequence, sequence_data
from hnas.benchmarks.papers.statistics import mean_interval
from hnas.cost.flops import parameters
from hnas.deployment.sequence import run_windows, step_figures, step_samples, torch_runner
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.device.machine import Machine
from hnas.export.graph.samples import Sample
from hnas.export.proof.load import compare_again_if_busy
from hnas.export.proof.measurement import Comparison
from hnas.export.remote.worker import Worker
from hnas.growth.loop import GrowthRules, grow
from hnas.space import Arch
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.loop import Schedule

__all__ = ("CLAIMS", "deployed_step")  # a part is identified by the name of its run function

_DEVICES = ("onnxruntime-cpu", "openvino-cpu", "tflite-cpu")
_PRECISIONS = ("fp32", "int8")
_LOST = 0.02  # of the score, as hnas-deploy allows
_CALIBRATION, _CHUNK = 256, 256  # samples of int8; windows that torch reads side by side
_WRONG = 1e-4  # largest error of the LSTM's file against torch


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The networks of a sequence: sizes of the space ``recurrent_cell``, and the recipe's learning rate."""

    widths: tuple[int, ...]
    nodes: tuple[int, ...]
    rate: float


# As in the recipes "lorenz" and "text".
_NETWORKS = {
    "lorenz": _Network(widths=(12, 16, 24), nodes=(1, 2, 3), rate=0.1),
    "text": _Network(widths=(64, 96), nodes=(1, 2), rate=0.5),
}


@dataclass(frozen=True, kw_only=True)
class _StepSetting:
    """The setting of a part: a network that grows for ``steps`` steps, and is deployed on ``device``.

    processes, blocks: of the measurement, as ``hnas.export.compare_many`` takes them.
    """

    data: SequenceData
    network: _Network
    steps: int
    device: str
    processes: int
    blocks: int


@dataclass(frozen=True)
class _Deployed:
    """A trained step with its task. ``state``: the shape of the state. ``weights``: those of the member."""

    task: Task
    step: nn.Module
    state: tuple[int, ...]
    weights: int
    arch: Arch
    samples: Sequence[Sample]
    metric: float


def deployed_step(folder: Path | None, seed: int, setting: _StepSetting) -> Result:
    """Train and deploy a network in fp32 and int8. Return scores, errors over many steps, and ms per step.

    The files are opened from disk in new processes. The LSTM has about as many weights as the member and is interleaved
    with the artifacts; its file is compared with torch's LSTM, and its operator is found in the runtime's profile.
    """
    made = _trained(folder, seed, setting.data, setting.network, setting.steps)
    features, outputs = made.samples[0][0].shape[1], made.task.space_arguments["outputs"]
    lstm = lstm_of_size(features, outputs, made.weights, seed)
    backend = setting.device.removesuffix("-cpu")
    with tempfile.TemporaryDirectory(prefix="hnas-") as place:
        path, kind = write_own_lstm(lstm, backend, Path(place))
        first = first_inputs(lstm, backend, made.samples[0][0])
        layers = _checked(path, kind, lstm, first)
        built, refused = _build(made, setting.device, Path(place))

        def compare(again: int) -> list[Comparison]:
            return export.compare_many(
                path,
                list(built.values()),
                lambda artifact: first if artifact.source == path else list(made.samples[0]),
                processes=setting.processes,
                blocks=setting.blocks,
                seed=again,
            )

        compared = dict(zip(built, compare_again_if_busy(compare, seed), strict=True))
        found = {precision: _figures(made, built[precision], each) for precision, each in compared.items()}
        versions = dict(next(iter(built.values())).versions)
    load = next(iter(compared.values())).load
    return {
        "arch": made.arch.to_json(),
        "weights": made.weights,
        "lstm": {"weights": parameters(lstm), "layers": layers},
        "network": made.metric,
        "precisions": found,
        "refused": refused,
        "load": None if load is None else load.line(),
        "machine": Machine.here().cpu,
        "versions": versions,
    }


@lru_cache(1)
def _trained(folder: Path | None, seed: int, data: SequenceData, network: _Network, steps: int) -> _Deployed:
    """Return the step of a network that has grown with SGD, as in the recipes before they had Adam.

    The parts of all devices share it.
    """
    task = open_sequence(data, seed, folder=folder)
    space = spaces.load("recurrent_cell")(**task.space_arguments, widths=network.widths, nodes=network.nodes)
    study = Study(Supernet(space, seed), task, seed=seed)
    schedule = Schedule(((steps, network.rate),), decay=0.0, clip=1.0)
    arch = grow(study, GrowthRules(finish=0.4), schedule).largest
    assert space.deployed is not None
    step, (_, state) = space.deployed(study.supernet.extract(arch, study.calibrate(arch)))
    samples = step_samples(step, task, state)
    metric = run_windows(torch_runner(step), task, state, "test", _CHUNK)
    return _Deployed(task, step, state, parameters(study.supernet.skeleton(arch)), arch, samples, metric)


def _checked(path: Path, kind: str, lstm: LstmStep, inputs: Sequence[Any]) -> list[str]:
    """Return the kinds of the layers that run for the LSTM.

    Raises:
        RuntimeError: the operator is not among them, or the file computes something else than torch's LSTM.
    """
    found = [layer.kind for layer in export.layers(path, inputs).layers]
    if kind not in found:
        raise RuntimeError(f"the runtime does not run {kind} but {', '.join(found)}")
    with Worker(Artifact.read(path)) as worker:
        output = torch.from_numpy(worker(*inputs)[0]).reshape(1, -1)
    zero = torch.zeros(1, lstm.cell.hidden_size)
    with torch.no_grad():
        error = float((lstm(torch.from_numpy(inputs[0]).reshape(1, -1), zero, zero)[0] - output).abs().max())
    if not error <= _WRONG:
        raise RuntimeError(f"the file of the LSTM is wrong by {error:.1e}")
    return found


def _build(made: _Deployed, device: str, folder: Path) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Return the artifact of each precision, and the reason where the product refuses one."""
    built, refused = {}, {}
    for precision in _PRECISIONS:
        try:
            built[precision] = export.compile(
                made.step,
                made.samples[0],
                path=folder / precision,
                device=device,
                precision=precision,
                calibration=made.samples[:_CALIBRATION] if precision == "int8" else None,
                threads=1,
            )
        except ExportError as error:
            if precision == "fp32":
                raise
            refused[precision] = str(error)
    return built, refused


def _figures(made: _Deployed, artifact: Artifact, compared: Comparison) -> dict[str, Any]:
    """Return the figures of an artifact. ``ratio``: how many times as fast as the LSTM it is."""
    found = step_figures(artifact, made.step, made.task, made.state)
    return {
        "score": found.metric,
        "drift": {str(mark): error for mark, error in found.drift.items()},
        "ms": round(compared.b.median_ms, 6),
        "lstm_ms": round(compared.a.median_ms, 6),
        "ratio": round(compared.ratio, 4),
        "interval": [round(compared.low, 4), round(compared.high, 4)],
        "layers": [layer.kind for layer in export.layers(artifact).layers],
    }


# --- judging ----------------------------------------------------------------------------------------------------------


def _c6_part(plan: StudyPlan, name: str, seed: int, device: str) -> StudyPart:
    processes, blocks = (1, 2) if plan.quick else (5, 10)
    setting = _StepSetting(
        data=sequence_data(name, plan.quick, plan.images),
        network=_NETWORKS[name],
        steps=max(2, plan.passes // 8),
        device=device,
        processes=processes,
        blocks=blocks,
    )
    return part(deployed_step, seed, setting, work=5.0 if name == "text" else 1.0, timed=True)


def _names(plan: StudyPlan) -> Iterable[str]:
    """Return the sequences; one in a quick run."""
    return list(_NETWORKS)[: 1 if plan.quick else None]


def _seeds(plan: StudyPlan) -> int:
    return 1 if plan.quick else plan.seeds


def _c6_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return every network on every device; the parts of one network follow each other and share its training."""
    return [
        _c6_part(plan, name, seed, device)
        for name in _names(plan)
        for seed in range(_seeds(plan))
        for device in _DEVICES
    ]


def _saved_time(figures: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return which share of the LSTM's time each artifact saves; below 0: the artifact is slower."""
    return [1 - 1 / float(each["ratio"]) for each in figures]


def _lost_score(results: Sequence[Result], precision: str) -> list[float]:
    """Return which share of the score of the network in torch each artifact loses."""
    pairs = [(float(each["network"]), float(each["precisions"][precision]["score"])) for each in results]
    return [(network - artifact) / abs(network) for network, artifact in pairs]


def _c6_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Judge the time and the score of every backend and precision."""
    verdicts, rows, notes = [], [], []
    for name in _names(plan):
        for device in _DEVICES:
            everything = [parts[_c6_part(plan, name, seed, device)] for seed in range(_seeds(plan))]
            for precision in _PRECISIONS:
                results = [each for each in everything if precision in each["precisions"]]
                where = f"{name}, {device}, {precision}"
                if len(results) < len(everything):
                    notes.append(f"{where}: refused for {len(everything) - len(results)} of {len(everything)} seeds")
                if not results:
                    continue
                figures = [each["precisions"][precision] for each in results]
                saved, lost = _saved_time(figures), _lost_score(results, precision)
                verdicts.append(judge_difference(f"{where}: less time than the LSTM", mean_interval(saved)))
                kept = mean_interval([_LOST - each for each in lost])
                verdicts.append(judge_difference(f"{where}: loses less than {_LOST:.0%} of the score", kept))
                rows.append([name, device, precision, *_row(results, figures, saved, lost)])
    scale = (
        f"{', '.join(_names(plan))}; recurrent_cell, grown for {max(2, plan.passes // 8)} steps; {_seeds(plan)} seeds"
    )
    return StudyReport(scale, verdicts, [StudyTable("steps", _COLUMNS, rows)], [*notes, *_notes(plan, parts)])


_COLUMNS = (
    *("sequence", "backend", "precision", "us a step", "LSTM us", "time saved % [95 %]", "of each seed"),
    *("score lost %", "error after 1 step", "after 200", "layers", "LSTM's layers"),
)


def _row(
    results: Sequence[Result], figures: Sequence[Mapping[str, Any]], saved: Sequence[float], lost: Sequence[float]
) -> list[Any]:
    drift = [fmean(float(each["drift"][mark]) for each in figures) for mark in ("1", "200")]
    return [
        1000 * median(float(each["ms"]) for each in figures),
        1000 * median(float(each["lstm_ms"]) for each in figures),
        mean_interval(saved).line(100),
        " ".join(f"{100 * each:.0f}" for each in saved),
        mean_interval(lost).line(100),
        *(f"{each:.1e}" for each in drift),
        " ".join(str(len(each["layers"])) for each in figures),
        len(results[0]["lstm"]["layers"]),
    ]


def _notes(plan: StudyPlan, parts: StudyParts) -> list[str]:
    results = [parts[each] for each in _c6_parts(plan, parts)]
    sizes = [float(each["lstm"]["weights"]) / float(each["weights"]) for each in results]
    loads = sorted({str(each["load"]) for each in results if each["load"]})
    return [
        "one thread; the runtime's LSTM has a linear readout, and its file is not written by hnas",
        "a profile names the operator of the LSTM: LSTM, RNNCell, UNIDIRECTIONAL_SEQUENCE_LSTM",
        f"weights of the LSTM: {min(sizes):.2f} to {max(sizes):.2f} of those of the member",
        "LiteRT's operator keeps its state; the other files, and all artifacts, have it as input and output",
        "scores are those of the test split, from step to step, each window from a zero state",
        f"the machine: {loads[0]} to {loads[-1]}" if loads else "the load of the machine is not known",
    ]


CLAIMS = (
    Claim(
        "C6",
        "a grown recurrent network is deployed as a step",
        "the artifact keeps the score, and its step is never slower than the runtime's own LSTM of equal parameters",
        f"fp32, on every backend: time saved above 0 AND less than {_LOST:.0%} of the score lost",
        _c6_parts,
        _c6_judge,
    ),
)
