"""The index of a store: rows for a table, and a page without scripts. ``zoo_page([summarise(name, found), ...])``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hnas.pages.scatter import Mark, scatter
from hnas.pages.shell import page, table, text

COLUMNS = (
    "name",
    "target",
    "backend",
    "precision",
    "top-1",
    "latency",
    "speedup",
    "size",
    "grade",
    "licence",
    "digest",
)


def summarise(name: str, found: Any) -> dict[str, Any]:
    """Return the figures of a bundle as plain values; of one that cannot be read, why.

    ``found``: (manifest, digest), or the reason as text.
    """
    if isinstance(found, str):
        return {"name": name, "broken": found}
    manifest, digest = found
    accuracy, latency, speedup = manifest.accuracy, manifest.latency, manifest.speedup
    return {
        "name": name,
        "target": manifest.target,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "accuracy": None if accuracy is None else [accuracy.artifact, *accuracy.interval],
        "latency_ms": [latency.value, latency.low, latency.high],
        "latency_kind": latency.kind,
        "cpu": manifest.machine.cpu if latency.kind == "measured" else "",
        "speedup": None if speedup is None else [speedup.value, speedup.low, speedup.high],
        "size_bytes": manifest.size_bytes,
        "grade": manifest.verification.grade,
        "licence": manifest.licence,
        "digest": digest,
    }


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return a row as the texts of `COLUMNS`."""
    latency = "{:.3g} ms ({:.3g} to {:.3g})".format(*row["latency_ms"])
    return [
        row["name"],
        row["target"],
        row["backend"],
        row["precision"],
        "{:.2%} ({:.2%} to {:.2%})".format(*row["accuracy"]) if row["accuracy"] else "",
        latency if row["latency_kind"] == "measured" else f"{latency}, predicted",
        "{:.2f}x ({:.2f} to {:.2f})".format(*row["speedup"]) if row["speedup"] else "",
        f"{row['size_bytes'] / 1e6:.3f} MB",
        row["grade"],
        row["licence"] or "none stated",
        row["digest"][:12],
    ]


def zoo_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page that lists the bundles of a store: a chart for each target, and every figure in a table."""
    good = [row for row in rows if "broken" not in row]
    broken = [f"<li>{text(row['name'])}: {text(row['broken'])}</li>" for row in rows if "broken" in row]
    parts = [f'<p class="soft">{len(good)} bundle(s). <code>hnas-deploy pull NAME --out DIR</code> fetches one.</p>']
    parts += _charts(good)
    listed = [
        [f'<span id="{text(row["name"])}">{text(row["name"])}</span>', *map(text, cells_of(row)[1:])] for row in good
    ]
    parts += ["<h2>Bundles</h2>", table(COLUMNS, listed, numbers=(4, 5, 6, 7))]
    if broken:
        parts += ["<h2>Cannot be read</h2>", f"<ul>{''.join(broken)}</ul>"]
    return page("Model zoo", "\n".join(parts))


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a chart of accuracy over latency for each target that has bundles with an accuracy."""
    targets: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["accuracy"]:
            targets[row["target"]].append(row)
    found = []
    for target, members in sorted(targets.items()):
        marks = [_mark(row) for row in members]
        chart = scatter(marks, ("latency, ms", "top-1, %"), joined=_front(marks), title=f"Bundles for {target}")
        told = "Bars are 95 % intervals; squares are predicted latencies with their band. The line joins the best."
        found.append(f'<h2>{text(target)}</h2><figure>{chart}<figcaption class="soft">{told}</figcaption></figure>')
    return found


def _mark(row: Mapping[str, Any]) -> Mark:
    value, low, high = (100 * each for each in row["accuracy"])
    predicted = row["latency_kind"] != "measured"
    said = ", ".join(filter(None, cells_of(row)[:7]))
    a, b, c = row["latency_ms"]
    return Mark((a, b, c), (value, low, high), row["name"], said, kind=int(predicted), name=row["name"])


def _front(marks: Sequence[Mark]) -> list[tuple[float, float]]:
    """Return the points that no other point beats in both values, by latency."""
    found: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: (mark.x[0], -mark.y[0])):
        if not found or mark.y[0] > found[-1][1]:
            found.append((mark.x[0], mark.y[0]))
    return found
