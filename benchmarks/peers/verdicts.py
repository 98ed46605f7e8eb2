"""Judge the promises from the times: ``judge_promises(results, limits)``.

Each verdict is one line, *holds*, *fails* or *not seen*, with the cases against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hnas.benchmarks.peers.cases import OURS

Result = Mapping[str, Any]  # the record of a measured case
_FASTER, _FAITHFUL = 0.90, 90.0  # largest median ratio in int8; smallest dB in fp32
_SECONDS, _MEGABYTES, _WORKER_MS = 120.0, 3000.0, 150.0
_TIE_DB = 0.05  # a smaller difference is a tie, because one decimal does not show it


@dataclass(frozen=True)
class PromiseVerdict:
    """A promise and its outcome.

    outcome: "holds", "fails" or "not seen".
    cases: the cases that break the promise, as text.
    """

    promise: str
    outcome: str
    line: str
    cases: tuple[str, ...] = ()


def judge_promises(results: Sequence[Result], limits: Mapping[str, Any] | None) -> list[PromiseVerdict]:
    """Return the verdict on every promise, from the cases that were measured."""
    found = [_never_slower(results), _much_faster(results), _as_exact(results), _faithful(results)]
    return [*found, *_limits(limits)]


def best(result: Result) -> Mapping[str, Any] | None:
    """Return the row of the fastest peer: the largest ratio of our time by theirs."""
    rows = [row for row in result["rows"] if "ratio" in row]
    return max(rows, key=lambda row: float(row["ratio"]), default=None)


def is_slower(result: Result) -> bool:
    """Return whether we are slower than the best peer: the interval is above 1, the ratio above the noise floor."""
    row = best(result)
    return row is not None and row["low"] > 1.0 and row["ratio"] > max(result["noise"]["high"], 1.0)


def _never_slower(results: Sequence[Result]) -> PromiseVerdict:
    judged = [result for result in results if best(result) is not None]
    against = [f"{_title(r)}: {_figures(best(r))} of {(best(r) or {})['maker']}'s" for r in judged if is_slower(r)]
    return _judge_cases("never slower than the best peer, beyond the noise floor", len(judged), against)


def _much_faster(results: Sequence[Result]) -> PromiseVerdict:
    promise = f"in int8, median of our time by the best peer's at most {_FASTER:.2f}"
    ratios = [float(row["ratio"]) for r in results if r["precision"] == "int8" and (row := best(r)) is not None]
    if not ratios:
        return PromiseVerdict(promise, "not seen", "no int8 case was measured")
    found = median(ratios)
    return PromiseVerdict(promise, "holds" if found <= _FASTER else "fails", f"{found:.3f} over {len(ratios)} cases")


def _as_exact(results: Sequence[Result]) -> PromiseVerdict:
    judged, against = 0, list[str]()
    for result in results:
        own = _own(result)
        theirs = [row for row in result["rows"] if row["maker"] != OURS and "sqnr_db" in row]
        if result["precision"] != "int8" or "sqnr_db" not in own or not theirs:
            continue
        judged += 1
        row = max(theirs, key=lambda each: float(each["sqnr_db"]))
        if own["sqnr_db"] < row["sqnr_db"] - _TIE_DB:
            against.append(f"{_title(result)}: {own['sqnr_db']:.1f} dB, {row['maker']} {row['sqnr_db']:.1f}")
    return _judge_cases("int8 at least as exact as the best peer", judged, against)


def _faithful(results: Sequence[Result]) -> PromiseVerdict:
    rows = [(result, _own(result)) for result in results if result["precision"] == "fp32"]
    against = [
        f"{_title(result)}: {row.get('error') or format(row['sqnr_db'], '.1f') + ' dB'}"
        for result, row in rows
        if not float(row.get("sqnr_db", 0.0)) >= _FAITHFUL
    ]
    return _judge_cases(f"fp32 at least {_FAITHFUL:g} dB", len(rows), against)


def _limits(limits: Mapping[str, Any] | None) -> list[PromiseVerdict]:
    compiling = f"a 5 M net through three backends in both precisions in {_SECONDS:g} s and {_MEGABYTES / 1e3:g} GB"
    working = f"a warm worker costs a job at most {_WORKER_MS:g} ms"
    if limits is None or "error" in limits:
        why = "not measured" if limits is None else str(limits["error"])
        return [PromiseVerdict(compiling, "not seen", why), PromiseVerdict(working, "not seen", why)]
    within = limits["seconds"] <= _SECONDS and limits["peak_mb"] <= _MEGABYTES
    took = f"{limits['seconds']:.0f} s, {limits['peak_mb'] / 1e3:.2f} GB, {limits['parameters'] / 1e6:.1f} M parameters"
    each = ", ".join(f"{name} {value:.0f} ms" for name, value in limits["worker_ms"].items())
    quick = max(limits["worker_ms"].values()) <= _WORKER_MS
    return [PromiseVerdict(compiling, _word(within), took), PromiseVerdict(working, _word(quick), each)]


def _judge_cases(promise: str, judged: int, against: Sequence[str]) -> PromiseVerdict:
    if not judged:
        return PromiseVerdict(promise, "not seen", "no case was measured")
    line = f"{judged - len(against)} of {judged} cases"
    return PromiseVerdict(promise, _word(not against), line, tuple(against))


_word: Callable[[bool], str] = {True: "holds", False: "fails"}.__getitem__


def _own(result: Result) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(row for row in result["rows"] if row["maker"] == OURS)
    return found


def _title(result: Result) -> str:
    return f"{result['net']}, {result['backend']}, {result['precision']}"


def _figures(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
