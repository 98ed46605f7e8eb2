"""E1: the sampler of MSG-DAS: probabilities, exclusivity, and its gradient against enumeration (Tan et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnas.benchmarks.papers import tabular
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import mean_interval
from hnas.benchmarks.papers.supernets import space_of
from hnas.benchmarks.papers.tabular_plan import digits_data
from hnas.sampling.gumbel import draw_ranked

__all__ = ("CLAIMS", "draws")  # a part is identified by the name of its run function

Floats = NDArray[np.float64]

_DRAWS, _QUICK_DRAWS = 400_000, 2_000  # of each seed
_GRADIENTS = 200_000  # draws at most whose gradients are averaged
_LIMIT, _QUICK_LIMIT = 0.002, 0.04  # largest error of a probability
_TAUS = (0.1, 1.0, 10.0)
_COSINE = 0.9  # of the mean gradient with the exact one
_REST = 0.1  # largest norm of the sum over all ranks, as a share of the first rank's exact gradient
_CHECKED = 16  # draws of which the code's gradient is compared with the formula


@dataclass(frozen=True, kw_only=True)
class _DrawSetting:
    """The setting of a part: the number of draws, and the temperatures of the gradients. No image is read."""

    data: StudyData
    draws: int
    taus: Sequence[float]


def draws(images: Path | None, seed: int, setting: _DrawSetting) -> Result:
    """Draw from ``hnas.sampling.gumbel``, and compare with enumeration over all orders of five types.

    The logits and the losses of the types are drawn by ``seed``. The result holds counts and exact probabilities of the
    ordered pairs of the first two types, and the number of draws with a repeated type. It also holds the mean and the
    exact gradient of each rank.
    """
    del images
    space = space_of(tabular.SPACE, {})
    random = np.random.default_rng(seed)
    n = len(space.choices[f"{space.slots[0]}.op"].options)
    logits, losses = random.normal(0, 1, n), random.normal(0, 1, n)
    extra = {slot: torch.tensor(logits, dtype=torch.float32) for slot in space.slots}
    rng = Random(f"draws/{seed}")
    counts, repeated = np.zeros((n, n), int), 0
    for _ in range(setting.draws // len(space.slots)):
        for types in draw_ranked(space, rng, extra).values():
            counts[types.order[0], types.order[1]] += 1
            repeated += len(set(types.order)) < n
    p, count = np.exp(logits) / np.exp(logits).sum(), min(_GRADIENTS, setting.draws)
    exact = p[:, None] * p[None] / (1 - p[:, None]) * (1 - np.eye(n))
    return {
        "counts": counts.tolist(),
        "pairs": exact.round(8).tolist(),
        "repeated": int(repeated),
        "exact": [row.tolist() for row in _exact_gradients(logits, losses)],
        "means": {str(tau): _mean_gradients(logits, losses, tau, seed, count) for tau in setting.taus},
        "formula": max(_largest_difference(logits, losses, tau, seed) for tau in setting.taus),
    }


def _exact_gradients(logits: Floats, losses: Floats) -> list[Floats]:
    """Return, for each rank, the gradient of its expected loss by the logits, from all orders of the types."""
    theta = torch.tensor(logits, requires_grad=True)
    p = torch.softmax(theta, 0)
    orders = list(permutations(range(len(logits))))
    probability = torch.stack([_probability(p, order) for order in orders])
    found = []
    for rank in range(len(logits)):
        expected = (probability * torch.tensor([losses[order[rank]] for order in orders])).sum()
        (gradient,) = torch.autograd.grad(expected, theta, retain_graph=True)
        found.append(gradient.numpy())
    return found


def _probability(p: Tensor, order: Sequence[int]) -> Tensor:
    """Return the probability that the types are drawn in this order, without replacement."""
    left, found = p.new_ones(()), p.new_ones(())
    for kind in order[:-1]:
        found = found * p[kind] / left
        left = left - p[kind]
    return found


def _mean_gradients(logits: Floats, losses: Floats, tau: float, seed: int, count: int) -> list[list[float]]:
    """Return, for each rank, the mean gradient of the straight-through gates over ``count`` draws."""
    noise = np.random.default_rng([seed, round(100 * tau)]).gumbel(size=(count, len(logits)))
    return [_gradients(logits, losses, noise, rank, tau).mean(0).tolist() for rank in range(len(logits))]


def _gradients(logits: Floats, losses: Floats, noise: Floats, rank: int, tau: float) -> Floats:
    """Return [draws, types], the gradient of the loss of the type with this rank, as ``gates`` defines it."""
    keys = logits + noise  # a constant added to all keys changes nothing
    place = (-keys).argsort(1).argsort(1)
    keys = np.where(place >= rank, keys, -np.inf)
    soft = np.exp((keys - keys.max(1, keepdims=True)) / tau)
    soft /= soft.sum(1, keepdims=True)
    found: Floats = soft * (losses - (soft * losses).sum(1, keepdims=True)) / tau
    return found


def _largest_difference(logits: Floats, losses: Floats, tau: float, seed: int) -> float:
    """Return the largest difference between a gradient of ``_RankedTypes.gates`` and that of ``_gradients``."""
    space, rng, found = space_of(tabular.SPACE, {}), Random(f"formula/{seed}"), 0.0
    for _ in range(_CHECKED):
        theta = {slot: torch.tensor(logits, dtype=torch.float64, requires_grad=True) for slot in space.slots}
        slot, types = next(iter(draw_ranked(space, rng, theta).items()))
        for rank in range(len(logits)):
            loss = (types.gates(rank, tau) * torch.tensor(losses)).sum()
            (gradient,) = torch.autograd.grad(loss, theta[slot])
            formula = _gradients(logits, losses, types.noise.numpy()[None], rank, tau)[0]
            found = max(found, float(np.abs(gradient.numpy() - formula).max()))
    return found


# --- E1 ---------------------------------------------------------------------------------------------------------------


def _e1_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return the draws of every seed."""
    count = _QUICK_DRAWS if plan.quick else _DRAWS
    setting = _DrawSetting(data=digits_data(plan), draws=count, taus=_TAUS)
    return [part(draws, seed, setting, work=count) for seed in range(plan.seeds)]


