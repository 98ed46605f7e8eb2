"""A1: compare the front of a hybrid supernet with the fronts of single types, at measured latency.

Shin, Cho, Kim (IEEE Access 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.fronts import FrontSetting, LatencySetting, fronts, subnet_latencies
from hnas.benchmarks.papers.hybrid_plan import SPACE
from hnas.benchmarks.papers.latency_model import cross_validate, fit_latency, predict_latency
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import hypervolume, paired
from hnas.benchmarks.papers.supernets import (
    EVALUATION,
    FREE,
    AloneSetting,
    alone,
    common_members,
    small_hybrid,
    space_of,
)
from hnas.space import Arch

_HYBRID = (FREE, "convnext", "mbconv", "fusedconv")
_TOGETHER = 16  # architectures that are measured in one session with the largest


@dataclass(frozen=True)
class _Sizes:
    """The sizes that a quick run reduces.

    singles: the types of the single-type spaces.
    fitted: architectures that the latency model is fitted on.
    shares: the latency bounds are these quantiles of random hybrids.
    evaluations: of a search below one bound.
    """

    devices: tuple[str, ...] = ("openvino-cpu", "onnxruntime-cpu")
    singles: tuple[str, ...] = ("mbconv", "fusedconv", "convnext")
    fitted: int = 96
    shares: tuple[float, ...] = (0.1, 0.35, 0.65, 1.0)
    evaluations: int = 60


def _sizes(plan: StudyPlan) -> _Sizes:
    return _Sizes(singles=("mbconv",), fitted=3, shares=(0.5, 1.0), evaluations=6) if plan.quick else _Sizes()


# --- parts ------------------------------------------------------------------------------------------------------------


def _fitted_archs(plan: StudyPlan) -> list[Arch]:
    """Return the architectures that the latency model is fitted on: half hybrids, half of single types."""
    count, singles = _sizes(plan).fitted, _sizes(plan).singles
    found = common_members(SPACE, small_hybrid(plan.images), count // 2, 2 * count)
    rng = Random("single")
    for k in range(count - len(found)):
        kind = singles[k % len(singles)]
        found = [*found, space_of(SPACE, small_hybrid(plan.images, (FREE, kind))).sample(rng)]
    return list(dict.fromkeys(found))


def _latency_parts(plan: StudyPlan, archs: Sequence[Arch], device: str) -> list[StudyPart]:
    """Return the sessions that measure ``archs``."""
    described, arguments = data.describe_images(plan.images, plan.quick), small_hybrid(plan.images)
    found = []
    for start in range(0, len(archs), _TOGETHER):
        chunk = [arch.to_json() for arch in archs[start : start + _TOGETHER]]
        setting = LatencySetting(data=described, arguments=arguments, archs=chunk, device=device)
        found.append(part(subnet_latencies, 0, setting, work=len(chunk) + 1, timed=True))
    return found


def _measured_shares(plan: StudyPlan, parts: StudyParts, archs: Sequence[Arch], device: str) -> list[float]:
    """Return the measured latencies, as shares of the largest subnet's."""
    return [row[0] for each in _latency_parts(plan, archs, device) for row in parts[each]["shares"]]


def _search_parts(plan: StudyPlan, parts: StudyParts, types: Sequence[str]) -> list[StudyPart]:
    """Return, for every seed, the part that searches a supernet of these types; latencies must be measured before."""
    sizes, archs = _sizes(plan), _fitted_archs(plan)
    known = [arch.to_json() for arch in archs]
    models = {device: fit_latency(known, _measured_shares(plan, parts, archs, device)) for device in sizes.devices}
    rng, whole = Random("bounds"), space_of(SPACE, small_hybrid(plan.images))
    drawn = [whole.sample(rng) for _ in range(200)]
    bounds = {
        device: np.quantile([predict_latency(model, arch) for arch in drawn], sizes.shares).round(5).tolist()
        for device, model in models.items()
    }
    setting = FrontSetting(
        data=data.describe_images(plan.images, plan.quick),
        arguments=small_hybrid(plan.images, types),
        passes=plan.passes,
        models=models,
        bounds=bounds,
        evaluations=sizes.evaluations,
    )
    return [part(fronts, seed, setting, work=_search_work(plan)) for seed in range(plan.seeds)]


