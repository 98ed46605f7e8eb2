"""The command line: accepted and refused arguments, and help that loads quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hnas.benchmarks import cli


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60s", 60.0), ("90", 90.0), ("500ms", 0.5), ("2m", 120.0), ("1.5m", 90.0), ("1h", 3600.0)],
)
def test_seconds(text: str, expected: float) -> None:
    assert cli.seconds(text) == pytest.approx(expected)


def test_shape() -> None:
    assert cli.shape("1x3x224x224") == (1, 3, 224, 224)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["chekc"],
        ["check"],
        ["check", "x", "--max-time", "soon"],
        ["check", "x", "--max-time", "-1s"],
        ["check", "x", "--max-time", "inf"],
        ["check", "x", "--min-speedup", "0"],
        ["check", "x", "--min-speedup", "nan"],
        ["check", "x", "--processes", "0"],
        ["check", "x", "--processes", "2.5"],
        ["compare", "x"],
        ["compare", "x", "y", "--input-shape", "1x3xN"],
        ["compare", "x", "y", "--input-shape", "1x0"],
    ],
)
def test_wrong_usage_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "hnas-bench" in capsys.readouterr().err


def test_help_names_the_exit_codes_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from hnas.benchmarks.cli import main\n"
        "try: main(['check', '--help'])\n"
        "except SystemExit: pass\n"
        "light = ('hnas.export', 'hnas.export.device', 'hnas.export.device.privacy')  # switches telemetry off\n"
        "heavy = [name for name in sys.modules if name.startswith('hnas.export') and name not in light]\n"
        "print(heavy + [name for name in ('numpy', 'rich', 'torch', 'hnas.study') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "0 holds, 1 fails" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hnas.benchmarks", "--help"], capture_output=True, text=True, check=True
    )
    assert "check" in done.stdout
    assert "compare" in done.stdout