def _e1_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare counted with exact probabilities, and mean with exact gradients."""
    results = [parts[each] for each in _e1_parts(plan, parts)]
    limit = _QUICK_LIMIT if plan.quick else _LIMIT
    errors = [_largest_error(each) for each in results]
    margins = mean_interval([1000 * (limit - error) for error in errors])
    drawn = int(np.sum([each["counts"] for each in results]))
    verdicts = [
        judge_difference(f"ordered pairs: the largest error is below {limit}", margins, "thousandths left"),
        judge_difference(
            "no type is drawn twice: share of the draws",
            mean_interval([1 - each["repeated"] / np.sum(each["counts"]) for each in results]),
            "of the draws",
            above=0.999999,
        ),
        *(verdict for tau in _TAUS for verdict in _judge_gradients(results, tau)),
    ]
    rows: list[list[Any]] = [_gradient_row(results, tau, ranks) for tau in _TAUS for ranks in _groups(results)]
    columns = ("tau", "sum over", "cosine", "length along the exact gradient", "length, in exact gradients of rank 1")
    notes = [
        f"largest error of a pair's probability, of each seed: {', '.join(f'{error:.5f}' for error in errors)}",
        f"largest difference of the code's gradient from the formula: {max(r['formula'] for r in results):.1e}",
        "the exact gradient of the sum over all ranks is 0, because every type is drawn once",
    ]
    scale = f"five types, random logits; {drawn:,} draws in all; {plan.seeds} seeds"
    return StudyReport(scale, verdicts, [StudyTable("mean gradients of a linear loss", columns, rows)], notes)


def _largest_error(result: Result) -> float:
    """Return the largest error of the probability of an ordered pair."""
    counts = np.array(result["counts"], float)
    return float(np.abs(counts / counts.sum() - np.array(result["pairs"])).max())


def _groups(results: Sequence[Result]) -> list[tuple[int, ...]]:
    """Return the sums of ranks that are shown: each rank alone, the first two and three, and all.

    The last rank has no gradient, because one type is left for it.
    """
    n = len(results[0]["exact"])
    return [*((rank,) for rank in range(n - 1)), (0, 1), (0, 1, 2), tuple(range(n))]


def _compared(result: Result, tau: float, ranks: Sequence[int]) -> tuple[float, float, float]:
    """Return cosine and length along the exact gradient, and the length in exact gradients of the first rank."""
    mean = np.sum([result["means"][str(tau)][rank] for rank in ranks], 0)
    exact = np.sum([result["exact"][rank] for rank in ranks], 0)
    first, own = float(np.linalg.norm(result["exact"][0])), float(np.linalg.norm(exact))
    length = float(np.linalg.norm(mean))
    if own < 1e-9 * first:  # all ranks
        return float("nan"), float("nan"), length / first
    along = float(mean @ exact) / own
    return along / length, along / own, length / first


def _gradient_row(results: Sequence[Result], tau: float, ranks: Sequence[int]) -> list[Any]:
    """Return the means over seeds as a row of the table."""
    cosine, along, length = np.mean([_compared(each, tau, ranks) for each in results], 0)
    name = f"rank {ranks[0] + 1}" if len(ranks) == 1 else f"ranks 1 to {len(ranks)}"
    return [f"{tau:g}", name, *("-" if np.isnan(x) else f"{x:+.3f}" for x in (cosine, along)), f"{length:.3f}"]


def _judge_gradients(results: Sequence[Result], tau: float) -> list[ClaimVerdict]:
    """Judge the directions of the first ranks and of their sum, and what is left of the sum over all ranks."""
    n = len(results[0]["exact"])
    verdicts = []
    for ranks, name in (((0,), "rank 1"), ((1,), "rank 2"), ((0, 1), "ranks 1 and 2")):
        above = mean_interval([_compared(each, tau, ranks)[0] - _COSINE for each in results])
        question = f"tau {tau:g}: the cosine of mean and exact gradient is above {_COSINE}, {name}"
        verdicts.append(judge_difference(question, above, f"above {_COSINE}"))
    rest = mean_interval([_REST - _compared(each, tau, range(n))[2] for each in results])
    question = f"tau {tau:g}: the sum over all ranks is shorter than {_REST} of rank 1's exact gradient"
    return [*verdicts, judge_difference(question, rest, "of rank 1's")]


CLAIMS = (
    Claim(
        "E1",
        "the sampler draws without replacement, and its gradient points the right way",
        "Gumbel-TopK is an exact draw without replacement, and differentiable through a straight-through softmax",
        "probabilities of ordered pairs within the limit, no type twice, cosines above 0.9, all in the interval",
        _e1_parts,
        _e1_judge,
    ),
)
