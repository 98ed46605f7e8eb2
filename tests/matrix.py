"""Install hnas beside the oldest and the newest packages that pyproject.toml admits, and use it there.

``python -m tests.matrix PYTHON...`` takes interpreters, the oldest first. The lowest versions go with the first one,
the newest with each of the others. Each environment is new, gets the wheel of this tree, and is removed after use. The
table goes to standard output; the exit code is 1 if anything in it failed. ``--write`` records the versions of a table
without failures in hnas/assets/tested.json, which ``hnas-deploy doctor`` reads.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.hnas import photos

ROOT = Path(__file__).resolve().parent.parent
TESTED = ROOT / "hnas" / "assets" / "tested.json"
SOURCES = ("src", "hnas", "export", "hw_profiles", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
TARGETS = {"openvino": "openvino-cpu", "onnxruntime": "onnxruntime-cpu", "tflite": "tflite-cpu"}
EXTRAS = ",".join(("search", *(f"{name}-convert" for name in TARGETS)))
LIMIT_S = 3600.0

NETWORK = '''
import torch
from torch import nn


class Small(nn.Module):
    """Convolutions, batch norm, a gate, attention: what the passes and the converters treat differently."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
        self.attend = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.depth(self.stem(x))
        x = (x * self.gate(x) + x).flatten(2).transpose(1, 2)
        return self.head(self.attend(x).mean(1))


def small():
    torch.manual_seed(0)
    return Small(), (torch.randn(1, 3, 16, 16),)
