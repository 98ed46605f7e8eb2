"""The candidates of a search that are built first: the numbered cases of ``choose_finalists``."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hnas.deployment import finalists
from hnas.deployment.finalists import FINALISTS, choose_finalists
from hnas.deployment.folder import Unreachable
from hnas.deployment.options import SearchOptions
from hnas.deployment.plan import resolve
from hnas.export.device.errors import ExportError
from hnas.pareto import Candidate
from hnas.spaces.tabular_digits import tabular_digits

SPACE = tabular_digits()
LARGEST = 0.932  # its accuracy; the default goal is a point below


def tried(*points: tuple[float, float]) -> list[Candidate]:
    """Candidates of these (latency in ms, accuracy), each with its own architecture and 1 MB for a ms."""
    archs = SPACE.neighbours(SPACE.largest)
    return [
        Candidate(arch, {"latency_ms": ms, "accuracy": accuracy, "size_bytes": ms * 1e6})
        for arch, (ms, accuracy) in zip(archs, points, strict=False)
    ]


def order(
    candidates: list[Candidate], failed: int = 0, estimates: dict[float, float] | None = None, **options: Any
) -> list[float]:
    """The latencies of the finalists, in their order. estimates: latency -> accuracy; else an accuracy is its own."""
    study: Any = SimpleNamespace(
        supernet=SimpleNamespace(space=SPACE),
        journal=SimpleNamespace(entries={f"failed/{k}": "the compiler died" for k in range(failed)}),
        score=lambda _arch: SimpleNamespace(metrics={"accuracy": LARGEST}),
    )
    plan = resolve(SearchOptions("onnxruntime-cpu", **options))

    def estimated(_study: Any, _space: Any, scored: list[Candidate], *, relative: bool) -> dict[Any, float]:
        assert relative == (not plan.bounds)
        found = {each.arch: (each.metrics["latency_ms"], each.metrics["accuracy"]) for each in scored}
        return {arch: (estimates or {}).get(ms, accuracy) for arch, (ms, accuracy) in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalists, "estimated_accuracies", estimated)
        found = choose_finalists(study, plan, candidates)
    return [c.metrics["latency_ms"] for c in found]


POINTS = ((0.1, 0.91), (0.2, 0.922), (0.3, 0.924), (0.4, 0.926), (0.5, 0.93), (0.6, 0.929))


def test_bounds_on_latency_want_accuracy_and_keep_the_least_as_the_last_resort(tmp_path: Any) -> None:
    assert order(tried(*POINTS), max_latency="0.45ms", out=tmp_path) == [0.4, 0.3, 0.1]
    assert order(tried(*POINTS), max_size="0.45MB", out=tmp_path) == [0.4, 0.3, 0.1]


def test_a_bound_on_accuracy_wants_speed(tmp_path: Any) -> None:
    assert order(tried(*POINTS), min_accuracy="92.3%", out=tmp_path) == [0.3, 0.4, 0.5]


def test_the_default_goal_puts_those_first_that_int8_may_take_from(tmp_path: Any) -> None:
    assert order(tried(*POINTS), out=tmp_path) == [0.4, 0.5, 0.2]
    assert order(tried(*POINTS), precision="fp32", out=tmp_path) == [0.2, 0.3, 0.4]
    assert order(tried(*POINTS[:3]), out=tmp_path) == [0.2, 0.3]


def test_where_nothing_is_near_the_largest_the_most_accurate_is_built(tmp_path: Any) -> None:
    assert order(tried((0.1, 0.8), (0.2, 0.9)), out=tmp_path) == [0.2]


def test_what_was_only_lucky_on_the_search_images_comes_last(tmp_path: Any) -> None:
    lucky = {0.2: 0.915, 0.3: 0.92}
    assert order(tried(*POINTS), estimates=lucky, precision="fp32", out=tmp_path) == [0.4, 0.5]
    assert order(tried(*POINTS), estimates=lucky, min_accuracy="92.2%", out=tmp_path) == [0.4, 0.5, 0.3]
    assert order(tried(*POINTS), estimates={0.4: 0.9}, max_latency="0.45ms", out=tmp_path) == [0.3, 0.2, 0.1]


def test_never_more_than_a_few(tmp_path: Any) -> None:
    points = [(0.1 * step, 0.925 + 0.001 * step) for step in range(1, 8)]
    assert len(order(tried(*points), out=tmp_path)) == FINALISTS


def test_what_keeps_no_bound_is_unreachable(tmp_path: Any) -> None:
    with pytest.raises(Unreachable, match=r"the fastest takes 0.1 ms \(asked: 0.01\)"):
        order(tried(*POINTS), max_latency="0.01ms", out=tmp_path)
    assert cast("Any", Unreachable).code == 1


def test_what_could_not_be_compiled_is_told_where_nothing_can_be_kept(tmp_path: Any) -> None:
    archs = list(SPACE.neighbours(SPACE.largest))
    lost = [Candidate(arch, {"latency_ms": float("inf"), "size_bytes": 1.0}) for arch in archs[-2:]]
    with pytest.raises(ExportError, match=r"^none of 2 subnets could be compiled .*: the compiler died$"):
        order(lost, failed=2, out=tmp_path)
    with pytest.raises(Unreachable, match=r"fastest takes 0.1 ms .*; 2 could not be compiled .*: the compiler died"):
        order([*tried(*POINTS), *lost], failed=2, max_latency="0.05ms", out=tmp_path)
    assert order([*tried(*POINTS), *lost], failed=2, max_latency="0.15ms", out=tmp_path) == [0.1]
