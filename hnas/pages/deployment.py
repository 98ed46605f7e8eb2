"""The report of a deployment: one page with its front, artifacts, layers, noise and provenance.

``deployment_page(table, facts)``. Everything is in the page as text; the script filters, and opens what is clicked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from hnas.pages.bars import bars, histogram
from hnas.pages.scatter import COLOURS, Mark, scatter
from hnas.pages.shell import SCRIPT, page, table, text

_FRONT, _ARTIFACT, _BASELINE = "front of the search", "artifact", "baseline"
_MOST_LAYERS = 60


@dataclass(frozen=True)
class ReportFacts:
    """The parts of a report beside the table of a deployment.

    command: the command that makes the bundle again.
    provenance: (name, value) of versions, machine, seeds, digests.
    intervals: 95 % interval of the accuracy in each row of the table; None, or no such row: without labelled images.
    times: name -> measured times in ms, of the baseline and of the artifact that was kept; empty: nothing was measured.
    layers: (name, microseconds, kind and precision) of the artifact that was kept, in their order.
    findings: sentences on the layers, or why there are none.
    precisions: (precision, number of kernels, microseconds) of the kernels of the kept artifact.
    mixed: what was tried with int8 and blocks in float; empty: nothing.
    blocks: (block, SQNR in dB with this block alone in int8, whether it is in float), of that trial.
    """

    command: str
    provenance: Sequence[tuple[str, str]]
    intervals: Sequence[tuple[float, float] | None] = ()
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)
    layers: Sequence[tuple[str, float, str]] = ()
    findings: Sequence[str] = ()
    precisions: Sequence[tuple[str, int, float]] = ()
    mixed: str = ""
    blocks: Sequence[tuple[str, float, bool]] = ()


def deployment_page(found: Mapping[str, Any], facts: ReportFacts) -> str:
    """Return the page.

    found: the table of a deployment, as its ``to_json`` returns it.
    """
    judged = any(row["accuracy"] is not None for row in found["rows"])
    rows = zip_longest(found["rows"], facts.intervals)
    marks = [*_front_marks(found), *(_mark(i, row, judged, spread) for i, (row, spread) in enumerate(rows))]
    parts = [
        f'<p class="soft">{text(found["footnote"])}</p>',
        _chart(marks, found, judged=judged),
        "<h2>Networks</h2>",
        *_details(found, facts.command),
        "<h2>Predicted and measured</h2>",
        _predictions(found["rows"]),
        "<h2>Verification: the worst slice of the outputs</h2>",
        _verification(found),
        *_sensitivity(facts),
        *_layers(facts),
        *_noise(facts, found["notes"]),
        "<h2>Provenance</h2>",
        table(("what", "value"), [(text(name), text(value)) for name, value in facts.provenance]),
    ]
    return page(f"{found['name']} on {found['target']}", "\n".join(parts), SCRIPT)


def _chart(marks: Sequence[Mark], found: Mapping[str, Any], *, judged: bool) -> str:
    """Return the chart with its filters: by kind of point and by precision."""
    front = sorted((m.x[0], m.y[0]) for m in marks if m.group == _FRONT)
    height = "top-1, %" if judged else "signal-to-noise ratio of the worst slice, dB"
    measured = any(row.get("latency_ms") for row in found["rows"])
    across = "measured latency, ms" if measured else "predicted latency, ms"
    chart = scatter(marks, (across, height), joined=front, title=f"Networks for {found['target']}", opens=True)
    kinds = {mark.group: COLOURS[mark.kind] for mark in marks}
    boxes = "".join(
        f'<label class="{colour}"><input type="checkbox" checked data-filter="{text(group)}"> {text(group)}</label>'
        for group, colour in kinds.items()
    )
    told = "Bars are 95 % intervals, or the band of a prediction. Click a point, or reach it with Tab and press Enter."
    if front:
        searched = found.get("searched", "")
        told += f" The line is the front of the search, in {searched}, judged on search images without intervals."
    shown = f"<fieldset><legend>Show</legend>{boxes}</fieldset>"
    return f'{shown}<figure>{chart}<figcaption class="soft">{text(told)}</figcaption></figure>'


def _front_marks(found: Mapping[str, Any]) -> list[Mark]:
    marks = []
    for index, each in enumerate(found.get("front", ())):
        metrics = each["metrics"]
        if "accuracy" not in metrics or "latency_ms" not in metrics:
            continue
        x, y = float(metrics["latency_ms"]), 100 * float(metrics["accuracy"])
        said = f"subnet of the front, {x:.3g} ms, {y:.2f} % of the search images"
        marks.append(Mark((x, x, x), (y, y, y), f"front-{index}", said, kind=0, group=_FRONT))
    return marks


def _mark(index: int, row: Mapping[str, Any], judged: bool, interval: tuple[float, float] | None) -> Mark:
    """Return the point of one row of the table, with the intervals of its latency and its accuracy."""
    latency = row.get("latency_ms") or row["predicted_ms"]
    baseline, kept = row["verdict"].startswith("baseline"), row["verdict"].startswith("kept")
    value = 100 * row["accuracy"] if judged and row["accuracy"] is not None else row["sqnr_db"]
    low, high = (value, value) if interval is None else (100 * interval[0], 100 * interval[1])
    said = f"{row['subnet']}, {row['precision']}, {latency['value']:.3g} ms, {value:.4g}, {row['verdict']}"
    return Mark(
        (latency["value"], latency["low"], latency["high"]),
        (value, low, high),
        f"row-{index}",
        said,
        kind=2 if baseline else 1,
        name=f"{row['precision']}{', kept' if kept else ''}{', baseline' if baseline else ''}",
        kept=kept,
        group=_BASELINE if baseline else f"{_ARTIFACT}, {row['precision']}",
    )


def _details(found: Mapping[str, Any], command: str) -> list[str]:
    """Return a section that opens for each point: its figures, its architecture, the command that deploys it."""
    said = []
    for index, row in enumerate(found["rows"]):
        figures = f"{row['size_bytes'] / 1e6:.3f} MB; {row['grade']}; {row['verdict']}"
        body = f"<p>{text(figures)}</p>"
        if not row["verdict"].startswith("baseline"):  # a deployment keeps what it found, never its baseline
            kept = row["verdict"].startswith("kept")
            how = command if kept else f"{command} --precision {row['precision']}"  # of two values the last one counts
            body += f"{_flow(found.get('arch'))}<pre><code>{text(how)}</code></pre>"
        said.append(_opening(f"row-{index}", f"{row['subnet']}, {row['precision']}", body))
    for index, each in enumerate(found.get("front", ())):
        metrics = each["metrics"]
        if "latency_ms" not in metrics:
            continue
        limit = f"{command} --max-latency {metrics['latency_ms'] * 1.01:.4g}ms"
        told = "<p>This search has its latency as the limit. It measures again, so it may find another subnet:</p>"
        listed = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        body = f"<p>{text(listed)}</p>{_flow(each['arch'])}{told}<pre><code>{text(limit)}</code></pre>"
        said.append(_opening(f"front-{index}", f"front of the search, {metrics['latency_ms']:.3g} ms", body))
    return said


def _opening(key: str, title: str, body: str) -> str:
    return f'<details id="{key}" data-key="{key}"><summary>{text(title)}</summary>{body}</details>'


def _flow(arch: Mapping[str, Any] | None) -> str:
    """Return an architecture as boxes in the order of the network: the choices of each stage in one box."""
    if not arch:
        return ""
    stages: dict[str, list[str]] = defaultdict(list)
    for name, option in arch.items():
        words = name.split(".")
        cut = 2 if len(words) > 2 and words[1].isdecimal() else 1
        stages[".".join(words[:cut])].append(f"{'.'.join(words[cut:]) or name}: {option}")
    boxes = "".join(
        f"<div><b>{text(stage)}</b><br>{'<br>'.join(text(each) for each in choices)}</div>"
        for stage, choices in stages.items()
    )
    return f'<div class="flow" role="img" aria-label="architecture">{boxes}</div>'


def _predictions(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return predicted and measured latencies side by side."""
    said = []
    for row in rows:
        predicted, measured = row["predicted_ms"], row.get("latency_ms")
        inside = measured and predicted["low"] <= measured["value"] <= predicted["high"]
        said.append(
            (
                text(f"{row['subnet']}, {row['precision']}"),
                text(_interval(predicted)),
                text(_interval(measured) if measured else "not measured"),
                "" if not measured else "in the band" if inside else "outside of the band",
                text(predicted.get("basis", "")),
            )
        )
    return table(("network", "predicted (band)", "measured (95 %)", "", "the prediction rests on"), said, (1, 2))


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3g} ms ({value['low']:.3g} to {value['high']:.3g})"


