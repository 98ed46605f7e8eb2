"""Write what trtexec of some version prints and exports, for `tests.export.fake_trtexec`.

The formats follow the sources of each version, and nothing was recorded on a device. In NVIDIA/TensorRT:
samples/common/sampleReporting.cpp (summary, --exportTimes, --exportOutput), sampleOptions.cpp (options), logging.h
(prefixes). Parser errors follow logs that users of TensorRT 8.6, 10.3, 10.16 and 11.0 published. The figures are made
up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Version: TypeAlias = tuple[int, int]
_TIME = "[11/22/2026-10:00:00] "
_SPREAD = "min = {0:g} ms, max = {1:g} ms, mean = {2:g} ms, median = {2:g} ms, "
_SPREAD += "percentile(90%) = {1:g} ms, percentile(95%) = {1:g} ms, percentile(99%) = {1:g} ms"


def info(*lines: str) -> list[str]:
    """Return lines of severity I."""
    return [f"{_TIME}[I] {line}" for line in lines]


def warning(*lines: str) -> list[str]:
    """Return lines of severity W."""
    return [f"{_TIME}[W] {line}" for line in lines]


def error(*lines: str) -> list[str]:
    """Return lines of severity E."""
    return [f"{_TIME}[E] {line}" for line in lines]


def banner(digits: str, words: Sequence[str]) -> str:
    """Return the name of the run: TensorRT 10.6 and newer also print the number of the build."""
    build = " [b26]" if len(digits) > 4 and int(digits) >= 100600 else ""
    return f"TensorRT.trtexec [TensorRT v{digits}]{build} # {' '.join(words)}"


def options(version: Version, given: Mapping[str, str]) -> list[str]:
    """Return the sections of options that each run begins with."""
    kind = "ONNX" if "onnx" in given else "*"
    lines = ["=== Model Options ===", f"Format: {kind}", f"Model: {given.get('onnx', '')}"]
    if "onnx" in given:
        precision = "FP32" + "".join(f"+{name.upper()}" for name in ("fp16", "int8") if name in given)
        typed = version >= (11, 0) or "stronglyTyped" in given
        lines += ["=== Build Options ===", *(["Max batch: explicit batch"] if version < (10, 0) else [])]
        lines += ["Memory Pools: workspace: 1024 MiB, dlaSRAM: default", "avgTiming: 8"]
        lines += [f"Precision: {'Strongly Typed' if typed else precision}", f"Save engine: {given['saveEngine']}"]
        lines += ["Input(s)s format: fp32:CHW" if version < (11, 0) else "Input(s)s format: CHW"]
    lines += ["=== System Options ===", "Device: 0", "DLACore:", "=== Inference Options ===", "Batch: Explicit"]
    lines += [f"Data transfers: {'Disabled' if version >= (11, 0) else 'Enabled'}", "Inputs:"]
    lines += [name.replace(":", "<-", 1) for name in given.get("loadInputs", "").split(",")]
    lines += ["=== Reporting Options ===", "Verbose: Disabled", "Percentiles: 90,95,99", ""]
    lines += ["=== Device Information ===", "Selected Device: Orin", "Compute Capability: 8.7", ""]
    return [*info(*lines), *info(f"TensorRT version: {version[0]}.{version[1]}.0", "Loading standard plugins")]


def built(version: Version, given: Mapping[str, str]) -> list[str]:
    """Return the end of a build, after warnings that are no errors."""
    skipped = "buildOnly" if "buildOnly" in given else "skipInference"
    return [
        *info("[TRT] [MemUsageChange] Init CUDA: CPU +2, GPU +0, now: CPU 30, GPU 4096 (MiB)"),
        *info("Start parsing network model."),
        *warning("[TRT] onnx2trt_utils.cpp:374: [E] is no error here: your ONNX model has INT64 weights."),
        *info("Finished parsing network model. Parse time: 0.01"),
        *warning("[TRT] Unable to determine GPU memory usage: In function getGpuMemStatsInBytes"),
        *info("[TRT] Detected 1 inputs and 2 output network tensors.", "Engine built in 2.5 sec."),
        *info(f"Skipped inference phase since --{skipped} is added."),
    ]


def summary(version: Version, runs: int) -> list[str]:
    """Return the report on ``runs`` calls."""
    spread = {"Latency": (0.7, 0.9, 0.8), "Enqueue Time": (0.3, 0.5, 0.4), "H2D Latency": (0.1, 0.2, 0.1)}
    spread |= {"GPU Compute Time": (0.5, 0.6, 0.5), "D2H Latency": (0.0, 0.1, 0.1)}
    lines = ["", "=== Trace details ===", "Trace averages of 10 runs:"]
    lines += ["Average on 10 runs - GPU latency: 0.5 ms - Host latency: 0.8 ms (enqueue 0.4 ms)"] * (runs // 10)
    lines += ["", "=== Performance summary ===", "Throughput: 1234.5 qps"]
    lines += [f"{name}: {_SPREAD.format(*three)}" for name, three in spread.items()]
    lines += ["Total Host Walltime: 0.0123 s", "Total GPU Compute Time: 0.0105 s"]
    graph = info("Capturing CUDA graph for the current execution context") if version >= (11, 0) else []
    unstable = warning("* GPU compute time is unstable, with coefficient of variance = 5.1%.")
    end = info("Explanations of the performance metrics are printed in the verbose logs.", "")
    return [*info("Starting inference"), *graph, *info(*lines), *unstable, *end]


def times(runs: int, moves: bool) -> str:
    """Return the text of --exportTimes, whose GPU time is 0.4444 ms in the last ``runs`` calls and 9 ms before.

    Every number has six digits, also the start of a call 12 s after the first. moves: whether each call transfers its
    data; by default TensorRT 11 does so in the first call only.
    """
    lines = []
    for index in range(runs + 1):
        moved = 0.125 if index == 0 or moves else 0.0
        took, begun = 0.4444 if index else 9.0, 12345.67 + 10.0 * index + moved
        marks = {"Enq": (begun, begun + 0.25), "H2d": (begun - moved, begun), "Compute": (begun, begun + took)}
        marks |= {"D2h": (begun + took, begun + took + moved / 2)}
        fields = {f"{side}{name}Ms": pair[k] for name, pair in marks.items() for k, side in enumerate(("start", "end"))}
        fields |= {"h2dMs": moved, "computeMs": took, "d2hMs": moved / 2, "latencyMs": took + 1.5 * moved}
        lines.append("{ " + ", ".join(f'"{name}" : {value:g}' for name, value in fields.items()) + " }")
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


def outputs(found: Mapping[str, Any]) -> str:
    """Return the text of --exportOutput: six significant digits; the dimensions of a scalar are empty."""
    parts = []
    for name, array in found.items():
        values = ", ".join(f"{value:g}" for value in array.ravel().tolist())
        size = "x".join(map(str, array.shape))
        parts.append(f'{{ "name" : "{name}"\n  , "dimensions" : "{size}"\n  , "values" : [ {values} ]\n  }}\n')
    return "[\n  " + ", ".join(parts) + "]\n"


def refused(version: Version) -> list[str]:
    """Return the log of a parser that refuses the node ``volume``, up to the line with FAILED."""
    importer = ("builtin_op_importers.cpp:5404", "importFallbackPluginImporter", "[8] Assertion failed: creator && ")
    if version >= (10, 0):
        importer = ("onnxOpCheckers.cpp:780", "checkFallbackPluginImporter", "[6] creator && ")
    file = "[TRT] ModelImporter.cpp"
    lines = error("Error[4]: ITensor::getDimensions: Error Code 4: Shape Error") if version >= (10, 16) else []
    lines += error(f'{file}:771: While parsing node number 7 [Det -> "y"]:', f"{file}:772: --- Begin node ---")
    lines += error(f'{file}:773: input: "x"')
    lines += ['output: "y"', 'name: "volume"', 'op_type: "Det"', "attribute {", '  name: "axis"', "  i: 0", "}", ""]
    lines += error(f"{file}:774: --- End node ---", f"{file}:777: ERROR: {importer[0]} In function {importer[1]}:")
    lines += [f'{importer[2]}"Plugin not found, are the plugin name, version, and namespace correct?"']
    lines += error("Failed to parse onnx file")
    return [*lines, *info("Finished parsing network model. Parse time: 0.01"), *failed("Parsing model failed")]


def failed(*first: str) -> list[str]:
    """Return the errors with which a build that failed ends."""
    return error(*first, "Failed to create engine from model or file.", "Engine set up failed")
