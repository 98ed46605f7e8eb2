"""The process in which LoadGen tests a network: ``run_process(path, LoadOptions("Offline"), logs)``.

A test of LoadGen cannot be stopped and takes no exception, so it has a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from hnas.export.remote.worker import Worker

_QUERY = {"SingleStream": 1, "MultiStream": 8, "Server": 1, "Offline": 64}  # samples of a query of the warm-up
_CALLS = 64  # at most, for one message to the worker
_SAMPLES = 64  # of the library that LoadGen draws from; all are one array
_MOST_S = 24 * 3600.0


@dataclass(frozen=True)
class LoadOptions:
    """Hold what LoadGen is asked for.

    scenario: SingleStream, MultiStream (queries of 8 samples), Server or Offline.
    seconds: the least time of the test.
    qps, latency: the queries per second of Server, and the bound in seconds that 99 % of them have to keep.

    Raises:
        ValueError: a value is out of range, or ``qps`` is missing or belongs to another scenario.
    """

    scenario: str = "SingleStream"
    seconds: float = 10.0
    qps: float | None = None
    latency: float = 0.1

    def __post_init__(self) -> None:
        if (self.qps is None) is (self.scenario == "Server"):
            raise ValueError(f"the scenario is {self.scenario}; give --qps with Server, and only there")
        if not (0.001 <= self.seconds <= _MOST_S and 1e-6 <= self.latency <= _MOST_S and (self.qps or 0) <= 1e6):
            raise ValueError("the test takes 1 ms to 24 h, --latency is 0.001ms to 24h, and --qps at most 1000000")


def run_process(path: Path, options: LoadOptions, logs: Path) -> tuple[float, int]:
    """Test the artifact in ``path``, and return the median seconds and the number of its calls in the worker.

    path: a bundle, or the folder of an artifact, that was checked before.
    logs: the folder that LoadGen writes its files to.

    Raises:
        ExportError: the network failed.
    """
    from hnas.export.device.errors import ExportError
    from hnas.export.remote.transports.local import own_environment

    words = [str(path.resolve()), str(logs.resolve()), json.dumps(asdict(options))]
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *words],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=own_environment(),
        check=False,
    )
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ExportError(f"the process of LoadGen ended with the code {done.returncode}") from None
    if "error" in told:
        raise ExportError(told["error"])
    return float(told["median"]), int(told["calls"])


@dataclass
class _Served:
    """A system under test: a worker whose inputs are in its memory.

    batch: samples in a call. parent: the process that waits for the result.
    """

    worker: Worker
    inputs: tuple[Any, ...]
    batch: int
    parent: int
    seconds: list[float] = field(default_factory=list)

    def call(self, samples: int) -> int:
        """Run the network on samples, as many in a call as it takes, with one message. Return how many were run.

        The process ends if the network fails, or if nobody waits for the result any more.
        """
        calls = min(_CALLS, -(-samples // self.batch))
        try:
            self.seconds += self.worker.time(self.inputs, calls)
        except Exception as error:  # noqa: BLE001 - LoadGen is C++: an exception in its callback ends in a crash
            _tell({"error": str(error)})
        if os.getppid() != self.parent:
            os._exit(1)
        return min(samples, calls * self.batch)

    def answer(self, query: list[Any]) -> None:
        """Run the samples of a query and report them to LoadGen."""
        from mlperf_loadgen import QuerySampleResponse, QuerySamplesComplete

        done = 0
        while done < len(query):
            end = done + self.call(len(query) - done)
            QuerySamplesComplete([QuerySampleResponse(each.id, 0, 0) for each in query[done:end]])
            done = end

    def expect(self, samples: int, seconds: float) -> float:
        """Warm up, and return the seconds of the fastest of ten queries of ``samples``, with the messages.

        After ``seconds`` no further query is begun.
        """
        spent: list[float] = []
        while len(spent) < 10 and (not spent or sum(spent) < seconds):
            began = time.perf_counter()
            self.call(samples)
            spent.append(time.perf_counter() - began)
        self.seconds.clear()
        return max(1e-6, min(spent))


def _test(served: _Served, options: LoadOptions, folder: str) -> None:
    """Warm up, and let LoadGen run the test. Its files are written to ``folder``."""
    import mlperf_loadgen as lg

    size = _QUERY[options.scenario]
    expected = served.expect(size, options.seconds)
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, options.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1e3 * options.seconds)
    # LoadGen makes the queries before the test: as many as would fill it if each took half of the expected time.
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = round(5e8 * expected)
    settings.offline_expected_qps = size / expected
    settings.server_target_qps = options.qps or 1.0
    settings.server_target_latency_ns = round(1e9 * options.latency)
    logs, output = lg.LogSettings(), lg.LogOutputSettings()
    output.outdir = folder
    logs.log_output, logs.enable_trace = output, False
    system = lg.ConstructSUT(served.answer, lambda: None)
    library = lg.ConstructQSL(_SAMPLES, _SAMPLES, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(system, library, settings, logs, "")  # "": no audit.config of the current folder
    lg.DestroyQSL(library)
    lg.DestroySUT(system)


def _tell(record: dict[str, Any]) -> NoReturn:
    """Print the result and end the process, whatever LoadGen does."""
    sys.stdout.write(f"{json.dumps(record)}\n")
    sys.stdout.flush()
    os._exit(0)


def _main(path: str, folder: str, options: str) -> None:
    from hnas.benchmarks.gate.contrast import open_side
    from hnas.benchmarks.gate.session import seeded_inputs
    from hnas.export.device.dynamic import rows_of
    from hnas.export.device.errors import ExportError
    from hnas.export.remote.worker import Worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    parent = os.getppid()
    bundle, artifact = open_side(Path(path))
    try:
        worker = Worker(artifact, backend=artifact.backend)
    except (ExportError, OSError, ValueError) as error:  # anything else is a fault of hnas, with its traceback
        _tell({"error": str(error)})
    batch = bundle.manifest.latency.batch if bundle else rows_of(artifact) or 1
    served = _Served(worker, seeded_inputs(artifact.inputs, 0), batch, parent)
    _test(served, LoadOptions(**json.loads(options)), folder)
    worker.close()
    _tell({"median": statistics.median(served.seconds), "calls": len(served.seconds)})


if __name__ == "__main__":
    _main(*sys.argv[1:])