def _verification(found: Mapping[str, Any]) -> str:
    """Return how close each artifact is to its network, and the precisions that were refused."""
    said = [
        (
            text(f"{row['subnet']}, {row['precision']}"),
            text(row["worst"] or "no slice carries information"),
            f"{row['sqnr_db']:.1f} dB",
            "" if row["agreement"] is None else f"{row['agreement']:.2%}",
            text(row["grade"]),
        )
        for row in found["rows"]
    ]
    said += [(text(each["precision"]), "refused", "", "", text(each["reason"])) for each in found["refused"]]
    return table(("network", "worst slice", "its SQNR", "agreement", "grade"), said, (2, 3))


def _sensitivity(facts: ReportFacts) -> list[str]:
    """Return how much each block suffers from int8, the most sensitive 60 of them; nothing if it was not tried."""
    if not facts.mixed:
        return []
    parts = ["<h2>Sensitivity of the blocks to int8</h2>", f"<p>{text(facts.mixed)}</p>"]
    worst = sorted(facts.blocks, key=lambda block: block[1])[:_MOST_LAYERS]
    if worst:
        rows = [(name, max(0.0, db), f"{db:.1f} dB, {'float' if kept else 'int8'}") for name, db, kept in worst]
        told = "Signal-to-noise ratio of the outputs with this block alone in int8. A short bar is a sensitive block."
        parts += [bars(rows, "sensitivity of each block"), f'<p class="soft">{told}</p>']
    return parts


