"""Run the parts of study A1: measured latencies of subnets, and supernets searched under latency bounds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hnas import export
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.hybrid_plan import SPACE
from hnas.benchmarks.papers.latency_model import predict_latency
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import space_of, train_on_budget
from hnas.cost import Price
from hnas.space import Arch, Space
from hnas.strategies.evolution import EvolutionOptions, Window, search
from hnas.study import Study
from hnas.supernet import Supernet

_BLOCKS = 6  # interleaved blocks of a session
_STRATEGY = "spos"  # one pass in each step, so that equal passes are also equal steps


@dataclass(frozen=True, kw_only=True)
class LatencySetting:
    """The setting of a part that measures latencies: subnets ``archs`` of the hybrid space, on ``device``."""

    data: StudyData
    arguments: Mapping[str, Any]
    archs: Sequence[Mapping[str, Any]]
    device: str


@dataclass(frozen=True, kw_only=True)
class FrontSetting:
    """The setting of a part that trains and searches a supernet.

    models: device -> coefficients of its latency model.
    bounds: device -> upper bounds of latency, in the unit of the model.
    evaluations: of one search.
    """

    data: StudyData
    arguments: Mapping[str, Any]
    passes: int
    models: Mapping[str, Mapping[str, float]]
    bounds: Mapping[str, Sequence[float]]
    evaluations: int


def subnet_latencies(images: Path | None, seed: int, setting: LatencySetting) -> Result:
    """Measure exported subnets, interleaved with the largest; return each share of the largest's latency, low, high.

    fp32, one image, one thread. Weights are untrained, because time depends on shapes alone.
    """
    space = space_of(SPACE, setting.arguments)
    study = Study(Supernet(space, seed), setting.data.task(images, seed), seed=seed)
    members = [space.largest, *(space.arch(arch) for arch in setting.archs)]
    raw, _ = study.task.held("search")
    inputs = [x.numpy() for x in study.task.inputs(raw[:1], space.example(space.largest))]
    with tempfile.TemporaryDirectory(prefix="hnas-") as folder:
        paths = [Path(folder, str(k)) for k in range(len(members))]
        for arch, path in zip(members, paths, strict=True):
            net = study.supernet.extract(arch, study.calibrate(arch))
            export.compile(net, inputs, device=setting.device, path=path, threads=1)
        runners = [export.load(path) for path in paths]
        found = export.compare_many(runners[0], runners[1:], inputs, blocks=_BLOCKS)
        shares = [[round(1 / x, 5) for x in (each.ratio, each.high, each.low)] for each in found]
        return {"shares": shares, "largest_ms": found[0].a.median_ms}


def fronts(images: Path | None, seed: int, setting: FrontSetting) -> Result:
    """Train one supernet; for each device and bound, choose the architecture that is best on the search split."""
    space = space_of(SPACE, setting.arguments)
    trained = Study(Supernet(space, seed), setting.data.task(images, seed), seed=seed)
    spent = train_on_budget(trained, _STRATEGY, {"passes": setting.passes})
    chosen = {
        device: [_choose(trained, space, model, bound, setting.evaluations) for bound in setting.bounds[device]]
        for device, model in setting.models.items()
    }
    return {**spent, "chosen": chosen}


def _choose(
    trained: Study, space: Space, model: Mapping[str, float], bound: float, evaluations: int
) -> dict[str, Any] | None:
    """Search below one latency bound; return the most accurate architecture with its metrics, None where none fits."""
    study = Study(trained.supernet, trained.task, {"latency": partial(_predicted_price, model)}, seed=trained.seed)
    options = EvolutionOptions({"latency": Window(high=bound)}, "latency", evaluations, seed=trained.seed)
    ended = search(study, space, options)
    inside = [each for each in ended if "accuracy" in each.metrics]
    if not inside:
        return None
    best = max(inside, key=lambda each: each.metrics["accuracy"])
    return {"arch": best.arch.to_json(), **best.metrics, "test": trained.accuracy(best.arch, "test")}


def _predicted_price(model: Mapping[str, float], arch: Arch) -> Price:
    value = predict_latency(model, arch)
    return Price(value, "share", value, value, "predicted")
