"""Measure time and memory of compiling one net for every CPU backend in both precisions, and the overhead of a worker.

Call ``measure_limits()``. The compilations run in a separate process.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_NET = "mobilenetv3"  # 5.5 M parameters
_PERIOD = 0.05  # seconds between two readings of the memory
_JOBS = 12


def measure_limits(
    net: str = _NET, backends: tuple[str, ...] = ("onnxruntime", "openvino", "tflite")
) -> dict[str, Any]:
    """Return the seconds and peak memory of compiling, and the milliseconds that a warm worker adds to a job.

    The seconds include imports, network, conversion, calibration and verification. The memory is that of a fresh
    process and of all processes that it starts, as `run_watched` counts it.
    """
    begun = time.monotonic()
    done, peak = run_watched((sys.executable, "-m", __name__, net, *backends), _PERIOD, stdout=subprocess.PIPE)
    said = done.stdout.splitlines()
    if done.returncode or not said:
        return {"net": net, "error": f"the process ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(said[-1])
    whole = time.monotonic() - begun - found.pop("worker_seconds")
    return {"net": net, "seconds": round(whole, 1), "peak_mb": round(peak / 2**20), **found}


def run_watched(command: Sequence[str], period: float, **options: Any) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a command to its end, and return it with its peak memory in bytes.

    The memory is the sum of the PSS (proportional set size) of the process and of all its descendants: of a page that n
    processes share, each counts 1/n. So the pages of a library that all of them load count once. Other programs that
    have loaded the same library lower the sum; measure without them.

    period: seconds between two readings of the memory. A reading takes some milliseconds for each process.
    options: of ``subprocess.Popen``.
    """
    peak = 0
    with subprocess.Popen(command, text=True, **options) as child:
        while True:
            try:
                out, err = child.communicate(timeout=period)
            except subprocess.TimeoutExpired:
                peak = max(peak, sum(map(_pss, _family(child.pid))))
            else:
                return subprocess.CompletedProcess(command, child.returncode, out, err), peak


def _family(process: int) -> list[int]:
    """Return a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = _read(entry / "stat").rpartition(")")[2].split()
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [process]
    for each in found:
        found += parents.get(each, [])
    return found


def _pss(process: int) -> int:
    """Return the proportional set size of a process in bytes; 0 for one that has ended."""
    found = re.search(r"^Pss:\s+(\d+) kB", _read(Path(f"/proc/{process}/smaps_rollup")), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # the process has ended
        return ""


def _compile_all(name: str, backends: list[str]) -> dict[str, Any]:
    """Compile both precisions on every backend, then measure the overhead of a worker that already runs."""
    import torch

    from hnas import export
    from hnas.benchmarks.peers import nets as export_nets

    torch.set_num_threads(1)
    net = export_nets.load(name)
    steps, workers = dict[str, float](), dict[str, float]()
    with TemporaryDirectory() as folder:
        for backend in backends:
            for precision in ("fp32", "int8"):
                begun = time.monotonic()
                export.compile(
                    net.module,
                    net.examples,
                    device=f"{backend}-cpu",
                    precision=precision,
                    calibration=net.calibration if precision == "int8" else None,
                    path=Path(folder) / f"{backend}-{precision}",
                )
                steps[f"{backend} {precision}"] = round(time.monotonic() - begun, 2)
        begun = time.monotonic()
        for backend in backends:
            workers[backend] = round(_overhead(Path(folder) / f"{backend}-fp32", net.evidence[0]), 1)
        spent = time.monotonic() - begun
    parameters = sum(value.numel() for value in net.module.parameters())
    return {"parameters": parameters, "steps": steps, "worker_ms": workers, "worker_seconds": spent}


def _overhead(path: Path, inputs: Any) -> float:
    """Return how many milliseconds longer a job (open an artifact, run it once) takes in a warm worker than here."""
    from hnas import export

    def here() -> None:
        export.load(export.Artifact.read(path))(*inputs)

    with export.Worker(path) as worker:

        def there() -> None:
            worker.open(path)
            worker(*inputs)

        here()
        pairs = [(_seconds(here), _seconds(there)) for _ in range(_JOBS)]
    return 1e3 * statistics.median(there - here for here, there in pairs)


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(json.dumps(_compile_all(sys.argv[1], sys.argv[2:])))  # noqa: T201 - the answer to the parent
