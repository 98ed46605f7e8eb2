"""Run TFLite and ONNX Runtime artifacts on the real arm64 runtimes, under an emulator.

    python -m hnas.benchmarks.costs.arm64 --prepare     # once: an arm64 Python and runtimes in ~/.cache/hnas/arm64
    python -m hnas.benchmarks.costs.arm64 PATH ...      # bundles, artifacts, .tflite or .onnx files

The command checks correctness, and counts the arm64 instructions of one call, a number that is the same on every
machine. This number is not a latency, because an emulator has neither caches nor a pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import ZipFile

from hnas.benchmarks.cli import count
from hnas.benchmarks.gate.session import seeded_inputs
from hnas.deployment.installed import versions_of
from hnas.export.bundle.bundle import read_bundle
from hnas.export.bundle.card import MANIFEST
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.serve_files import cache_folder
from hnas.export.proof import verification
from hnas.export.remote.transports.emulated import Emulated
from hnas.export.remote.worker import Worker
from hnas.report import print_lines

BACKENDS = ("onnxruntime", "tflite")
_WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")  # of Debian
_PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_17", "2014"))
_CPU = "cortex-a76"  # the core of a Raspberry Pi 5: dot products, half precision
_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""  # /proc/cpuinfo of the emulated core; the runtimes read this file, and crash with the file of a PC
_SAMPLES = 4  # seeded inputs
_TIMEOUT = 1200.0  # seconds for one answer of the slow emulator


@dataclass(frozen=True)
class _Finding:
    """One artifact: the error on arm64 relative to the same runtime on this machine, and the instructions of a call.

    path: the artifact.
    max_error: largest absolute difference of the outputs.
    sqnr_db: signal-to-noise ratio of the outputs in dB.
    passed: whether the difference is within the limits of ``precision``.
    instructions: arm64 instructions of one call; None: not counted.
    """

    path: str
    backend: str
    precision: str
    max_error: float
    sqnr_db: float
    passed: bool
    instructions: int | None

    def line(self) -> str:
        """Return the finding as one line of text."""
        cost = "not counted" if self.instructions is None else f"{self.instructions:,} instructions"
        verdict = "agrees" if self.passed else "DIFFERS"
        figures = f"max error {self.max_error:.1e}, SQNR {self.sqnr_db:.1f} dB"
        return f"{self.path} ({self.backend}, {self.precision}) {verdict} with this machine: {figures}; {cost}"


def _home() -> Path:
    """Return the folder of the arm64 Python and its runtimes; it may be deleted at any time."""
    return cache_folder() / "arm64"


def missing_emulator() -> str | None:
    """Return what is missing, with the command that installs it; None if nothing is missing."""
    if _emulator() is None:
        return "there is no emulator of arm64; apt-get install qemu-user"
    if not (_home() / "ready.json").is_file():
        return "there is no arm64 Python yet; python -m hnas.benchmarks.costs.arm64 --prepare"
    return None


def _install_runtimes() -> Path:
    """Install Debian's arm64 Python, and wheels in the versions of this environment. No root rights are needed.

    Raises:
        Unavailable: a tool, Debian's archive or a wheel is missing.
    """
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing; this needs Debian or Ubuntu ({package})")
    if _emulator() is None:
        raise Unavailable("there is no emulator of arm64; apt-get install qemu-user")
    part = _home().with_name("arm64.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    root = part / "root"
    _unpack_debian(root)
    found = sorted((root / "usr/bin").glob("python3.[0-9]*"))
    if not found:
        raise Unavailable("Debian's arm64 packages brought no Python")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(_CPUINFO)
    versions = _unpack_wheels(part / "site", found[0].name.removeprefix("python"))
    counting = _compile_plugin(part / "count.so")
    record = {"python": f"usr/bin/{found[0].name}", "versions": versions, "counting": counting}
    (part / "ready.json").write_text(json.dumps(record, indent=1))
    shutil.rmtree(_home(), ignore_errors=True)
    return part.rename(_home())


def examine(path: Path, transport: Emulated, counter: Path | None, runs: int) -> _Finding:
    """Run the artifact at ``path`` on this machine and on arm64, and compare.

    counter: the file with the instruction count; None: instructions are not counted.
    runs: number of calls to count.

    Raises:
        ValueError: the artifact is for another runtime, or states no inputs.
        ExportError: the artifact cannot be run.
    """
    artifact = Artifact.read(path)
    if artifact.backend not in BACKENDS:
        raise ValueError(f"{path} is for {artifact.backend}; arm64 runs {', '.join(BACKENDS)}")
    if not artifact.inputs:
        raise ValueError(f"{path} states no inputs; give the artifact's folder")
    samples = [seeded_inputs(artifact.inputs, index) for index in range(_SAMPLES)]
    with Worker(artifact, threads=1, backend=artifact.backend) as here:
        expected = here.outputs(samples)
    with Worker(artifact, threads=1, backend=artifact.backend, transport=transport, timeout=_TIMEOUT) as there:
        got = there.outputs(samples)
        cost = None if counter is None else instructions(there, samples[0], counter, runs)
    found = verification.check(expected, got, artifact.precision)
    figures = found.max_error, found.sqnr_db, found.passed
    return _Finding(str(path), artifact.backend, artifact.precision, *figures, cost)


def instructions(worker: Worker, inputs: Sequence[object], counter: Path, runs: int) -> int:
    """Return the arm64 instructions of one call: the instructions of ``runs`` more calls, divided by ``runs``.

    The number includes the part of Python in a call.

    counter: the file that holds the total number of instructions when the worker has answered.
    """
    totals = []
    for calls in (1, 1, 1 + runs):  # the first request binds the inputs
        worker.time(inputs, calls)  # type: ignore[arg-type]
        totals.append(int(counter.read_text()))
    return round(((totals[2] - totals[1]) - (totals[1] - totals[0])) / runs)


def _emulated(folder: Path) -> tuple[Emulated, Path | None]:
    """Return the transport to an arm64 Python, and the file with its instruction count, or None."""
    lacking = missing_emulator()
    if lacking is not None:
        raise Unavailable(lacking)
    record = json.loads((_home() / "ready.json").read_text())
    emulator, root = _emulator(), _home() / "root"
    assert emulator is not None
    counting = bool(record["counting"]) and "static" not in Path(emulator).name
    plugin = ["-plugin", str(_home() / "count.so")] if counting else []
    python = [emulator, *plugin, "-cpu", _CPU, "-L", str(root), str(root / record["python"])]
    counter = folder / "instructions"
    environment = {"PYTHONPATH": str(_home() / "site"), "PYTHONHASHSEED": "0", "HNAS_COUNT": str(counter)}
    return Emulated("arm64 (emulated)", python, folder, environment), counter if counting else None


def _emulator() -> str | None:
    """Return the path of the emulator; Debian's static build takes no plugins, so it comes second."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def _unpack_debian(root: Path) -> None:
    """Unpack the packages and their dependencies; apt keeps its state for arm64 in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("lists/partial", "archives/partial"):
            (folder / each).mkdir(parents=True)
        (folder / "status").touch()
        places = {
            "State": "",
            "State::Lists": "lists",
            "State::status": "status",
            "Cache": "",
            "Cache::archives": "archives",
        }
        options = [f"Dir::{key}={folder / value}" for key, value in places.items()]
        options += ["APT::Architecture=arm64", "APT::Architectures=arm64", "Debug::NoLocking=1"]
        options += [f"APT::Sandbox::User={os.environ.get('USER', 'root')}"]
        apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
        _run_tool([*apt, "update"])
        _run_tool([*apt, "-y", "--no-install-recommends", "--download-only", "install", *_PACKAGES])
        for package in sorted((folder / "archives").glob("*.deb")):
            _run_tool(["dpkg-deb", "-x", str(package), str(root)])


def _unpack_wheels(site: Path, python: str) -> dict[str, str]:
    """Unpack the wheels for ``python`` on arm64, in the versions of this environment; return the versions."""
    versions = versions_of(_WHEELS)
    wanted = [f"{name}=={found}" for name, found in versions.items()]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    how = ["--no-deps", "--only-binary=:all:", *platforms, "--python-version", python, "--implementation", "cp"]
    with tempfile.TemporaryDirectory() as folder:
        _run_tool([sys.executable, "-m", "pip", "download", "-q", *how, "-d", folder, *wanted])
        for wheel in sorted(Path(folder).glob("*.whl")):
            with ZipFile(wheel) as archive:
                archive.extractall(site)
    return versions


def _compile_plugin(target: Path) -> bool:
    """Compile the plugin that counts instructions; return False without a compiler or an emulator with plugins."""
    emulator, compiler = shutil.which("qemu-aarch64"), shutil.which("cc") or shutil.which("gcc")
    if emulator is None or compiler is None:
        return False
    said = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)", said)
    api = 1 if found is None or int(found[1]) < 9 else 2
    source = Path(__file__).with_name("arm64_count.c")
    _run_tool([compiler, "-O2", "-shared", "-fPIC", f"-DAPI={api}", "-o", str(target), str(source)])
    return True


def _run_tool(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = (said or ["no reason given"])[-1][:200]
        raise Unavailable(f"{Path(command[0]).name} ended with {done.returncode}: {reason}")


def _artifacts_at(path: Path) -> list[Path]:
    """Return the artifacts of a bundle, or the one at ``path``."""
    if not (path / MANIFEST).is_file():
        return [path]
    bundle = read_bundle(path)
    return [each.path for each in (bundle.artifact(), bundle.baseline()) if each is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all agree, 1 if one differs or fails, 2 for wrong usage, 3 without an emulator or --prepare."""
    options = parser().parse_args(arguments)
    if not options.paths and not options.prepare:
        parser().error("give bundles or artifacts, or --prepare")
    try:
        if options.prepare:
            print_lines([f"prepared {_install_runtimes()}"])
        return _examine_all(options) if options.paths else 0
    except (OSError, ValueError, ExportError) as error:
        print(f"hnas.benchmarks.costs.arm64: {error}", file=sys.stderr)  # noqa: T201 - one line, without rich
        return error.code if isinstance(error, ExportError) else 2


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(
        prog="python -m hnas.benchmarks.costs.arm64",
        description="Run artifacts on arm64 runtimes under an emulator, and count the instructions of a call.",
    )
    top.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="bundles, artifacts or model files")
    top.add_argument("--prepare", action="store_true", help="install the arm64 Python and its runtimes first")
    top.add_argument("--runs", type=count, default=4, metavar="N", help="calls that are counted (default: 4)")
    top.add_argument("--json", action="store_true", help="print one JSON object a line")
    return top


def _examine_all(options: argparse.Namespace) -> int:
    passed = True
    with tempfile.TemporaryDirectory(prefix="hnas-arm64-") as folder:
        transport, counter = _emulated(Path(folder))
        for path in (part for given in options.paths for part in _artifacts_at(given)):
            found = examine(path, transport, counter, options.runs)
            print_lines([json.dumps(asdict(found)) if options.json else found.line()])
            passed = passed and found.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
