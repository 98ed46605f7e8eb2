"""Make the artifacts of one network with one maker: ``make_apart(...)``, in a process that may die or be killed.

Making is slow and does not need a quiet machine: only its own duration is recorded.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from hnas import export
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.cases import OURS, PRECISIONS, Case, Folder
from hnas.benchmarks.peers.nets.parts import PeerNet
from hnas.benchmarks.peers.tools import PEERS, Peer
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.device.errors import one_line

_LIMIT = 900.0  # seconds for one maker and network, both precisions


def make_apart(folder: Folder, net: str, backend: str, maker: str, limit: float = _LIMIT) -> None:
    """Make both precisions in a separate process. Record the outcome of each, including errors and timeouts."""
    peer = PEERS[backend].get(maker)
    reason = peer.missing if peer is not None else None
    if reason is None:
        arguments = (sys.executable, "-m", __name__, str(folder.path), net, backend, maker)
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=limit, check=False)
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
            reason = f"its process ended with {done.returncode}: {last[:160]}"
        except subprocess.TimeoutExpired:
            reason = f"not finished in {limit:g} s"
    for precision in PRECISIONS:
        case = Case(net, backend, precision)
        if folder.made(case, maker) is None:
            folder.write_made(case, maker, {"error": reason})


def _make(folder: Folder, name: str, backend: str, maker: str) -> None:
    """Make both precisions in this process; record duration, memory, and the error against the module."""
    net = export_nets.load(name)
    with torch.no_grad():
        expected = [_arrays(net.module(*map(torch.from_numpy, sample))) for sample in net.evidence]
    for precision in PRECISIONS:
        case, begun = Case(name, backend, precision), perf_counter()
        path = folder.model(case, maker)
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any]
        try:
            artifact = (
                _ours(net, case, path) if maker == OURS else make_peer(PEERS[backend][maker], net, case, path, expected)
            )
            record = {"seconds": round(perf_counter() - begun, 2)}
            with export.Worker(artifact) as worker:
                found = export.check(expected, worker.outputs(net.evidence), precision)
            record |= {"sqnr_db": found.sqnr_db, "max_error": found.max_error, "bytes": artifact.size_bytes}
        except Exception as error:  # noqa: BLE001 - a converter may raise anything; the row reports it
            record = {"error": one_line(error, 300)}
        record["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        folder.write_made(case, maker, record)
    folder.write_inputs(name, net.evidence[0])


def _ours(net: PeerNet, case: Case, path: Path) -> Artifact:
    return export.compile(
        net.module,
        net.examples,
        device=f"{case.backend}-cpu",
        precision=case.precision,
        calibration=net.calibration if case.precision == "int8" else None,
        threads=1,
        path=path,
        # "auto": accuracy recovery only if the plain int8 artifact does not verify
        options=export.CompileOptions(evidence=net.evidence),
    )


def make_peer(peer: Peer, net: PeerNet, case: Case, path: Path, expected: Sequence[Any]) -> Artifact:
    """Make the peer's model and add an artifact record, so that the same worker opens it at the same settings.

    int8 is made from the model in fp32, in the folder beside ``path``.
    """
    sample = net.evidence[0]
    path.mkdir()
    if case.precision == "fp32":
        peer.convert(net.module, net.examples, path / peer.files[0])
    else:
        source = path.with_name("fp32") / peer.files[0]
        if not source.is_file():
            raise ValueError("there is no fp32 model to quantise")
        peer.quantise(source, net.calibration, path / peer.files[0])
    artifact = Artifact(
        path=path,
        backend=case.backend,
        precision=case.precision,
        device=f"{case.backend}-cpu",
        threads=1,
        inputs=_tensors("input", sample),
        outputs=_tensors("output", expected[0]),
        files=digest_files(path, *peer.files),
        notes={"layout": peer.layout(sample)} if peer.channels_last else {},
    )
    artifact.write()
    return artifact


def _arrays(outputs: Any) -> tuple[Any, ...]:
    values = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return tuple(value.numpy() for value in values)


def _tensors(stem: str, values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{stem}{index}", value.shape, str(value.dtype)) for index, value in enumerate(values))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _make(Folder(Path(sys.argv[1])), *sys.argv[2:])