'''
SAMPLES = (
    "import numpy; numpy.save('samples.npy', numpy.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype('f4'))"
)


@dataclass
class Column:
    """Describe one environment of the table: its title, the packages in it, and the outcome of each check."""

    title: str
    python: str
    packages: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)


def ranges() -> dict[str, str]:
    """Return the range of every dependency of pyproject.toml but those of ``dev``, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    found = {}
    for line in (*project["dependencies"], *extras):
        name, wanted = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?([^;]*).*", line).groups()
        if name != "hnas":
            found[name] = wanted.strip()
    return found


def lowest() -> list[str]:
    """Return a pin of every dependency to the low end of its range."""
    lows = {name: re.search(r"[>=]=\s*(\d+(?:\.\d+)*)", wanted) for name, wanted in ranges().items()}
    return [f"{name}=={low[1]}" for name, low in lows.items() if low]


def run(*command: str | Path, folder: Path) -> tuple[str, str]:
    """Run a command away from the tree. Return "" or, if it failed, a line that says why; and its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env={**kept, "XDG_CACHE_HOME": str(folder / "cache")} if "pip" not in command else kept,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {LIMIT_S:.0f} s", ""
    if not done.returncode:
        return "", done.stdout
    last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
    return f"exit code {done.returncode}: {last}", done.stdout


def build(folder: Path) -> Path:
    """Return the wheel of a copy of the tree, so that nothing of an earlier build is in it."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    failed, _ = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source, folder=folder)
    if failed:
        raise SystemExit(f"the wheel was not built: {failed}")
    (wheel,) = folder.glob("hnas-*.whl")
    return wheel


def install(venv: Path, python: str, what: str, pins: Sequence[str], uv: str | None = None) -> str:
    """Make a new environment with ``what`` in it, by pip or by the program ``uv``. Return "" or why that failed."""
    constraints = venv.with_suffix(".txt")
    constraints.write_text("\n".join(pins) + "\n")
    failed, _ = run(python, "-m", "venv", venv, folder=venv.parent)
    inside = venv / "bin" / "python"
    pip = (uv, "pip", "install", "--python", inside) if uv else (inside, "-m", "pip", "install")
    if "git+file:" in what:  # pip 23.2, of Python 3.11, takes URLs without a host for paths
        failed = failed or run(*pip, "-q", "--upgrade", "pip", folder=venv.parent)[0]
    return failed or run(*pip, "-q", "-c", constraints, what, folder=venv.parent)[0]


def packages(venv: Path) -> dict[str, str]:
    """Return the version of every package of ``ranges`` in the environment."""
    command = (venv / "bin" / "python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
    listed = {each["name"].lower(): each["version"] for each in json.loads(run(*command, folder=venv.parent)[1])}
    return {name: listed[name] for name in ranges() if name in listed}


def uses(targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the command line of everything that is run in a whole environment."""
    yield "doctor", "hnas-deploy doctor"
    for target in targets:
        yield f"deploy {target}", f"hnas-deploy --target {target} --budget 8evals --out runs/{target}"
        export = f"hnas-deploy export --model mynets:small --target {target} --calibration samples.npy"
        yield f"export {target}", f"{export} --out runs/mine-{target}"
    yield "train", "hnas-train --recipe shapes.toml --data photos --out trained"


def whole(column: Column, pins: Sequence[str], wheel: Path, home: Path, uv: str | None) -> None:
    """Fill a column: install everything, then use it."""
    venv = home / "venv"
    note(column, "install", install, venv, column.python, f"hnas[{EXTRAS}] @ {wheel.as_uri()}", pins, uv)
    if column.outcomes["install"].startswith("ok"):
        column.packages = packages(venv)
        run(venv / "bin" / "python", "-c", SAMPLES, folder=home)
        for name, line in uses([*TARGETS.values()]):
            note(column, name, use, venv, line)
    shutil.rmtree(venv, ignore_errors=True)


def alone(column: Column, pins: Sequence[str], origins: Mapping[str, str], home: Path) -> None:
    """Fill the rows of a device or a CI job: the base and one runtime, which check the bundle made before."""
    venv = home / "venv"
    for backend, target in TARGETS.items():
        for origin, address in origins.items():
            name = f"[{backend}] alone, from the {origin}"
            note(column, name, install, venv, column.python, f"hnas[{backend}] @ {address}", pins)
            if column.outcomes[name].startswith("ok"):
                note(column, name, judge, venv, f"hnas-bench check runs/{target}/bundle --max-time 20s")
            shutil.rmtree(venv, ignore_errors=True)


def use(venv: Path, line: str) -> str:
    """Run a command of the environment, in the folder that holds it. Return "" or why it failed."""
    command, *arguments = line.split()
    return run(venv / "bin" / command, *arguments, folder=venv.parent)[0]


def judge(venv: Path, line: str) -> str:
    """Run a check. Any verdict is a success: whether the speed holds says nothing about versions on a busy machine."""
    failed = use(venv, line)
    return "" if failed.startswith(("exit code 1: ", "exit code 4: ")) else failed


def note(column: Column, name: str, check: Callable[..., str], *arguments: object) -> None:
    """Write the outcome of a check into its column: "ok" with its seconds, or why it failed."""
    start = time.monotonic()
    failed = check(*arguments)
    column.outcomes[name] = failed or f"ok, {time.monotonic() - start:.0f} s"
    sys.stderr.write(f"{column.title}: {name}: {column.outcomes[name]}\n")


def table(columns: Sequence[Column]) -> str:
    """Return a Markdown table: a row for each package and each check, a column for each environment."""
    names = [name for name in ranges() if any(name in column.packages for column in columns)]
    checks = list(dict.fromkeys(name for column in columns for name in column.outcomes))
    lines = ["| | " + " | ".join(column.title for column in columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(each.packages.get(name, "") for each in columns) + " |" for name in names]
    lines += [f"| {name} | " + " | ".join(each.outcomes.get(name, "") for each in columns) + " |" for name in checks]
    return "\n".join(lines)


def write(columns: Sequence[Column]) -> None:
    """Record the lowest and the newest version of each package in the columns, and of Python."""

    def release(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]

    found: dict[str, list[str]] = {}
    for column in columns:
        for name, version in {"Python": column.title.rpartition(" ")[2], **column.packages}.items():
            found[name] = sorted({*found.get(name, ()), version.partition("+")[0]}, key=release)
    TESTED.write_text(json.dumps({name: [each[0], each[-1]] for name, each in sorted(found.items())}, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m tests.matrix", description=(__doc__ or "").splitlines()[0])
    made.add_argument("pythons", nargs="+", metavar="PYTHON", help="interpreters, the oldest first")
    made.add_argument("--end", choices=("lowest", "newest"), help="only this end (default: both)")
    made.add_argument("--folder", type=Path, help="where the environments are made (default: a temporary folder)")
    made.add_argument("--uv", metavar="PROGRAM", help="install whole environments with uv, which is faster than pip")
    made.add_argument("--write", action="store_true", help="record the versions if nothing failed")
    return made


def main() -> int:
    """Make every environment, use it, print the table, and return the exit code."""
    parsed = parser().parse_args()
    ends = [("lowest", parsed.pythons[0]), *(("newest", python) for python in parsed.pythons[1:] or parsed.pythons)]
    columns = []
    with TemporaryDirectory(dir=parsed.folder, prefix="matrix-") as temporary:
        folder = Path(temporary)
        wheel = build(folder)
        origins = {"wheel": wheel.as_uri(), "git URL": f"git+file://{ROOT}"}
        for end, python in ends:
            if parsed.end not in (None, end):
                continue
            home = folder / f"{end}-{len(columns)}"
            photos.write(home / "photos")
            (home / "shapes.toml").write_text(photos.RECIPE)
            (home / "mynets.py").write_text(NETWORK)
            _, version = run(python, "-c", "import platform; print(platform.python_version(), end='')", folder=home)
            column = Column(f"{end}, Python {version}", python)
            columns.append(column)
            pins = lowest() if end == "lowest" else []
            whole(column, pins, wheel, home, parsed.uv)
            alone(column, pins, origins, home)
            shutil.rmtree(home)
    sys.stdout.write(table(columns) + "\n")
    failed = [text for column in columns for text in column.outcomes.values() if not text.startswith("ok")]
    if parsed.write and not failed:
        write(columns)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
