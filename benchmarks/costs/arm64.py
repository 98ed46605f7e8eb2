"""Run TFLite and ONNX Runtime artifacts on the real arm64 runtimes, under an emulator.

For correctness, and for a cost that is the same on every machine: the guest instructions of one call. That is no
latency: an emulator has neither caches nor a pipeline.

    python -m hnas.benchmarks.costs.arm64 --prepare         # once: an arm64 Python and runtimes into
    ~/.cache/hnas/arm64 python -m hnas.benchmarks.costs.arm64 PATH ...          # bundles, artifacts, .tflite or .onnx
    files
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

from hnas.benchmarks.cli import count, write_line
from hnas.benchmarks.gate.session import seeded_inputs
from hnas.export.bundle import bundle as zoo
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.serve_files import cache
from hnas.export.proof import verification
from hnas.export.remote.transports.emulated import Emulated
from hnas.export.remote.worker import Worker

BACKENDS = ("onnxruntime", "tflite")
_WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")  # of Debian
_PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_17", "2014"))
CPU = "cortex-a76"  # the core of a Raspberry Pi 5: dot products, half precision
_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""  # the runtimes read it, and crash on that of a PC
SAMPLES = 4  # seeded inputs
_PATIENCE = 1200.0  # seconds for one answer: an emulator takes its time


@dataclass(frozen=True)
class _Finding:
    """One artifact: arm64's outputs against those of the same runtime here, and instructions of one call."""

    path: str
    backend: str
    precision: str
    max_error: float
    sqnr_db: float
    passed: bool
    instructions: int | None

    def line(self) -> str:
        """For a person."""
        cost = "not counted" if self.instructions is None else f"{self.instructions:,} instructions"
        verdict = "agrees" if self.passed else "DIFFERS"
        figures = f"max error {self.max_error:.1e}, SQNR {self.sqnr_db:.1f} dB"
        return f"{self.path} ({self.backend}, {self.precision}) {verdict} with this machine: {figures}; {cost}"


def home() -> Path:
    """Where the arm64 Python and its runtimes are kept; it may be removed at any time."""
    return cache() / "arm64"


def missing() -> str | None:
    """None where everything is there, else the line that brings it."""
    if _emulator() is None:
        return "there is no emulator of arm64; apt-get install qemu-user"
    if not (home() / "ready.json").is_file():
        return "there is no arm64 Python yet; python -m hnas.benchmarks.costs.arm64 --prepare"
    return None


