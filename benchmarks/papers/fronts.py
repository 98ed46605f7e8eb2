"""A1: the front of a hybrid supernet against the fronts of single types, at measured latency (Shin, Cho, Kim 2024)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas import export
from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.claims import Claim, Plan
from hnas.benchmarks.papers.hybrid import SPACE
from hnas.benchmarks.papers.parts import Part, Parts, Result, part
from hnas.benchmarks.papers.report import Report, Table, verdict
from hnas.benchmarks.papers.statistics import hypervolume, paired
from hnas.benchmarks.papers.supernets import EVALUATION, alone, common, small_hybrid, space_of, train
from hnas.cost import Price
from hnas.space import Arch, Option
from hnas.strategies.evolution import Window, search
from hnas.study import Study
from hnas.supernet import Supernet

Floats = NDArray[np.float64]

FREE = "identity"
_SINGLES = ("mbconv", "fusedconv", "convnext")
_HYBRID = (FREE, "convnext", "mbconv", "fusedconv")
DEVICES = ("openvino-cpu", "onnxruntime-cpu")
FITTED = 96  # architectures that the latency model is fitted on
TOGETHER = 16  # measured in one session with the largest
BLOCKS = 6  # turns of each in a session
SHARES = (0.1, 0.35, 0.65, 1.0)  # the windows end at these quantiles of random hybrids
EVALUATIONS = 60  # of a search in one window
_STRATEGY = "spos"  # one pass a step: equal passes and equal steps are the same for every space


@dataclass(frozen=True)
class Small:
    """What a quick run has less of."""

    devices: tuple[str, ...] = DEVICES
    singles: tuple[str, ...] = _SINGLES
    fitted: int = FITTED
    shares: tuple[float, ...] = SHARES
    evaluations: int = EVALUATIONS


def size_of(plan: Plan) -> Small:
    """The sizes of a full or a quick run."""
    return Small(singles=("mbconv",), fitted=3, shares=(0.5, 1.0), evaluations=6) if plan.quick else Small()


def latencies(
    images: Path | None,
    seed: int,
    *,
    of: Mapping[str, str],
    arguments: Mapping[str, Any],
    archs: Sequence[Mapping[str, Any]],
    device: str,
    quick: bool = False,
) -> Result:
    """Latencies of whole subnets as exported, each in turns with the largest: its share of the largest's, low, high.

    fp32, one image, one thread. Weights are untrained: time depends on shapes alone.
    """
    space = space_of(SPACE, arguments)
    study = Study(Supernet(space, seed), data.named(of, images, seed, quick), seed=seed)
    members = [space.largest, *(space.arch(arch) for arch in archs)]
    raw, _ = study.task.held("search")
    inputs = [x.numpy() for x in study.task.inputs(raw[:1], space.example(space.largest))]
    with tempfile.TemporaryDirectory(prefix="hnas-") as folder:
        paths = [Path(folder, str(k)) for k in range(len(members))]
        for arch, path in zip(members, paths, strict=True):
            net = study.supernet.extract(arch, study.calibrate(arch))
            export.compile(net, inputs, device=device, path=path, threads=1)
        runners = [export.load(path) for path in paths]
        found = export.compare_many(runners[0], runners[1:], inputs, blocks=BLOCKS)
        shares = [[round(1 / x, 5) for x in (each.ratio, each.high, each.low)] for each in found]
        return {"shares": shares, "largest_ms": found[0].a.median_ms}


def fronts(
    images: Path | None,
    seed: int,
    *,
    of: Mapping[str, str],
    arguments: Mapping[str, Any],
    passes: int,
    models: Mapping[str, Mapping[str, float]],
    bounds: Mapping[str, Sequence[float]],
    evaluations: int,
    quick: bool = False,
) -> Result:
    """Train one supernet; on every device and under every bound the architecture that the search split ranks first.

    models, bounds: device -> the latency model's coefficients, and upper ends of windows in its units.
    """
    space = space_of(SPACE, arguments)
    task = data.named(of, images, seed, quick)
    trained = Study(Supernet(space, seed), task, seed=seed)
    found: Result = {**train(trained, _STRATEGY, {}, {"passes": passes}), "chosen": {}}
    for device, model in models.items():

        def cost(arch: Arch, model: Mapping[str, float] = model) -> Price:
            value = predicted(model, arch)
            return Price(value, "share", value, value, "predicted")

        study = Study(trained.supernet, task, {"latency": cost}, seed=seed)
        found["chosen"][device] = []
        for bound in bounds[device]:
            options: dict[str, Any] = {"cost": "latency", "evaluations": evaluations, "seed": seed}
            ended = search(study, space, windows={"latency": Window(high=bound)}, **options)
            inside = [each for each in ended if "accuracy" in each.metrics]
            best = max(inside, key=lambda each: each.metrics["accuracy"], default=None)
            if best is None:
                found["chosen"][device].append(None)
            else:
                test = trained.accuracy(best.arch, "test")
                found["chosen"][device].append({"arch": best.arch.to_json(), **best.metrics, "test": test})
    return found


# --- the latency model ------------------------------------------------------------------------------------------------


def features(arch: Mapping[str, Option]) -> dict[str, float]:
    """What the latency of an architecture is made of: each slot's type, and each type's sizes wherever it stands."""
    found: dict[str, float] = {"": 1.0}
    for name, option in arch.items():
        if name.endswith(".op"):
            found[f"{name}={option}"] = 1.0
        elif isinstance(option, int | float) and name.count(".") > 3:
            kind = ".".join(name.split(".")[-2:])
            found[kind] = found.get(kind, 0.0) + float(option)
    return found


def fit(archs: Sequence[Mapping[str, Option]], shares: Sequence[float], ridge: float = 1e-3) -> dict[str, float]:
    """Coefficients of a linear model by ridge regression; a feature that was never seen has none."""
    rows = [features(arch) for arch in archs]
    names = sorted({name for row in rows for name in row})
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    solved = np.linalg.solve(x.T @ x + ridge * np.eye(len(names)), x.T @ np.array(shares))
    return {name: round(float(value), 6) for name, value in zip(names, solved, strict=True)}


def predicted(model: Mapping[str, float], arch: Mapping[str, Option]) -> float:
    """The latency that the model gives, as a share of the largest subnet's."""
    return max(1e-3, sum(model.get(name, 0.0) * value for name, value in features(arch).items()))


