"""``python -m hnas``, ``--version``, near-match suggestions and configuration files: the same for every command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import hnas
from hnas.__main__ import main
from hnas.benchmarks.cli import main as bench_main
from hnas.cli import COMMANDS, deploy_main, train_main

Main = Callable[[Sequence[str]], int]
ALL = [
    (main, ()),
    (deploy_main, ()),
    *((deploy_main, (name,)) for name in COMMANDS),
    (train_main, ()),
    (bench_main, ()),
    (bench_main, ("check",)),
    (bench_main, ("compare",)),
]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command to its end: (exit code, standard output, standard error)."""

    def run(program: Main, *words: str) -> tuple[int, str, str]:
        try:
            code = program(words)
        except SystemExit as left:
            code = int(left.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.mark.parametrize(("program", "words"), ALL)
def test_every_command_says_its_version(ended, program: Main, words: tuple[str, ...]) -> None:
    assert ended(program, *words, "--version") == (0, f"hnas {hnas.__version__}\n", "")


def test_the_module_runs_every_program(ended) -> None:
    done = subprocess.run([sys.executable, "-m", "hnas", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"hnas {hnas.__version__}\n"
    code, out, _ = ended(main)
    assert code == 0
    assert all(f"python -m hnas {name}" in out for name in ("deploy", "train", "bench"))
    for name, usage in (("deploy", "hnas-deploy"), ("train", "hnas-train"), ("bench", "hnas-bench")):
        assert f"usage: {usage}" in ended(main, name, "--help")[1]


@pytest.mark.parametrize(
    ("program", "words", "line"),
    [
        (main, ("depoly",), "no command 'depoly'; did you mean deploy?"),
        (deploy_main, ("targts",), "no command 'targts'; did you mean targets?"),
        (deploy_main, ("xyz",), "no command 'xyz'; see "),
        (deploy_main, ("--target", "jetson", "--max-latancy", "1ms"), "--max-latancy 1ms; did you mean --max-latency?"),
        (deploy_main, ("doctor", "--jsn"), "--jsn; did you mean --json?"),
        (train_main, ("--recipe=x", "--data=x", "--out=x", "--epoch-count=1"), "unrecognized arguments: --epoch-count"),
        (train_main, ("--recipe=x", "--data=x", "--out=x", "--resmue"), "--resmue; did you mean --resume?"),
        (bench_main, ("chekc",), "did you mean check?"),
        (bench_main, ("check", "x", "--min-spedup", "2"), "--min-spedup 2; did you mean --min-speedup?"),
    ],
)
def test_a_slip_is_answered_with_the_nearest_word(ended, program: Main, words: tuple[str, ...], line: str) -> None:
    code, out, err = ended(program, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


# --- configuration files ----------------------------------------------------------------------------------------------


def test_a_file_gives_flags_and_the_command_line_wins(ended, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('target = "jetson"\nmax-latency = "5ms"\nseed = 3\nresume = true\ndry_run = false\n')
    code, out, err = ended(deploy_main, "--config", str(file), "--seed", "4", "--print-config")
    assert (code, err) == (0, "")
    assert out == 'target = "jetson"\nmax-latency = "5ms"\nseed = 4\nresume = true\n'
    file.write_text(out)
    assert ended(deploy_main, f"--config={file}", "--print-config") == (0, out, "")


def test_a_list_in_a_file_is_a_flag_that_repeats(ended, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('target = "jetson"\nmodel = "a:b"\ninput = ["1x3", "1x4"]\n')
    words = ("export", "--config", str(file), "--print-config")
    assert 'input = ["1x3", "1x4"]\n' in ended(deploy_main, *words)[1]
    assert 'input = ["1x9"]\n' in ended(deploy_main, *words, "--input", "1x9")[1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("targt = 'x'", "unknown key 'targt'; did you mean target?; known: target, "),
        ("resume = 'yes'", "resume is 'yes', expected true or false"),
        ("target = ['x']", 'target is ["x"], expected text or a number'),
        ("seed = 'two'", "argument --seed: 'two' is not a whole number"),
        ("target =", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_one_line(ended, tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    code, out, err = ended(deploy_main, "--config", str(file))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_a_missing_file_is_named(ended) -> None:
    assert "no configuration file gone.toml" in ended(train_main, "--config", "gone.toml")[2]


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (deploy_main, ("openvino-cpu", "--max-latency", "doctor", "mixed", "--calibration")),
        (train_main, ("--recipe", "--resume")),
        (bench_main, ("compare", "--min-speedup")),
    ],
)
def test_a_shell_completes_commands_flags_and_devices(ended, program: Main, words: tuple[str, ...]) -> None:
    pytest.importorskip("shtab")
    code, out, err = ended(program, "--print-completion", "bash")
    assert (code, err) == (0, "")
    assert all(word in out for word in words)
    done = subprocess.run(["bash", "-n"], input=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_completion_without_shtab_says_what_to_install(ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = ended(deploy_main, "--print-completion", "zsh")
    assert (code, out) == (3, "")
    assert "shtab is not installed; pip install 'hnas[completion]'" in err
