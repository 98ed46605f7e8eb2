"""The end of a command: the numbered cases of ``describe_failure``. An internal error is never taken for wrong use."""

from __future__ import annotations

import pytest

from hnas.cli import ending
from hnas.cli.arguments import Parser
from hnas.export.device.errors import ExportError, Unavailable
from hnas.training.optimiser import Diverged


def key_error() -> int:
    return {"a": 1}["b"]


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        pytest.param(KeyboardInterrupt(), "interrupted", 130, id="1"),
        pytest.param(ModuleNotFoundError("no", name="torch.nn"), "torch.nn is not installed; pip install", 3, id="2"),
        pytest.param(Unavailable("no runtime"), "no runtime", 3, id="3 its code"),
        pytest.param(ExportError("not the network"), "not the network", 1, id="3 ExportError"),
        pytest.param(Diverged("the loss is nan"), "the loss is nan", 1, id="3 without a code"),
        pytest.param(ValueError("a\nb"), "a b", 2, id="4 ValueError, one line"),
        pytest.param(FileNotFoundError("no file x"), "no file x", 2, id="4 OSError"),
        pytest.param(MemoryError(), "out of memory", 1, id="5"),
        pytest.param(
            KeyError("arch"), "internal error, please report it with what HNAS_DEBUG=1 shows: KeyError", 70, id="6"
        ),
        pytest.param(TypeError("None + 1"), "TypeError: None + 1", 70, id="6 TypeError"),
        pytest.param(RuntimeError("mat1 and mat2 differ\nat"), "RuntimeError: mat1 and mat2 differ", 70, id="6 torch"),
        pytest.param(ModuleNotFoundError("no", name="hnas.gone"), "internal error", 70, id="6 a module of our own"),
    ],
)
def test_a_failure_is_one_line_and_its_code(
    error: BaseException, line: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ending.DEBUG, raising=False)
    told: list[tuple[str, int]] = []
    assert ending.guarded("hnas-x", lambda: raising(error), failed=lambda *said: told.append(said)) == code
    err = capsys.readouterr().err
    assert err.startswith("hnas-x: ")
    assert line in err
    assert err.count("\n") == 1
    assert told == [(err.removeprefix("hnas-x: ").removesuffix("\n"), code)]


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ending.DEBUG, "1")
    assert ending.guarded("hnas-x", key_error) == ending.INTERNAL
    err = capsys.readouterr().err
    assert 'return {"a": 1}["b"]' in err
    assert err.splitlines()[-1] == "hnas-x: internal error, please report it: KeyError: 'b'"


def test_what_can_be_continued_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ending.guarded("hnas-train", lambda: raising(KeyboardInterrupt()), resumes=True)
    assert capsys.readouterr().err == "hnas-train: interrupted; the same command with --resume continues\n"


def test_success_is_what_the_command_says() -> None:
    assert ending.guarded("hnas-bench", lambda: 4) == 4


def test_control_characters_of_a_line_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending.guarded("hnas-deploy", lambda: raising(FileNotFoundError("no folder \x1b[31mred\udc80"))) == 2
    assert capsys.readouterr().err == "hnas-deploy: no folder \\x1b[31mred\\udc80\n"
    with pytest.raises(SystemExit, match="2"):
        Parser("hnas-deploy").parse_args(["--\x1b[31m"])
    assert capsys.readouterr().err == "hnas-deploy: unrecognized arguments: --\\x1b[31m; see hnas-deploy --help\n"