def error(archs: Sequence[Arch], shares: Sequence[float], folds: int = 4) -> float:
    """The mean relative error on architectures that the model was not fitted on."""
    found = []
    for fold in range(min(folds, len(archs))):
        kept = [k for k in range(len(archs)) if k % folds != fold]
        model = fit([archs[k] for k in kept], [shares[k] for k in kept])
        found += [abs(predicted(model, archs[k]) / shares[k] - 1) for k in range(len(archs)) if k % folds == fold]
    return float(np.mean(found))


# --- parts ------------------------------------------------------------------------------------------------------------


def _base(plan: Plan) -> dict[str, Any]:
    return {"of": data.described(plan.images, plan.quick), "quick": plan.quick}


def sampled(plan: Plan) -> list[Arch]:
    """The architectures that the latency model is fitted on: half hybrids, half of single types."""
    count = size_of(plan).fitted
    found = common(SPACE, small_hybrid(plan.images), count // 2, 2 * count)
    rng = Random("single")
    for k in range(count - len(found)):
        kind = size_of(plan).singles[k % len(size_of(plan).singles)]
        found = [*found, space_of(SPACE, small_hybrid(plan.images, (FREE, kind))).sample(rng)]
    return list(dict.fromkeys(found))


def measured(plan: Plan, archs: Sequence[Arch], device: str) -> list[Part]:
    """Sessions that measure ``archs``."""
    setting = {**_base(plan), "arguments": small_hybrid(plan.images), "device": device}
    chunks = [archs[i : i + TOGETHER] for i in range(0, len(archs), TOGETHER)]
    return [
        part(latencies, 0, work=len(each) + 1, timed=True, **setting, archs=[arch.to_json() for arch in each])
        for each in chunks
    ]


def shares_of(plan: Plan, parts: Parts, archs: Sequence[Arch], device: str) -> list[float]:
    """Measured latencies as shares of the largest subnet's."""
    return [row[0] for each in measured(plan, archs, device) for row in parts[each]["shares"]]


def searches(plan: Plan, parts: Parts, types: Sequence[str]) -> list[Part]:
    """A supernet of these types, searched on every device, for every seed; the latency model must be measured."""
    small, archs = size_of(plan), sampled(plan)
    models = {d: fit([a.to_json() for a in archs], shares_of(plan, parts, archs, d)) for d in small.devices}
    rng, whole = Random("bounds"), space_of(SPACE, small_hybrid(plan.images))
    drawn = [whole.sample(rng) for _ in range(200)]
    bounds = {
        device: np.quantile([predicted(model, arch) for arch in drawn], small.shares).round(5).tolist()
        for device, model in models.items()
    }
    setting: dict[str, Any] = {
        "arguments": small_hybrid(plan.images, types),
        "passes": plan.passes,
        "evaluations": small.evaluations,
    }
    work = search_work(plan)
    known: dict[str, Any] = {"models": models, "bounds": bounds}
    return [part(fronts, seed, work=work, **_base(plan), **setting, **known) for seed in range(plan.seeds)]


def spaces_of(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Name -> types: the hybrid space and the single ones, which may skip a slot too."""
    return {"hybrid": _HYBRID, **{kind: (FREE, kind) for kind in size_of(plan).singles}}


def finalists(plan: Plan, parts: Parts, device: str) -> list[Arch]:
    """Every architecture that some search chose on a device."""
    whole = space_of(SPACE, small_hybrid(plan.images))
    chosen = [
        each
        for types in spaces_of(plan).values()
        for one in searches(plan, parts, types)
        for each in parts[one]["chosen"][device]
    ]
    return list(dict.fromkeys(whole.arch(each["arch"]) for each in chosen if each))


def retrained(plan: Plan, arch: Arch, seed: int) -> Part:
    """A chosen architecture trained alone."""
    setting: dict[str, Any] = {
        "space": SPACE,
        "arguments": small_hybrid(plan.images),
        "steps": max(1, plan.passes // 4),
    }
    work = setting["steps"] + EVALUATION
    return part(alone, seed, work=work, **_base(plan), **setting, arch=arch.to_json())


def _a1_parts(plan: Plan, parts: Parts) -> list[Part]:
    """Latencies for the model; then searches; then latencies of what they chose, and its training alone."""
    devices = size_of(plan).devices
    wanted = [each for device in devices for each in measured(plan, sampled(plan), device)]
    if not all(each in parts for each in wanted):
        return wanted
    searched = [each for types in spaces_of(plan).values() for each in searches(plan, parts, types)]
    wanted += searched
    if not all(each in parts for each in searched):
        return wanted
    for device in devices:
        wanted += measured(plan, finalists(plan, parts, device), device)
    whole = space_of(SPACE, small_hybrid(plan.images))
    for one in searched if plan.alone else []:
        for chosen in parts[one]["chosen"].values():
            wanted += [retrained(plan, whole.arch(each["arch"]), one.seed) for each in chosen if each]
    return wanted


def _a1_later(plan: Plan, parts: Parts) -> dict[str, float]:
    """The work of the searches, and of what they will have chosen."""
    searched = [each for each in _a1_parts(plan, parts) if each.run is fronts]
    if searched and all(each in parts for each in searched):
        return {}
    small = size_of(plan)
    spaces = plan.seeds * (1 + len(small.singles))
    chosen = spaces * len(small.shares) * len(small.devices)  # some of it twice
    later = {} if searched else {"fronts": search_work(plan) * spaces}
    if plan.alone:
        later["alone"] = chosen * (plan.passes / 4 + EVALUATION)
    return later | {"latencies": chosen}


def search_work(plan: Plan) -> float:
    """The work of training one supernet and searching it everywhere."""
    small = size_of(plan)
    return plan.passes + len(small.devices) * len(small.shares) * small.evaluations * EVALUATION / 4


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """A chosen architecture: measured latency as a share of the largest's; test accuracy inherited and alone (or 0).

    The same on the search split is what the best single type is chosen by.
    """

    latency: float
    inherited: float
    inherited_search: float
    alone: float = 0.0
    alone_search: float = 0.0


def points(plan: Plan, parts: Parts, types: Sequence[str], device: str) -> list[list[_Point | None]]:
    """[seeds][windows]"""
    whole = space_of(SPACE, small_hybrid(plan.images))
    known = finalists(plan, parts, device)
    shares = dict(zip(known, shares_of(plan, parts, known, device), strict=True))
    table: list[list[_Point | None]] = []
    for one in searches(plan, parts, types):
        row: list[_Point | None] = []
        for each in parts[one]["chosen"][device]:
            if each is None:
                row.append(None)
                continue
            arch = whole.arch(each["arch"])
            alone = parts[retrained(plan, arch, one.seed)] if plan.alone else {"test": 0.0, "search": 0.0}
            row.append(_Point(shares[arch], each["test"], each["accuracy"], alone["test"], alone["search"]))
        table.append(row)
    return table


def _a1_judge(plan: Plan, parts: Parts) -> Report:
    """Hypervolume of hybrid minus that of the best single type, for each device; and each window by itself."""
    verdicts, tables = [], []
    archs = sampled(plan)
    notes = []
    for device in size_of(plan).devices:
        found = {name: points(plan, parts, types, device) for name, types in spaces_of(plan).items()}
        for kind in ("inherited", "alone") if plan.alone else ("inherited",):
            volumes = {name: _volumes(rows, kind, found) for name, rows in found.items()}
            searched = {name: np.mean(_volumes(rows, f"{kind}_search", found)) for name, rows in found.items()}
            best = max((name for name in found if name != "hybrid"), key=searched.__getitem__)
            question = f"{device}, accuracy {kind}: hypervolume of hybrid > of {best}, the best single type"
            verdicts.append(verdict(question, paired(volumes["hybrid"], volumes[best]), "of the box"))
            rows = [[name, float(np.mean(volumes[name])), *_windows(found[name], kind)] for name in found]
            columns = ("space", "hypervolume", *(f"window {k + 1}" for k in range(len(rows[0]) - 2)))
            tables.append(
                Table(f"{device}, accuracy {kind} %, at measured latency (share of the largest)", columns, rows)
            )
        wrong = error(archs, shares_of(plan, parts, archs, device))
        notes.append(
            f"{device}: the latency model that searches use errs by {wrong:.1%} on others; fronts are measured"
        )
    notes.append("one pass a step, so equal passes and equal steps are one comparison")
    scale = (
        f"{data.sentence(plan.images, plan.quick)}; {SPACE}, five slots; {plan.passes:,} path passes a supernet, "
        f"{size_of(plan).evaluations} evaluations a window, "
        f"{f'alone {plan.passes // 4:,} steps' if plan.alone else 'nothing trained alone'}; {plan.seeds} seeds"
    )
    return Report(scale, verdicts, tables, notes)


def _volumes(rows: list[list[_Point | None]], kind: str, every: Mapping[str, list[list[_Point | None]]]) -> list[float]:
    """The hypervolume for each seed, as a share of the box that holds the points of all spaces."""
    points = [point for table in every.values() for row in table for point in row if point]
    low, high = (f(getattr(point, kind) for point in points) for f in (min, max))
    slowest = max(point.latency for point in points)
    worst, box = (low - 0.01, 1.01 * slowest), (high - low + 0.01) * 1.01 * slowest
    found = []
    for row in rows:
        inside = [point for point in row if point]
        values = [getattr(point, kind) for point in inside]
        found.append(hypervolume(values, [point.latency for point in inside], worst) / box)
    return found


def _windows(rows: list[list[_Point | None]], kind: str) -> list[str]:
    """Mean accuracy and latency over seeds, in each window."""
    shown = []
    for window in zip(*rows, strict=True):
        inside = [point for point in window if point]
        if not inside:
            shown.append("none fits")
            continue
        accuracy = 100 * float(np.mean([getattr(point, kind) for point in inside]))
        shown.append(f"{accuracy:.2f} at {np.mean([point.latency for point in inside]):.2f}")
    return shown


CLAIMS = (
    Claim(
        "A1",
        "hybrid against single types at equal measured latency",
        "a hybrid supernet yields architectures that are better than any found in a supernet of one operation",
        "the hypervolume (accuracy, measured latency) is larger than the best single type's in the paired interval",
        _a1_parts,
        _a1_judge,
        _a1_later,
    ),
)
