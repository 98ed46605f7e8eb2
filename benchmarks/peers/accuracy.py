"""Compare int8 with each peer at several of its settings: ``python -m hnas.benchmarks.peers.accuracy --nets A,B``.

Each row is one maker of one network: dB and top-1 agreement on samples that nothing was fitted to. No time is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
    parser.add_argument("--nets", default=",".join(photographs.NAMES), metavar="A,B", help="default: those of timm")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B")
    parser.add_argument("--samples", type=int, default=32, metavar="N", help="samples of calibration, and of evidence")
    parser.add_argument("--recover", default="auto", help="recovery of ours (default: auto)")
    parser.add_argument("--only-ours", action="store_true", help="leave out the peers")
    options = parser.parse_args(arguments)
    for name in options.nets.split(","):
        if why := export_nets.missing(name):
            print(f"{name} is left out: {why}", flush=True)  # noqa: T201 - the output
            continue
        whole = export_nets.load(name)
        net = replace(
            whole, calibration=whole.calibration[: options.samples], evidence=whole.evidence[: options.samples]
        )
        for backend in options.backends.split(","):
            for row in compare(net, Case(name, backend, "int8"), options.recover, peers=not options.only_ours):
                print(json.dumps(row), flush=True)  # noqa: T201 - the output


def compare(net: PeerNet, case: Case, recover: str = "auto", *, peers: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a row for ours, and for each setting of each peer: maker, sqnr_db, agreement; or an error."""
    with torch.no_grad():
        expected = [(net.module(*map(torch.from_numpy, sample)).numpy(),) for sample in net.evidence]

    def row(maker: str, make: Callable[[Path], Artifact]) -> dict[str, Any]:
        found: dict[str, Any] = {"net": case.net, "backend": case.backend, "maker": maker}
        with TemporaryDirectory() as folder:
            try:
                with export.Worker(make(Path(folder) / "int8")) as worker:
                    return found | scores(expected, worker.outputs(net.evidence))
            except Exception as error:  # noqa: BLE001 - a converter may raise anything; the row reports it
                return found | {"error": one_line(error, 200)}

    yield row(OURS, lambda path: _ours(net, case, path, recover))
    for name, peer in PEERS[case.backend].items() if peers else ():
        if peer.missing:
            yield {"net": case.net, "backend": case.backend, "maker": name, "error": peer.missing}
            continue
        for label, settings in {"default": {}, **TUNED.get(name, {})}.items():
            tuned = replace(peer, quantise=partial(peer.quantise, **settings))
            yield row(f"{name}, {label}", partial(_theirs, net, case, tuned, expected))


def scores(expected: Sequence[Any], got: Sequence[Any]) -> dict[str, float]:
    """Return the signal-to-noise ratio of the first output in dB, and the share of samples with the same maximum."""
    want, have = (np.concatenate([each[0].reshape(1, -1) for each in outputs]) for outputs in (expected, got))
    noise = np.square(want.astype(np.float64) - have).sum()
    level = 10 * np.log10(np.square(want.astype(np.float64)).sum() / max(float(noise), 1e-300))
    agreement = float(np.mean(want.argmax(1) == have.argmax(1)))
    return {"sqnr_db": round(float(level), 1), "agreement": round(agreement, 3)}


def _ours(net: PeerNet, case: Case, path: Path, recover: str) -> Artifact:
    return export.compile(
        net.module,
        net.examples,
        device=f"{case.backend}-cpu",
        precision="int8",
        calibration=net.calibration,
        threads=1,
        path=path,
        options=export.CompileOptions(recover=recover, classifier=True),
    )


def _theirs(net: PeerNet, case: Case, peer: Peer, expected: Sequence[Any], path: Path) -> Artifact:
    source = path.with_name("fp32")
    source.mkdir()
    peer.convert(net.module, net.examples, source / peer.files[0])
    return making.make_peer(peer, net, case, path, expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
