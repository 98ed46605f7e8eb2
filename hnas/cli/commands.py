"""The sub-commands of ``hnas-deploy`` that run without torch: ``targets``, ``doctor``, ``show`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnas import report
from hnas.cli.arguments import WIDE, Parser
from hnas.cli.zoo import add_source, open_bundle

if TYPE_CHECKING:
    import argparse

    from hnas.export.bundle.bundle import Bundle
    from hnas.export.device.artifact import Artifact
    from hnas.export.remote.worker import Worker

_JSON = "print the result as JSON on standard output"


def make_targets_parser() -> Parser:
    """Return the parser of ``hnas-deploy targets``."""
    parser = Parser("hnas-deploy targets", description="List the devices that --target takes.")
    parser.add_argument("--wide", action="store_true", help=WIDE)
    parser.add_argument("--json", action="store_true", help=_JSON)
    return parser


def run_targets(arguments: Sequence[str]) -> int:
    """Print the devices that ``--target`` takes."""
    from hnas.deployment.inventory import targets

    parsed = make_targets_parser().parse_args(arguments)
    rows = [
        {
            "target": device.name,
            "title": device.title,
            "backend": device.backend,
            "precisions": list(device.precisions),
            "latency": "measured" if device.local else "predicted",
            "power_modes": list(device.power_modes),
            "aliases": list(device.aliases),
        }
        for device in targets()
    ]
    if parsed.json:
        report.print_json(rows)
        return 0
    columns = ("target", "device", "backend", "precisions", "latency", "power modes", "also called")
    least = ("also called", "power modes", "device", "precisions")
    shown = [[_plain(value) for value in row.values()] for row in rows]
    report.print_table(columns, shown, least=least, wide=parsed.wide)
    return 0


def make_doctor_parser() -> Parser:
    """Return the parser of ``hnas-deploy doctor``."""
    parser = Parser("hnas-deploy doctor", description="List the backends that run and build here, and how to install.")
    parser.add_argument("--json", action="store_true", help=_JSON)
    return parser


def run_doctor(arguments: Sequence[str]) -> int:
    """Print which backends run and build here, how to install what is missing, and versions that may not work."""
    from hnas.deployment.installed import remarks
    from hnas.deployment.inventory import doctor

    parsed = make_doctor_parser().parse_args(arguments)
    reports = doctor()
    if parsed.json:
        report.print_json([each.to_json() for each in reports])
        return 0
    rows = [
        (
            each.backend,
            "yes" if each.runs else "no",
            "yes" if each.builds else "no",
            ", ".join(each.precisions),
            "; ".join(filter(None, (", ".join(f"{k} {v}" for k, v in each.versions.items()), each.install))),
        )
        for each in reports
    ]
    report.print_table(("backend", "runs here", "builds here", "precisions", "versions, or how to install"), rows)
    report.print_lines(remarks())
    return 0


def _plain(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def make_show_parser() -> Parser:
    """Return the parser of ``hnas-deploy show``."""
    parser = Parser("hnas-deploy show", description="Check every byte of a bundle and print its card.")
    add_source(parser)
    parser.add_argument(
        "--layers", action="store_true", help="run it here: its kernels, their times, what did not fuse"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest, or the layers, as JSON")
    return parser


def run_show(arguments: Sequence[str]) -> int:
    """Check every byte of a bundle, then print its card, its manifest or its layers."""
    parsed = make_show_parser().parse_args(arguments)
    from hnas.export.bundle.card import MANIFEST, describe
    from hnas.export.device.records import read_json

    bundle = open_bundle(parsed)
    if parsed.layers:
        return _show_layers(bundle.artifact(), as_json=parsed.json)
    if parsed.json:
        report.print_json(read_json(bundle.path / MANIFEST))
    else:
        report.print_markdown(describe(bundle.manifest, bundle.artifact()))
    return 0


def make_run_parser() -> Parser:
    """Return the parser of ``hnas-deploy run``."""
    parser = Parser("hnas-deploy run", description="Classify an image, forecast a series, or continue a text.")
    add = parser.add_argument
    add_source(parser)
    add("--image", type=Path, metavar="FILE", help="the image to classify")
    add("--csv", type=Path, metavar="FILE", help="the series to forecast: all known rows, in time order")
    add("--text", metavar="TEXT", help="the text to continue")
    add("--top", type=int, default=3, metavar="N", help="how many classes to print (default 3)")
    add("--steps", type=int, metavar="N", help="rows to forecast (default: the horizon), or characters (default 200)")
    add("--plot", type=Path, metavar="FILE", help="with --csv: draw the forecast into this image file")
    add("--json", action="store_true", help=_JSON)
    return parser


def run_bundle(arguments: Sequence[str]) -> int:
    """Classify an image, forecast a series, or continue a text with a bundle."""
    parser = make_run_parser()
    parsed = parser.parse_args(arguments)
    given = [name for name in ("image", "csv", "text") if getattr(parsed, name) is not None]
    if len(given) != 1:
        parser.error("give one of --image FILE, --csv FILE and --text TEXT, as the bundle takes it")
    from hnas.deployment.forecaster import is_sequence_bundle
    from hnas.export.remote.worker import Worker

    bundle = open_bundle(parsed)
    if is_sequence_bundle(bundle) is (given == ["image"]):
        raise ValueError(f"{bundle.path} is for {bundle.manifest.task}; --{given[0]} is for another kind of bundle")
    with Worker(bundle.artifact()) as worker:
        if given == ["image"]:
            _classify(bundle, worker, parsed)
        else:
            _continue(bundle, worker, parsed)
    return 0


def _classify(bundle: Bundle, worker: Worker, parsed: argparse.Namespace) -> None:
    from hnas.deployment.classifier import Classifier

    best = Classifier(bundle, worker).predict(parsed.image, top=max(1, parsed.top))
    if parsed.json:
        report.print_json([{"label": label, "probability": share} for label, share in best])
    else:
        report.print_table(("label", "probability"), [(label, f"{share:.1%}") for label, share in best])


def _continue(bundle: Bundle, worker: Worker, parsed: argparse.Namespace) -> None:
    from hnas.deployment.forecaster import Forecaster, plot_forecast

    forecaster = Forecaster(bundle, worker)
    if (forecaster.kind == "series") is (parsed.csv is None):
        flag = "--csv FILE" if forecaster.kind == "series" else "--text TEXT"
        raise ValueError(f"{bundle.path} is for {bundle.manifest.task}; give {flag}")
    if parsed.csv is None:
        found = forecaster.continue_text(parsed.text, 200 if parsed.steps is None else parsed.steps)
        report.print_json({"text": found}) if parsed.json else report.print_lines([parsed.text + found])
        return
    table = forecaster.read(parsed.csv)
    targets, values = forecaster.forecast(table, parsed.steps)
    if parsed.plot is not None:
        plot_forecast(table, targets, values, parsed.plot)
    if parsed.json:
        report.print_json([dict(zip(targets, map(float, row), strict=True)) for row in values])
    else:
        rows = [(f"+{k}", *(f"{value:.6g}" for value in row)) for k, row in enumerate(values, 1)]
        report.print_table(("row", *targets), rows, right=targets)


def _show_layers(artifact: Artifact, *, as_json: bool) -> int:
    from hnas.export.diagnosis.profiling import layers
    from hnas.export.proof.inspection import COLUMNS

    found = layers(artifact)
    if as_json:
        report.print_json(found.to_json())
    else:
        report.print_table(COLUMNS, found.rows(), found.summary(), ("", "us", "share"))
        report.print_lines(found.findings)
    return 0
