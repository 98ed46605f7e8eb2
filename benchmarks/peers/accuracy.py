"""Compare int8 with each peer at several of its settings: ``python -m hnas.benchmarks.peers.accuracy --nets A,B``.

Each row is one maker of one network: dB and top-1 agreement on samples that nothing was fitted to, the same for all
makers. ``seconds`` is the duration of making the file, on a machine that may be busy. No time of a network is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from hnas import export
from hnas.benchmarks.peers import making
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.cases import BACKENDS, OURS, Case
from hnas.benchmarks.peers.nets import photographs
from hnas.benchmarks.peers.nets.parts import PeerNet
from hnas.benchmarks.peers.tools import PEERS, TUNED, Peer
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each maker of each network."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.peers.accuracy", description=__doc__)
    known = ",".join((*photographs.NAMES, *photographs.MORE))
    parser.add_argument("--nets", default=known, metavar="A,B", help="default: those of timm")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B")
    parser.add_argument("--samples", type=int, default=32, metavar="N", help="samples of calibration, and of evidence")
    parser.add_argument("--recover", default="auto", help="recovery of ours (default: auto)")
    parser.add_argument("--only-ours", action="store_true", help="leave out the peers")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the rows in FILE; rows that it has are not made")
    options = parser.parse_args(arguments)
    known_rows = _read(options.out)
    for name in options.nets.split(","):
        if why := export_nets.missing(name):
            print(f"{name} is left out: {why}", flush=True)  # noqa: T201 - the output
            continue
        whole = export_nets.load(name)
        net = replace(
            whole, calibration=whole.calibration[: options.samples], evidence=whole.evidence[: options.samples]
        )
        for backend in options.backends.split(","):
            case = Case(name, backend, "int8")
            made = [row["maker"] for row in known_rows if (row["net"], row["backend"]) == (name, backend)]
            for row in compare(net, case, options.recover, peers=not options.only_ours, made=made):
                print(json.dumps(row), flush=True)  # noqa: T201 - the output
                _keep(options.out, row)


def compare(
    net: PeerNet, case: Case, recover: str = "auto", *, peers: bool = True, made: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield a row for ours, and for each setting of each peer, but for none of ``made``.

    A row has maker, sqnr_db, agreement and seconds, ours also the rung of recovery; or an error.
    """
    with torch.no_grad():
        expected = [(net.module(*map(torch.from_numpy, sample)).numpy(),) for sample in net.evidence]

    def row(maker: str, folder: Path, make: Callable[[Path], Artifact]) -> dict[str, Any]:
        found: dict[str, Any] = {"net": case.net, "backend": case.backend, "maker": maker}
        begun = perf_counter()
        try:
            artifact = make(folder / "int8")
            found["seconds"] = round(perf_counter() - begun, 1)
            with export.Worker(artifact) as worker:
                return found | scores(expected, worker.outputs(net.evidence)) | _rung(artifact)
        except Exception as error:  # noqa: BLE001 - a converter may raise anything; the row reports it
            return found | {"error": one_line(error, 200)}
        finally:
            shutil.rmtree(folder / "int8", ignore_errors=True)

    ours = OURS if recover == "auto" else f"{OURS}, {recover}"
    if ours not in made:
        with TemporaryDirectory() as folder:
            yield row(ours, Path(folder), lambda path: _ours(net, case, path, recover))
    for name, peer in PEERS[case.backend].items() if peers else ():
        if peer.missing:
            yield {"net": case.net, "backend": case.backend, "maker": name, "error": peer.missing}
            continue
        with TemporaryDirectory() as folder:
            for label, settings in {"default": {}, **TUNED.get(name, {})}.items():
                tuned = replace(peer, quantise=partial(peer.quantise, **settings))
                if f"{name}, {label}" not in made:
                    yield row(f"{name}, {label}", Path(folder), partial(_theirs, net, case, tuned, expected))


def scores(expected: Sequence[Any], got: Sequence[Any]) -> dict[str, float]:
    """Return the signal-to-noise ratio of the first output in dB, and the share of samples with the same maximum."""
    want, have = (np.concatenate([each[0].reshape(1, -1) for each in outputs]) for outputs in (expected, got))
    noise = np.square(want.astype(np.float64) - have).sum()
    level = 10 * np.log10(np.square(want.astype(np.float64)).sum() / max(float(noise), 1e-300))
    agreement = float(np.mean(want.argmax(1) == have.argmax(1)))
    found = export.check(expected, got, "int8")
    return {"sqnr_db": round(float(level), 1), "agreement": round(agreement, 3), "worst_db": round(found.lowest_db, 1)}


def _rung(artifact: Artifact) -> dict[str, Any]:
    """Return the edits of recovery that were kept, and the grade; nothing for an artifact of a peer."""
    if "verification" not in artifact.notes:
        return {}
    edits = artifact.notes.get("quantisation", {}).get("recovery", [])
    kept = [edit["edit"] for edit in edits if edit.get("kept")]
    return {"edits": kept, "grade": artifact.notes["verification"].get("grade")}


def _read(path: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a file of results that are no errors."""
    lines = path.read_text("utf-8").splitlines() if path is not None and path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may leave half a line
    return [row for row in rows if "sqnr_db" in row]


def _keep(path: Path | None, row: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _ours(net: PeerNet, case: Case, path: Path, recover: str) -> Artifact:
    return export.compile(
        net.module,
        tuple(map(torch.from_numpy, net.calibration[0])),  # the evidence stays unseen
        device=f"{case.backend}-cpu",
        precision="int8",
        calibration=net.calibration,
        threads=1,
        path=path,
        options=export.CompileOptions(recover=recover, classifier=True),
    )


def _theirs(net: PeerNet, case: Case, peer: Peer, expected: Sequence[Any], path: Path) -> Artifact:
    source = path.with_name("fp32")
    if not source.exists():  # once for all settings
        source.mkdir()
        peer.convert(net.module, net.examples, source / peer.files[0])
    return making.make_peer(peer, net, case, path, expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
