"""The command ``hnas-bench loadgen``, scenarios of MLPerf by MLCommons LoadGen: ``add_loadgen(commands, ...)``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hnas.benchmarks.printing import print_rows
from hnas.report import print_lines

_CODES = (
    "exit codes: 0 valid, 1 latency bound of Server missed or the network failed, 2 usage, 3 package missing, "
    "4 too few queries"
)
_MET = ("result_perf_constraints_met", "result_min_duration_met", "result_min_queries_met", "early_stopping_met")
# Scenario -> the figure that MLPerf compares, with its key in LoadGen's log.
_FIGURES = {
    "SingleStream": ("p90 of the latency", "result_90.00_percentile_latency_ns"),
    "MultiStream": ("p99 of the latency of a query", "result_99.00_percentile_per_query_latency_ns"),
    "Server": ("completed", "result_completed_samples_per_sec"),
    "Offline": ("throughput", "result_samples_per_second"),
}
# In Offline, the latency of a sample is its place in the one query.
_PERCENTILES = {"MultiStream": "percentile_per_query_latency_ns", "Offline": None}
_DETAIL, _MARK = "mlperf_log_detail.txt", ":::MLLOG "


@dataclass(frozen=True)
class _LoadReport:
    """Hold LoadGen's results, by the keys of its detailed log, and the calls in the worker alone."""

    scenario: str
    results: Mapping[str, Any]
    median: float
    calls: int

    @property
    def exit_code(self) -> int:
        """Return 0 for a valid result, 1 if the latency bound of Server was missed, 4 if the test was too short."""
        if self.results["result_validity"] == "VALID":
            return 0
        return 4 if self.results.get(_MET[0], True) else 1

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as rows."""
        told = self.results
        why = [key.removeprefix("result_").removesuffix("_met") for key in _MET if told.get(key) is False]
        reason = f": not met: {', '.join(why)}" if why else ""
        name, key = _FIGURES[self.scenario]
        value = f"{told[key] / 1e6:.3f} ms" if key.endswith("_ns") else f"{told[key]:.1f} samples/s"
        queries, samples = told["result_query_count"], told["effective_samples_per_query"]
        rows = [
            ("scenario", f"{self.scenario}, queries: {queries:,}, samples in each: {samples:,}"),
            ("figure", f"{name}: {value}"),
        ]
        ending = _PERCENTILES.get(self.scenario, "percentile_latency_ns")
        if ending is not None:
            shown = [f"p{p} {told[f'result_{p}.00_{ending}'] / 1e6:.3f} ms" for p in (50, 90, 99)]
            rows.append(("latency", ", ".join(shown)))
        rows.append(("network", f"median {1e3 * self.median:.3f} ms of {self.calls:,} calls in the worker"))
        return [*rows, ("result", f"{told['result_validity']}{reason} (exit code {self.exit_code})")]

    def to_json(self) -> dict[str, Any]:
        """Return the results of LoadGen by its own keys, and the median call in seconds."""
        kept = ("result_", "effective_", "early_", "loadgen_version")
        results = {key: value for key, value in self.results.items() if key.startswith(kept)}
        return {"schema": 1, "loadgen": results, "call_median_s": self.median, "calls": self.calls}


def add_loadgen(commands: Any, seconds: Callable[[str], float], number: Callable[[str], float]) -> None:
    """Add ``loadgen`` to the sub-commands of ``hnas-bench``. ``seconds``, ``number``: types of positive values."""
    told = "run a bundle in a scenario of MLPerf, with MLCommons LoadGen"
    command = commands.add_parser("loadgen", help=told, epilog=_CODES)
    add = command.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="bundle, or the folder of an artifact")
    add("--scenario", choices=tuple(_FIGURES), default="SingleStream", help="default: %(default)s")
    add("--seconds", type=seconds, default=10.0, metavar="10s", help="least time of the test (default %(metavar)s)")
    add("--qps", type=number, metavar="N", help="Server: queries per second")
    add("--latency", type=seconds, default=0.1, metavar="100ms", help="Server: bound of p99 (default %(metavar)s)")
    add("--out", type=Path, metavar="DIR", help="keep the log files of LoadGen in this folder")
    add("--json", action="store_true", help="print LoadGen's results as JSON and nothing else")
    command.set_defaults(run=_run_loadgen)


def _run_loadgen(arguments: argparse.Namespace) -> int:
    """Run ``hnas-bench loadgen``."""
    from hnas.benchmarks.gate.loadgen import LoadOptions
    from hnas.benchmarks.gate.records import require_writable, to_text
    from hnas.export.remote.scratch import Scratch

    options = LoadOptions(arguments.scenario, arguments.seconds, arguments.qps, arguments.latency)
    _require(arguments.bundle)
    if arguments.out is None:
        with Scratch() as folder:
            report = _measure(arguments.bundle, options, folder)
    else:
        require_writable(arguments.out / _DETAIL)
        report = _measure(arguments.bundle, options, arguments.out)
    if arguments.json:
        print_lines([to_text(report.to_json())])
    else:
        print_rows([("bundle", str(arguments.bundle)), *report.rows()])
    return report.exit_code


def _require(path: Path) -> None:
    """Raise ValueError unless ``path`` is valid and states its inputs; Unavailable if a package is missing."""
    from hnas.benchmarks.gate.contrast import open_side
    from hnas.benchmarks.gate.runtimes import require_runtime
    from hnas.export.device.errors import needing

    _, artifact = open_side(path)
    if not artifact.inputs:
        raise ValueError(f"{path} does not state its inputs; give a bundle, or the folder of an artifact")
    require_runtime(artifact.backend)
    with needing("loadgen"):
        import_module("mlperf_loadgen")  # a process that is started later uses it


def _measure(path: Path, options: Any, logs: Path) -> _LoadReport:
    """Run the test, and read LoadGen's detailed log."""
    from hnas.benchmarks.gate.loadgen import run_process

    median, calls = run_process(path, options, logs)
    lines = (logs / _DETAIL).read_text("utf-8").splitlines()
    entries = [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
    return _LoadReport(options.scenario, {each["key"]: each["value"] for each in entries}, median, calls)