def prepare() -> Path:
    """Make `home`: Debian's arm64 Python, and the wheels of this environment's versions. Needs no root.

    Unavailable in one line where a tool, Debian's archive or a wheel is missing.
    """
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing; this needs Debian or Ubuntu ({package})")
    if _emulator() is None:
        raise Unavailable("there is no emulator of arm64; apt-get install qemu-user")
    part = home().with_name("arm64.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    root = part / "root"
    _debian(root)
    found = sorted((root / "usr/bin").glob("python3.[0-9]*"))
    if not found:
        raise Unavailable("Debian's arm64 packages brought no Python")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(_CPUINFO)
    versions = _wheels(part / "site", found[0].name.removeprefix("python"))
    counting = _plugin(part / "count.so")
    record = {"python": f"usr/bin/{found[0].name}", "versions": versions, "counting": counting}
    (part / "ready.json").write_text(json.dumps(record, indent=1))
    shutil.rmtree(home(), ignore_errors=True)
    return part.rename(home())


def examine(path: Path, transport: Emulated, counter: Path | None, runs: int) -> _Finding:
    """Run the artifact at ``path`` here and there. ValueError for one of another runtime, ExportError."""
    artifact = Artifact.read(path)
    if artifact.backend not in BACKENDS:
        raise ValueError(f"{path} is for {artifact.backend}; arm64 runs {', '.join(BACKENDS)}")
    if not artifact.inputs:
        raise ValueError(f"{path} states no inputs; give the artifact's folder")
    samples = [seeded_inputs(artifact.inputs, index) for index in range(SAMPLES)]
    with Worker(artifact, threads=1, backend=artifact.backend) as here:
        expected = here.outputs(samples)
    with Worker(artifact, threads=1, backend=artifact.backend, transport=transport, timeout=_PATIENCE) as there:
        got = there.outputs(samples)
        cost = None if counter is None else instructions(there, samples[0], counter, runs)
    found = verification.check(expected, got, artifact.precision)
    figures = found.max_error, found.sqnr_db, found.passed
    return _Finding(str(path), artifact.backend, artifact.precision, *figures, cost)


def instructions(worker: Worker, inputs: Sequence[object], counter: Path, runs: int) -> int:
    """Guest instructions of one call: what ``runs`` more calls in a request cost, by their number.

    ``counter`` has the total when the worker's answer is on its way. Python's own part of a call is in it.
    """
    totals = []
    for calls in (1, 1, 1 + runs):  # the first binds the inputs
        worker.time(inputs, calls)  # type: ignore[arg-type]
        totals.append(int(counter.read_text()))
    return round(((totals[2] - totals[1]) - (totals[1] - totals[0])) / runs)


def _emulated(folder: Path) -> tuple[Emulated, Path | None]:
    """The transport to an arm64 Python, and the file that counts its instructions, if they can be counted."""
    lacking = missing()
    if lacking is not None:
        raise Unavailable(lacking)
    record = json.loads((home() / "ready.json").read_text())
    emulator, root = _emulator(), home() / "root"
    assert emulator is not None
    counting = bool(record["counting"]) and "static" not in Path(emulator).name
    plugin = ["-plugin", str(home() / "count.so")] if counting else []
    python = [emulator, *plugin, "-cpu", CPU, "-L", str(root), str(root / record["python"])]
    counter = folder / "instructions"
    environment = {"PYTHONPATH": str(home() / "site"), "PYTHONHASHSEED": "0", "HNAS_COUNT": str(counter)}
    return Emulated("arm64 (emulated)", python, folder, environment), counter if counting else None


def _emulator() -> str | None:
    """Debian's static build takes no plugins, so it comes second."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def _debian(root: Path) -> None:
    """The packages and all that they need, unpacked; apt's own state for arm64 is in a folder of ours."""
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
        _do([*apt, "update"])
        _do([*apt, "-y", "--no-install-recommends", "--download-only", "install", *PACKAGES])
        for package in sorted((folder / "archives").glob("*.deb")):
            _do(["dpkg-deb", "-x", str(package), str(root)])


def _wheels(site: Path, python: str) -> dict[str, str]:
    """Unpack the wheels for ``python`` on arm64, in the versions that are here where they are."""
    versions = {}
    for name in _WHEELS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    wanted = [f"{name}=={found}" for name, found in versions.items()]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    how = ["--no-deps", "--only-binary=:all:", *platforms, "--python-version", python, "--implementation", "cp"]
    with tempfile.TemporaryDirectory() as folder:
        _do([sys.executable, "-m", "pip", "download", "-q", *how, "-d", folder, *wanted])
        for wheel in sorted(Path(folder).glob("*.whl")):
            with ZipFile(wheel) as archive:
                archive.extractall(site)
    return versions


def _plugin(target: Path) -> bool:
    """Compile what counts instructions; False where there is no compiler or no emulator that takes it."""
    emulator, compiler = shutil.which("qemu-aarch64"), shutil.which("cc") or shutil.which("gcc")
    if emulator is None or compiler is None:
        return False
    said = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)", said)
    api = 1 if found is None or int(found[1]) < 9 else 2
    source = Path(__file__).with_name("arm64_count.c")
    _do([compiler, "-O2", "-shared", "-fPIC", f"-DAPI={api}", "-o", str(target), str(source)])
    return True


def _do(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = (said or ["no reason given"])[-1][:200]
        raise Unavailable(f"{Path(command[0]).name} ended with {done.returncode}: {reason}")


def _parts(path: Path) -> list[Path]:
    """The artifacts of a bundle, or the one at ``path``."""
    if not (path / zoo.MANIFEST).is_file():
        return [path]
    bundle = zoo.read(path)
    return [each.path for each in (bundle.artifact(), bundle.baseline()) if each is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 all agree, 1 one differs or fails, 2 wrong use, 3 no emulator or nothing prepared."""
    options = parser().parse_args(arguments)
    if not options.paths and not options.prepare:
        parser().error("give bundles or artifacts, or --prepare")
    try:
        if options.prepare:
            write_line(f"prepared {prepare()}")
        return _examine_all(options) if options.paths else 0
    except (OSError, ValueError, ExportError) as error:
        print(f"hnas.benchmarks.costs.arm64: {error}", file=sys.stderr)  # noqa: T201 - one line, without rich
        return error.code if isinstance(error, ExportError) else 2


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    top = argparse.ArgumentParser(
        prog="python -m hnas.benchmarks.costs.arm64", description="arm64 runtimes under an emulator"
    )
    top.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="bundles, artifacts or model files")
    top.add_argument("--prepare", action="store_true", help="make the arm64 Python and its runtimes first")
    top.add_argument("--runs", type=count, default=4, metavar="N", help="calls that are counted (default: 4)")
    top.add_argument("--json", action="store_true", help="one JSON object a line")
    return top


def _examine_all(options: argparse.Namespace) -> int:
    passed = True
    with tempfile.TemporaryDirectory(prefix="hnas-arm64-") as folder:
        transport, counter = _emulated(Path(folder))
        for path in (part for given in options.paths for part in _parts(given)):
            found = examine(path, transport, counter, options.runs)
            write_line(json.dumps(asdict(found)) if options.json else found.line())
            passed = passed and found.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
