"""Count results and group failures: ``render(records)`` returns the tables of docs/coverage.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hnas.benchmarks.zoo import architectures

Record = Mapping[str, Any]

BACKENDS = ("onnxruntime", "openvino", "tflite")
PRECISIONS = ("fp32", "int8")
CELLS = tuple((backend, precision) for precision in PRECISIONS for backend in BACKENDS)


def kind_of(record: Record) -> str:
    """Return the kind of a failure: its outcome and its line, without names, sizes and figures of one network."""
    line = str(record["line"])
    if refused := re.match(r"(\w+ refuses [\w.]+)", line):
        return refused[1]
    if " does not compute " in line:
        return f"{record['backend']} {record['precision']}: fails its verification"
    cause = line.rpartition(" to fp32: ")[2] if " to fp32: " in line else line.rpartition(" to int8: ")[2] or line
    plain = re.sub(r"'[^']*'|\[[^\]]*\]|\([^)]*\)", "...", cause)
    plain = re.sub(r"(?<!\w)/\S+", "...", plain)
    plain = re.sub(r"[-+]?\d[\d.,e+-]*", "N", plain)
    name = str(record["net"]).rpartition(".")[2]
    short = plain.replace(name, "...")[:110].strip()
    return f"{record['outcome']}: {short}" if record["outcome"] != "refused" else short


def failures(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Return the failures by kind, the most frequent first."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["outcome"] != "right":
            found.setdefault(f"{kind_of(record)}", []).append(record)
    return sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))


def totals(records: Sequence[Record]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (built and right, tried) for each backend and precision."""
    return {cell: _share([each for each in records if (each["backend"], each["precision"]) == cell]) for cell in CELLS}


def render(records: Sequence[Record], about: str = "") -> str:
    """Return the tables in Markdown: totals, a row for each family, failures by kind. ``about`` is the first line."""
    families = sorted({_family(record) for record in records}, key=str.lower)
    nets = {record["net"] for record in records}
    lines = [f"{len(nets)} architectures of {len(families)} families. {about}".rstrip(), ""]
    lines += ["| | " + " | ".join(f"{backend} {precision}" for backend, precision in CELLS) + " |"]
    lines += ["|---" * (len(CELLS) + 1) + "|"]
    counted = totals(records)
    lines.append(_row("**all**", [counted[cell] for cell in CELLS], percent=True))
    for family in families:
        of = totals([record for record in records if _family(record) == family])
        lines.append(_row(family, [of[cell] for cell in CELLS]))
    lines += ["", "| failures | kind | architectures |", "|---|---|---|"]
    for kind, those in failures(records):
        where = Counter(str(each["net"]) for each in those)
        lines.append(f"| {len(those)} | {kind.replace('|', '/')} | {', '.join(sorted(where))} |")
    return "\n".join(lines) + "\n"


def _share(records: Sequence[Record]) -> tuple[int, int]:
    return sum(record["outcome"] == "right" for record in records), len(records)


def _row(name: str, shares: Sequence[tuple[int, int]], *, percent: bool = False) -> str:
    def cell(share: tuple[int, int]) -> str:
        right, tried = share
        if not tried:
            return ""
        return f"{right} of {tried}" + (f" ({right / tried:.0%})" if percent else "")

    return f"| {name} | " + " | ".join(map(cell, shares)) + " |"


def _family(record: Record) -> str:
    return architectures.find(str(record["net"])).family
