"""A dry run refuses what the run would refuse, and builds, measures and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hnas import photos


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--out", "/proc/x"), "cannot write to /proc/x: "),
        (("--out", "file/below"), "cannot write to file/below: "),
        (("--out", "full"), "full is in use and holds no run; choose another --out"),
        (("--resume",), "run holds no run to continue; leave out --resume"),
        (("--data", "nowhere"), "no folder nowhere; --data takes "),
        (("--supernet", "nowhere"), "no folder nowhere; --supernet takes "),
        (("--target", "toaster"), "no device 'toaster'"),
        (("--out", "begun", "--resume"), "begun holds a run with other device, "),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_dry_run_refuses_what_the_run_refuses(refused, deploy, quick, wrong: tuple[str, ...], says: str, dry: bool):
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("")
    Path("begun").mkdir()
    Path("begun/plan.json").write_text("{}")
    assert says in refused(*deploy, *wrong, *(["--dry-run"] if dry else []))


def test_a_dry_run_builds_and_measures_nothing(call, deploy, quick, monkeypatch):
    from hnas.deployment import search
    from hnas.export.compiling.compiler import Compiler

    monkeypatch.setattr(Compiler, "convert", pytest.fail)
    monkeypatch.setattr(search, "MeasuredLatency", pytest.fail)
    code, out, _ = call(*deploy, "--out", "deep/er/run", "--dry-run")
    assert code == 0
    assert "roughly " in out
    assert photos.tree(quick) == set()


def test_a_dry_run_imports_no_package_that_the_search_alone_needs():
    code = "import sys, hnas.deployment.estimate; print([name for name in ('pymoo', 'sympy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
