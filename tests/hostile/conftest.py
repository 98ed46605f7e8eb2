"""Good files to spoil, and a guard that runs a command in this process and sees what it does."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from PIL import Image

from hnas.benchmarks.cli import main as bench_main
from hnas.cli import deploy_main, train_main
from tests.benchmarks import bundles

COMMANDS = {"deploy": deploy_main, "train": train_main, "bench": bench_main}
SECONDS = 2.0  # of CPU of this process and its children; the limit of a file from elsewhere
HANG = 30
SERIES = {"features": ["a"], "targets": ["a"], "scaling": {"a": [0.0, 1.0]}, "horizon": 1}

Refuse: TypeAlias = Callable[..., str]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles, their data, an ONNX file, the shipped supernet, photographs, a run and a failure."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    import hnas
    from hnas.deployment import options, plan
    from hnas.deployment.folder import run_identity
    from hnas.deployment.source import open_source
    from tests.hostile.builders import copied

    root = tmp_path_factory.mktemp("good")
    bundles.bundle(root, "bundle", heavy=None)
    bundles.recurrent(root, "series", "series-forecasting", SERIES)
    copied(root / "bundle/artifact/model.onnx", root / "net.onnx")
    copied(Path(hnas.__file__).parent / "assets/fashion", root / "supernet")
    for file in (root / "supernet").glob("*.gz"):
        file.unlink()
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{index}.png")
    _save_failure(root / "failing")
    (root / "run").mkdir()
    found = plan.resolve(options.SearchOptions("raspberry-pi-5", budget="1evals", out=root / "run"))
    identity = run_identity(found, open_source(None, None))
    (root / "run/plan.json").write_text(json.dumps(identity))
    (root / "run/journal.jsonl").write_text('["baseline_ms", 1.0, 0.1]\n["other", 1.0, 0.1]\n')
    return root


def _save_failure(folder: Path) -> None:
    """Save a failure of one operator, as ``verify --reduce`` does."""
    import torch

    from hnas.export.diagnosis.reproduction import write_reproduction
    from hnas.export.diagnosis.trial import Setting, TrialVerdict
    from hnas.export.graph.program import capture

    call = (torch.zeros(1, 3),)
    verdict = TrialVerdict("mismatch", "it fails", 0.0, 90.0)
    write_reproduction(folder, capture(torch.nn.ReLU(), call), [call], Setting("onnxruntime"), verdict)


def listing(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return name, kind, size and time of everything in ``folder``. A folder has only a name."""
    found = [(str(path), path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(n, s.st_mode, *((0, 0) if stat.S_ISDIR(s.st_mode) else (s.st_size, s.st_mtime_ns))) for n, s in found]


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Return a function that runs a command, checks that it refuses in one line and touches nothing; the line."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("HNAS_DEBUG", raising=False)
    path = list(sys.path)

    def run(command: str, *arguments: object) -> str:
        work = tmp_path / "work"
        monkeypatch.chdir(work)
        before, begun = listing(tmp_path), cpu()
        try:
            with in_time():
                code = COMMANDS[command]([str(each) for each in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.path[:] = path
        spent, said = cpu() - begun, capfd.readouterr()
        assert code in (1, 2, 3), f"exit code {code}: {said.err}"
        lines = said.err.rstrip("\n").split("\n")
        assert len(lines) == 1, said.err
        assert all(c.isprintable() for c in lines[0]), repr(lines[0])
        assert not said.out, said.out[:500]
        assert "internal error" not in lines[0]
        assert len(lines[0]) < 1200, len(lines[0])
        assert not set(listing(tmp_path)) ^ set(before), "something was written or removed"
        assert spent < SECONDS, f"{spent:.1f} s of CPU"
        return lines[0]

    return run


@contextmanager
def in_time() -> Iterator[None]:
    """Fail the test in the block after ``HANG`` seconds."""
    previous = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def cpu() -> float:
    """Return the seconds of CPU of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _hangs(*_: Any) -> None:
    pytest.fail(f"it hangs; it has run for {HANG} s")  # no Exception, which the code under test may catch


@pytest.fixture(scope="session", autouse=True)
def imported() -> None:
    """Import once what the commands need, so that no test counts it."""
    for name in ("torch", "onnx", "msgspec", "pymoo", "rich.console", "hnas.deployment.search", "hnas.recipes.run"):
        pytest.importorskip(name)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