def _search_work(plan: StudyPlan) -> float:
    """Return the work of training one supernet and of all its searches."""
    sizes = _sizes(plan)
    return plan.passes + len(sizes.devices) * len(sizes.shares) * sizes.evaluations * EVALUATION / 4


def _types_of_spaces(plan: StudyPlan) -> dict[str, tuple[str, ...]]:
    """Return the types of the hybrid space and of the single ones, which may skip a slot too."""
    return {"hybrid": _HYBRID, **{kind: (FREE, kind) for kind in _sizes(plan).singles}}


def _chosen_archs(plan: StudyPlan, parts: StudyParts, device: str) -> list[Arch]:
    """Return every architecture that some search chose on a device."""
    whole = space_of(SPACE, small_hybrid(plan.images))
    chosen = [
        each
        for types in _types_of_spaces(plan).values()
        for one in _search_parts(plan, parts, types)
        for each in parts[one]["chosen"][device]
    ]
    return list(dict.fromkeys(whole.arch(each["arch"]) for each in chosen if each))


def _alone_part(plan: StudyPlan, arch: Arch, seed: int) -> StudyPart:
    """Return the part that trains a chosen architecture alone."""
    setting = AloneSetting(
        data=data.describe_images(plan.images, plan.quick),
        space=SPACE,
        arguments=small_hybrid(plan.images),
        arch=arch.to_json(),
        steps=max(1, plan.passes // 4),
    )
    return part(alone, seed, setting, work=setting.steps + EVALUATION)


def _a1_parts(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    """Return the parts that are known to be needed.

    1. Latencies for the latency model.
    2. Searches, when 1 is finished.
    3. Latencies of the chosen architectures, and their training alone, when 2 is finished.
    """
    devices = _sizes(plan).devices
    wanted = [each for device in devices for each in _latency_parts(plan, _fitted_archs(plan), device)]
    if not all(each in parts for each in wanted):  # case 1
        return wanted
    searches = [each for types in _types_of_spaces(plan).values() for each in _search_parts(plan, parts, types)]
    if not all(each in parts for each in searches):  # case 2
        return wanted + searches
    measured = [each for device in devices for each in _latency_parts(plan, _chosen_archs(plan, parts, device), device)]
    return wanted + searches + measured + _alone_parts(plan, parts, searches)  # case 3


def _alone_parts(plan: StudyPlan, parts: StudyParts, searches: Sequence[StudyPart]) -> list[StudyPart]:
    """Return the parts that train the chosen architectures alone; none where the plan leaves them out."""
    if not plan.alone:
        return []
    whole = space_of(SPACE, small_hybrid(plan.images))
    return [
        _alone_part(plan, whole.arch(each["arch"]), one.seed)
        for one in searches
        for chosen in parts[one]["chosen"].values()
        for each in chosen
        if each
    ]


def _a1_later(plan: StudyPlan, parts: StudyParts) -> dict[str, float]:
    """Return the work of the searches, and of the parts that depend on their choices."""
    searched = [each for each in _a1_parts(plan, parts) if each.run is fronts]
    if searched and all(each in parts for each in searched):
        return {}
    sizes = _sizes(plan)
    spaces = plan.seeds * (1 + len(sizes.singles))
    chosen = spaces * len(sizes.shares) * len(sizes.devices)  # some of them twice
    later = {} if searched else {"fronts": _search_work(plan) * spaces}
    if plan.alone:
        later["alone"] = chosen * (plan.passes / 4 + EVALUATION)
    return later | {"subnet_latencies": chosen}


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """A chosen architecture.

    latency: measured, as a share of the largest's.
    inherited, alone: test accuracy with inherited weights, and trained alone (or 0).
    inherited_search, alone_search: the same on the search split, by which the best single type is chosen.
    """

    latency: float
    inherited: float
    inherited_search: float
    alone: float = 0.0
    alone_search: float = 0.0


def _points(plan: StudyPlan, parts: StudyParts, types: Sequence[str], device: str) -> list[list[_Point | None]]:
    """Return the points of a space: [seeds][bounds]."""
    whole = space_of(SPACE, small_hybrid(plan.images))
    known = _chosen_archs(plan, parts, device)
    shares = dict(zip(known, _measured_shares(plan, parts, known, device), strict=True))
    table: list[list[_Point | None]] = []
    for one in _search_parts(plan, parts, types):
        row: list[_Point | None] = []
        for each in parts[one]["chosen"][device]:
            if each is None:
                row.append(None)
                continue
            arch = whole.arch(each["arch"])
            lone = parts[_alone_part(plan, arch, one.seed)] if plan.alone else {"test": 0.0, "search": 0.0}
            row.append(_Point(shares[arch], each["test"], each["accuracy"], lone["test"], lone["search"]))
        table.append(row)
    return table


def _a1_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the hypervolume of the hybrid with that of the best single type, for each device."""
    verdicts, tables, notes = [], [], []
    archs = _fitted_archs(plan)
    for device in _sizes(plan).devices:
        found = {name: _points(plan, parts, types, device) for name, types in _types_of_spaces(plan).items()}
        for kind in ("inherited", "alone") if plan.alone else ("inherited",):
            verdict, table = _judge_fronts(found, device, kind)
            verdicts.append(verdict)
            tables.append(table)
        wrong = cross_validate(archs, _measured_shares(plan, parts, archs, device))
        notes.append(
            f"{device}: the latency model that searches use errs by {wrong:.1%} on others; fronts are measured"
        )
    notes.append("one pass a step, so equal passes and equal steps are one comparison")
    scale = (
        f"{data.sentence(plan.images, plan.quick)}; {SPACE}, five slots; {plan.passes:,} path passes a supernet, "
        f"{_sizes(plan).evaluations} evaluations a window, "
        f"{f'alone {plan.passes // 4:,} steps' if plan.alone else 'nothing trained alone'}; {plan.seeds} seeds"
    )
    return StudyReport(scale, verdicts, tables, notes)


def _judge_fronts(
    found: Mapping[str, list[list[_Point | None]]], device: str, kind: str
) -> tuple[ClaimVerdict, StudyTable]:
    """Judge the points of all spaces by one kind of accuracy; return the verdict and its table."""
    volumes = {name: _volumes(rows, kind, found) for name, rows in found.items()}
    searched = {name: np.mean(_volumes(rows, f"{kind}_search", found)) for name, rows in found.items()}
    best = max((name for name in found if name != "hybrid"), key=searched.__getitem__)
    question = f"{device}, accuracy {kind}: hypervolume of hybrid > of {best}, the best single type"
    rows = [[name, float(np.mean(volumes[name])), *_mean_points(found[name], kind)] for name in found]
    columns = ("space", "hypervolume", *(f"window {k + 1}" for k in range(len(rows[0]) - 2)))
    title = f"{device}, accuracy {kind} %, at measured latency (share of the largest)"
    verdict = judge_difference(question, paired(volumes["hybrid"], volumes[best]), "of the box")
    return verdict, StudyTable(title, columns, rows)


def _volumes(rows: list[list[_Point | None]], kind: str, every: Mapping[str, list[list[_Point | None]]]) -> list[float]:
    """Return the hypervolume for each seed, as a share of the box that holds the points of all spaces."""
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


def _mean_points(rows: list[list[_Point | None]], kind: str) -> list[str]:
    """Return the mean accuracy and latency over seeds, for each bound."""
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