def _layers(facts: ReportFacts) -> list[str]:
    """Return the kernels by precision, and the time of each layer, the slowest 60 of them."""
    listed = "".join(f"<li>{text(each)}</li>" for each in facts.findings)
    parts = ["<h2>Layers as the runtime executes them</h2>", f"<ul>{listed}</ul>" if listed else ""]
    if facts.precisions:
        whole = sum(us for _, _, us in facts.precisions) or 1.0
        rows = [(text(name), str(count), f"{us / whole:.0%}") for name, count, us in facts.precisions]
        parts.append(table(("precision", "kernels", "share of their time"), rows, (1, 2)))
    if facts.layers:
        least = sorted((us for _, us, _ in facts.layers), reverse=True)[:_MOST_LAYERS][-1]
        slow = [(name, us, f"{us:.3g} us {kind}") for name, us, kind in facts.layers if us >= least]
        parts.append(bars(slow[:_MOST_LAYERS], "time of each layer"))
        parts.append('<p class="soft">A profiler adds time itself: these compare layers and are no latency.</p>')
    return parts


def _noise(facts: ReportFacts, notes: Sequence[str]) -> list[str]:
    """Return the measured times as histograms, and every doubt about them."""
    listed = "".join(f"<li>{text(note)}</li>" for note in notes)
    parts = ["<h2>Noise</h2>", f"<ul>{listed}</ul>"]
    if facts.times:
        names = " and ".join(
            f'<span class="{"two" if index else "one"}">{text(name)} ({len(each)} calls)</span>'
            for index, (name, each) in enumerate(facts.times.items())
        )
        parts += [f"<p>{names}</p>", histogram(facts.times, "ms", "measured times")]
    return parts
