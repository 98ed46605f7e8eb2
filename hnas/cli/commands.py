"""The sub-commands of ``hnas-deploy`` that run without torch: ``targets``, ``doctor``, ``show`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnas import report
from hnas.cli.arguments import Parser

if TYPE_CHECKING:
    from hnas.export.bundle.bundle import Bundle
    from hnas.export.device.artifact import Artifact

_JSON = "print the result as JSON on standard output"


def run_targets(arguments: Sequence[str]) -> int:
    """Print the devices that ``--target`` takes."""
    from hnas import hw_profiles

    parser = Parser("hnas-deploy targets", description="List the devices that --target takes.")
    parser.add_argument("--json", action="store_true", help=_JSON)
    as_json = parser.parse_args(arguments).json
    rows = []
    for name in hw_profiles.names():
        device = hw_profiles.load(name)
        latency = "measured here" if device.local else "predicted"
        offered, aliases = ", ".join(device.precisions), ", ".join(device.aliases)
        rows.append((name, device.title, device.backend, offered, latency, aliases))
    return _print_rows(("target", "device", "backend", "precisions", "latency", "also called"), rows, as_json)


def run_doctor(arguments: Sequence[str]) -> int:
    """Print which backends run here, and how to install the others."""
    from hnas.export import backends

    parser = Parser("hnas-deploy doctor", description="List the backends that run here, and how to install the others.")
    parser.add_argument("--json", action="store_true", help=_JSON)
    as_json = parser.parse_args(arguments).json
    rows = []
    for name in backends.names():
        backend = backends.load(name)
        missing = backend.missing()
        versions = "" if missing else ", ".join(f"{k} {v}" for k, v in backend.versions().items())
        rows.append((name, "no" if missing else "yes", ", ".join(backend.precisions), missing or versions))
    return _print_rows(("backend", "runs here", "precisions", "versions, or how to install"), rows, as_json)


def run_show(arguments: Sequence[str]) -> int:
    """Check every byte of a bundle, then print its card, its manifest or its layers."""
    from hnas.export.bundle.bundle import read_bundle
    from hnas.export.bundle.card import MANIFEST, model_card
    from hnas.export.device.records import read_json

    parser = Parser("hnas-deploy show", description="Check every byte of a bundle and print its card.")
    parser.add_argument("bundle", type=Path, metavar="DIR")
    parser.add_argument(
        "--layers", action="store_true", help="run it here: its kernels, their times, what did not fuse"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest, or the layers, as JSON")
    parsed = parser.parse_args(arguments)
    bundle = read_bundle(parsed.bundle)
    if parsed.layers:
        return _show_layers(bundle.artifact(), as_json=parsed.json)
    if parsed.json:
        report.print_json(read_json(bundle.path / MANIFEST))
    else:
        report.print_markdown(model_card(bundle.manifest))
    return 0


def run_bundle(arguments: Sequence[str]) -> int:
    """Classify an image file with a bundle."""
    from hnas.export.bundle.bundle import read_bundle

    parser = Parser("hnas-deploy run", description="Classify an image file with a bundle.")
    parser.add_argument("bundle", type=Path, metavar="DIR")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="how many classes to print (default 3)")
    parser.add_argument("--json", action="store_true", help=_JSON)
    parsed = parser.parse_args(arguments)
    best = _classify(read_bundle(parsed.bundle), parsed.bundle, parsed.image)[: max(1, parsed.top)]
    if parsed.json:
        report.print_json([{"label": label, "probability": share} for label, share in best])
    else:
        report.print_table(("label", "probability"), [(label, f"{share:.1%}") for label, share in best])
    return 0


def _classify(bundle: Bundle, path: Path, image: Path) -> list[tuple[str, float]]:
    """Return the classes with their probabilities, the likeliest first."""
    import numpy as np

    from hnas.data.images import Preprocessing
    from hnas.export.remote.worker import Worker

    taken = bundle.manifest.input
    if taken is None or taken.preprocessing is None:
        raise ValueError(f"{path} does not say how an image becomes its input; use export.load in Python")
    if not image.is_file():
        raise FileNotFoundError(f"no image file {image}")
    preprocessing = Preprocessing.from_json(taken.preprocessing)
    with Worker(bundle.artifact()) as worker:
        (scores, *_) = worker(preprocessing(preprocessing.read(image)[None]))
    if scores.shape != (1, len(bundle.labels)):
        raise ValueError(f"{path} names {len(bundle.labels)} classes, its output is {list(scores.shape)}")
    odds = np.exp(scores[0] - scores[0].max())
    odds /= odds.sum()
    return [(bundle.labels[i], float(odds[i])) for i in np.argsort(-odds)]


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


def _print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool) -> int:
    if as_json:
        report.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        report.print_table(columns, rows)
    return 0
