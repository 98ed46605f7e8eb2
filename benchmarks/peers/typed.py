"""Build the typed files of networks with TensorRT-RTX: ``python -m hnas.benchmarks.peers.typed --out FILE``.

Each row is one network in one precision for one SM: whether TensorRT-RTX builds the file, which layers of the parsed
network are above the precision, how many nodes stay in fp32, and the error of the file in ONNX Runtime against the
module. No GPU is needed, and no time of a network is measured. ``--print FILE`` prints the rows as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hnas import hw_profiles
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.nets.parts import PeerNet
from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.tensorrt.rtx import TARGETS, RtxVerdict, check_with_rtx, missing, named_in
from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact
from hnas.export.device.engine_types import TYPES
from hnas.export.device.errors import ExportError, one_line
from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.program import capture
from hnas.export.proof.verification import Check, check

_PRECISIONS = ("fp16", "int8")
_SMS = ("75", *TARGETS)  # SM75 has no product in fp32, but the typed files need few
_SAMPLES = 4  # for the choice of the nodes in fp32 and for int8, and as many others for the error
_COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # TensorRT-RTX reports a precision of each
_PACKAGES = ("tensorrt-rtx-cu12-bindings", "torch", "onnx", "onnxruntime")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line a row.

    Return 1 if a file is refused without a node's name, or a layer is above or missing; 3 if no network can be built
    here; else 0.
    """
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.peers.typed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--nets", default=",".join(export_nets.names()), metavar="A,B", help="default: all")
    parser.add_argument("--precisions", default=",".join(_PRECISIONS), metavar="A,B", help="default: fp16,int8")
    parser.add_argument("--sm", default=",".join(_SMS), metavar="A,B", help=f"default: {','.join(_SMS)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the rows in FILE; rows that it has are not made")
    parser.add_argument("--print", type=Path, metavar="FILE", help="print the rows of FILE as a table, and make none")
    options = parser.parse_args(arguments)
    if options.print is not None:
        _say("\n".join(table(read_rows(options.print))))
        return 0
    if lacking := missing():
        parser.exit(3, f"{lacking}\n")
    rows, left_out = read_rows(options.out), {name: export_nets.missing(name) for name in options.nets.split(",")}
    for name, why in left_out.items():
        if why:
            _say(f"{name} is left out: {why}")
        else:
            rows += _make_missing(name, options, rows)
    return 3 if all(left_out.values()) else int(not all(passes(row) for row in rows))


