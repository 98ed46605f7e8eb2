"""The sub-commands of ``hnas-deploy``; all but ``export`` and ``verify`` run without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas import report
from hnas.cli.arguments import HOST, PRECISION

if TYPE_CHECKING:
    from hnas.export.device.artifact import Artifact


def run(name: str, arguments: Sequence[str], parser: type[argparse.ArgumentParser]) -> int:
    """Run sub-command ``name``; the exit code."""
    known = {"export": _export, "targets": _targets, "doctor": _doctor, "show": _show, "run": _run, "verify": _verify}
    return known[name](list(arguments), parser)


def _targets(arguments: list[str], parser: type[argparse.ArgumentParser]) -> int:
    from hnas import hw_profiles

    own = parser("hnas-deploy targets", description="The devices that --target takes.")
    own.add_argument("--json", action="store_true", help="as JSON on standard output")
    rows = []
    as_json = own.parse_args(arguments).json
    for name in hw_profiles.names():
        device = hw_profiles.load(name)
        latency = "measured here" if device.local else "predicted"
        offered, aliases = ", ".join(device.precisions), ", ".join(device.aliases)
        rows.append((name, device.title, device.backend, offered, latency, aliases))
    columns = ("target", "device", "backend", "precisions", "latency", "also called")
    if as_json:
        report.write_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        report.table(columns, rows)
    return 0


def _doctor(arguments: list[str], parser: type[argparse.ArgumentParser]) -> int:
    from hnas.export import backends

    own = parser("hnas-deploy doctor", description="Which backends run here, and the line that installs the others.")
    own.add_argument("--json", action="store_true", help="as JSON on standard output")
    as_json = own.parse_args(arguments).json
    rows = []
    for name in backends.names():
        backend = backends.load(name)
        missing = backend.missing()
        versions = "" if missing else ", ".join(f"{k} {v}" for k, v in backend.versions().items())
        rows.append((name, "no" if missing else "yes", ", ".join(backend.precisions), missing or versions))
    columns = ("backend", "runs here", "precisions", "versions, or how to install")
    if as_json:
        report.write_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        report.table(columns, rows)
    return 0


def _show(arguments: list[str], parser: type[argparse.ArgumentParser]) -> int:
    from hnas.export.bundle.bundle import read_bundle
    from hnas.export.bundle.card import MANIFEST, model_card
    from hnas.export.device.records import read_json

    own = parser("hnas-deploy show", description="Check every byte of a bundle and print its card.")
    own.add_argument("bundle", type=Path, metavar="DIR")
    own.add_argument("--layers", action="store_true", help="run it here: its kernels, what did not fuse, time of each")
    own.add_argument("--json", action="store_true", help="the manifest, or the layers, as JSON on standard output")
    parsed = own.parse_args(arguments)
    bundle = read_bundle(parsed.bundle)
    if parsed.layers:
        return _show_layers(bundle.artifact(), as_json=parsed.json)
    if parsed.json:
        report.write_json(read_json(bundle.path / MANIFEST))
    else:
        report.markdown(model_card(bundle.manifest))
    return 0


def _show_layers(artifact: Artifact, *, as_json: bool) -> int:
    from hnas.export.diagnosis.profiling import layers
    from hnas.export.proof.inspection import COLUMNS

    found = layers(artifact)
    if as_json:
        report.write_json(found.to_json())
    else:
        report.table(COLUMNS, found.rows(), found.summary(), ("", "us", "share"))
        report.lines(found.findings)
    return 0


def _run(arguments: list[str], parser: type[argparse.ArgumentParser]) -> int:
    import numpy as np

    from hnas.data.images import Preprocessing
    from hnas.export.bundle.bundle import read_bundle
    from hnas.export.remote.worker import Worker

    own = parser("hnas-deploy run", description="Classify an image file with a bundle.")
    own.add_argument("bundle", type=Path, metavar="DIR")
    own.add_argument("--image", type=Path, required=True, metavar="FILE")
    own.add_argument("--top", type=int, default=3, metavar="N", help="how many classes to print (default 3)")
    own.add_argument("--json", action="store_true", help="as JSON on standard output")
    parsed = own.parse_args(arguments)
    bundle = read_bundle(parsed.bundle)
    eats = bundle.manifest.input
    if eats is None or eats.preprocessing is None:
        raise ValueError(f"{parsed.bundle} does not say how an image becomes its input; use export.load in Python")
    if not parsed.image.is_file():
        raise FileNotFoundError(f"no image file {parsed.image}")
    preprocessing = Preprocessing.from_json(eats.preprocessing)
    with Worker(bundle.artifact()) as worker:
        (scores, *_) = worker(preprocessing(preprocessing.read(parsed.image)[None]))
    if scores.shape != (1, len(bundle.labels)):
        raise ValueError(f"{parsed.bundle} names {len(bundle.labels)} classes, its output is {list(scores.shape)}")
    odds = np.exp(scores[0] - scores[0].max())
    odds /= odds.sum()
    best = [(bundle.labels[i], float(odds[i])) for i in np.argsort(-odds)[: max(1, parsed.top)]]
    if parsed.json:
        report.write_json([{"label": label, "probability": share} for label, share in best])
    else:
        report.table(("label", "probability"), [(label, f"{share:.1%}") for label, share in best])
    return 0


def _export(arguments: list[str], parser: type[argparse.ArgumentParser]) -> int:
    own = parser(
        "hnas-deploy export", description="Compile, verify and measure a static network of your own, and bundle it."
    )
    add: Any = own.add_argument
    add("network", nargs="?", metavar="NETWORK", help="FILE.onnx, or as --model")
    add("--model", metavar="PACKAGE.MODULE:CALLABLE", help="returns an nn.Module, or (module, inputs); or FILE.onnx")
    add("--target", required=True, metavar="DEVICE", help="a device profile; hnas-deploy targets lists them")
    add("--input", dest="inputs", action="append", metavar="1x3x64x64", help="the shape of each input in turn")
    add("--calibration", metavar="FILE", help=".npz or .npy of real inputs [N, ...], needed for int8")
    add("--precision", metavar="P", help=PRECISION)
    add("--threads", type=int, metavar="N", help="of the runtime (default: the device's)")
    add("--host", metavar="URL", help=HOST)
    add("--out", metavar="DIR", help="where the run goes (default: runs/DEVICE, numbered)")
    add("--json", action="store_true", help="the result as JSON on standard output")
    options = vars(own.parse_args(arguments))
    as_json, network = options.pop("json"), options.pop("network")
    if (network is None) == (options["model"] is None):
        own.error("give one network: FILE.onnx or PACKAGE.MODULE:CALLABLE")
    options["model"] = options["model"] or network
    from hnas import hw_profiles

    hw_profiles.load(options["target"])  # the likeliest slip is answered before torch is imported
    from hnas.deployment.static import export_static

    # A script's own path starts with its folder, not with the user's; ours come first: an export.py is common there.
    sys.path.insert(0, str(Path.cwd()))
    with report.stages() as on:
        found = export_static(on=on, **options)
    if as_json:
        report.write_json(found)
    else:
        report.deployment_table(found)
    return 0


def _verify(arguments: list[str], parser: type[argparse.ArgumentParser]) -> int:
    own = parser("hnas-deploy verify", description="Hold the files of a bundle against the network in eager torch.")
    add: Any = own.add_argument
    add("path", type=Path, metavar="DIR", help="a bundle, or the folder of a failure that --reduce saved")
    add("--supernet", type=Path, metavar="DIR", help="of a bundle of a search (default: the shipped supernet)")
    add("--data", type=Path, metavar="DIR", help="the images that judge its subnets (default: the shipped slice)")
    add("--model", metavar="PACKAGE.MODULE:CALLABLE", help="of a bundle of a network of your own, as for export")
    add("--calibration", type=Path, metavar="FILE", help="with --model: .npz or .npy of real inputs [N, ...]")
    add("--reduce", action="store_true", help="make what fails as small as it still fails, and save it")
    add("--out", type=Path, metavar="DIR", help="where --reduce saves (default: DIR-failing)")
    add("--json", action="store_true", help="the result as JSON on standard output")
    options = vars(own.parse_args(arguments))
    as_json = options.pop("json")
    if not options["path"].is_dir():
        raise FileNotFoundError(f"no bundle at {options['path']}; give the folder that hnas-deploy wrote")
    from hnas.deployment.checking import check_bundle

    sys.path.insert(0, str(Path.cwd()))  # as _export does
    found = check_bundle(**options)
    if as_json:
        report.write_json(found)
    else:
        report.lines(_verified(found))
    return 0 if found["passed"] else 1


def _verified(found: dict[str, Any]) -> list[str]:
    """What a verification saw, for a person."""
    said = []
    for row in found["rows"]:
        said.append(f"{row['file']} ({row['backend']}, {row['precision']}): {row['line']}")
        if "was" in row:
            said.append(f"  when it was saved: {row['was']}")
        small = row.get("reduced")
        if small is not None:
            size = f"{small['operators']} operator(s): " if "operators" in small else ""
            said.append(f"  reduced: {size}{small['line']}")
        if small is not None and "command" in small:
            said.append(f"  again: {small['command']}")
    if not found["passed"] and not any("reduced" in row or "was" in row for row in found["rows"]):
        said.append("--reduce finds the smallest part that fails, and saves it")
    return said