def _make_missing(name: str, options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make, print and keep the rows of a network that ``rows`` lack; return them."""
    made = []
    for precision in options.precisions.split(","):
        known = {row["sm"] for row in rows if (row["net"], row["precision"]) == (name, precision)}
        targets = [sm for sm in options.sm.split(",") if sm not in known]
        for row in build_rows(name, precision, targets) if targets else []:
            made.append(row)
            _say(json.dumps(row))
            _keep(options.out, row)
    return made


def make_typed(net: PeerNet, precision: str, folder: Path) -> Artifact:
    """Write the typed file of a network for a Jetson into the empty ``folder``."""
    program, jetson = fuse(capture(net.module, net.examples), passes_for("tensorrt")), hw_profiles.load("jetson")
    calibration = net.calibration[:_SAMPLES]
    return make_artifact("tensorrt", program, folder, precision=precision, device=jetson, calibration=calibration)


def layers_above(made: Artifact, verdict: RtxVerdict) -> list[str]:
    """Return the layers that TensorRT-RTX computes in a higher precision than the typed file states for them."""
    types = made.notes[TYPES]
    wide = {layer for layer, found in verdict.precisions.items() if found == "f32"} - set(types["fp32"])
    return sorted(wide | {layer for layer in types.get("int8", []) if verdict.precisions.get(layer, "") == "f16"})


def layers_missing(made: Artifact, verdict: RtxVerdict) -> list[str]:
    """Return the convolutions and products of the typed file of which TensorRT-RTX reports no precision."""
    stated = {*_node_names(made.model, _COMPUTING), *made.notes[TYPES].get("int8", [])}
    return [] if verdict.parse else sorted(stated - verdict.precisions.keys())


def compare_with_module(net: PeerNet, made: Artifact) -> Check:
    """Run the typed file in ONNX Runtime, and compare its outputs with those of the module on unseen samples."""
    runner, samples = runtimes.load("onnxruntime").load(made), net.evidence[:_SAMPLES]
    with torch.no_grad():
        expected = [(net.module(*map(torch.from_numpy, sample)).numpy(),) for sample in samples]
    return check(expected, [tuple(runner(*sample)) for sample in samples], made.precision)


def build_rows(name: str, precision: str, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each SM.

    sm: such as "86".
    built: whether TensorRT-RTX builds the file.
    seconds: duration of the build.
    refused, node: the reason, and the node of the file that it names; empty if built.
    above: layers above the precision.
    missing: convolutions and products of which TensorRT-RTX reports no precision.
    fp32: number of nodes that stay in fp32.
    sqnr_db: signal-to-noise ratio in ONNX Runtime against the module.
    """
    net = export_nets.load(name)
    row: dict[str, Any] = {"net": name, "precision": precision}
    with TemporaryDirectory() as folder:
        try:
            made = make_typed(net, precision, Path(folder))
            verdict = check_with_rtx(made.model, targets)
        except ExportError as error:  # before a build, for every SM
            said = one_line(error, 300)
            return [{**row, "sm": sm, "built": False, "refused": said, "node": "", "above": []} for sm in targets]
        row |= {"above": layers_above(made, verdict), "missing": layers_missing(made, verdict)}
        row |= {"fp32": len(made.notes[TYPES]["fp32"]), "sqnr_db": round(compare_with_module(net, made).sqnr_db, 1)}
        nodes = _node_names(made.model)
    rows = []
    for sm in targets:
        reason = verdict.parse or verdict.refused.get(sm, "")
        node = named_in(reason, nodes)
        seconds = {"seconds": verdict.built[sm]} if sm in verdict.built else {}
        rows.append({**row, "sm": sm, "built": not reason, **seconds, "refused": reason, "node": node})
    return rows


def passes(row: dict[str, Any]) -> bool:
    """Return whether the file is built at its stated precision, or refused with the name of a node."""
    return not row["above"] and not row.get("missing") and bool(row["built"] or row["node"])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table, one for each network; figures of its precisions are separated by commas."""
    lines = ["| network | precisions | built for SM | refused | layers above | nodes in fp32 | dB |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for net in dict.fromkeys(row["net"] for row in rows):
        lines.append(f"| {' | '.join(_cells([row for row in rows if row['net'] == net]))} |")
    return lines


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the line of one network. It is built for an SM if the files of all precisions are."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["precision"], row)
    missed = [row for row in rows if not row["built"]]
    built = " ".join(sorted({row["sm"] for row in rows} - {row["sm"] for row in missed}, key=int))
    refused = ", ".join(f"{row['precision']} SM{row['sm']}" for row in missed)
    above = len({(row["precision"], layer) for row in rows for layer in row["above"]})
    figures = [", ".join(str(row.get(key, "-")) for row in first.values()) for key in ("fp32", "sqnr_db")]
    return [rows[0]["net"], ", ".join(first), built or "-", refused or "-", str(above), *figures]


def _node_names(model: Path, operators: Collection[str] = ()) -> Collection[str]:
    """Return the names of the nodes of an ONNX file, or only of those with one of ``operators``."""
    import onnx

    nodes = onnx.load(model, load_external_data=False).graph.node
    return {node.name for node in nodes if node.name and (not operators or node.op_type in operators)}


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a file of results, without the lines that say how the rows after them were made."""
    lines = path.read_text("utf-8").splitlines() if path is not None and path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may leave half a line
    return [row for row in rows if "sm" in row]


def _keep(path: Path | None, row: dict[str, Any]) -> None:
    """Add a row; before it a line with the versions, unless the last such line has the same."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.read_text("utf-8") if path.is_file() else ""
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    last = next((line for line in reversed(known.splitlines()) if line.startswith('{"about"')), "")
    with path.open("a", encoding="utf-8") as file:
        if known and not known.endswith("\n"):  # a killed run has left half a line
            file.write("\n")
        if f", with {versions}." not in last:
            about = f"Recorded on {datetime.now(UTC).date()} by python -m hnas.benchmarks.peers.typed, with {versions}."
            file.write(json.dumps({"about": about}) + "\n")
        file.write(json.dumps(row) + "\n")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the output


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
