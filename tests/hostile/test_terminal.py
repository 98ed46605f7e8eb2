"""No text from a file can command a terminal, in any command: every string of a manifest is tried."""

from __future__ import annotations

import io
import json
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hnas import report
from hnas.benchmarks import printing
from hnas.cli import deploy_main, train_main
from tests.hostile import builders as b

# Clear the screen, set a title, ring, overwrite the line, turn the reading direction, C1's own escape, delete.
COMMANDS = "\x1b[2J\x1b]0;owned\x07\r\x08\u202e\u2066\x9b31m\x7f\u200f"
FORMATTING = {"Cc", "Cf", "Cs"}


def obeyed(text: str) -> list[str]:
    """Return the characters that a terminal may obey, apart from ends of lines."""
    return [ascii(c) for c in text if c not in "\n\t" and unicodedata.category(c) in FORMATTING]


def strings(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each string in a JSON value, keys of objects included."""
    if isinstance(value, str):
        yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from strings(inner, (*at, key))


def spoilt(value: Any, at: tuple[Any, ...]) -> None:
    """Append the commands to the string at a path."""
    *path, last = at
    for key in path:
        value = value[key]
    value[last] += COMMANDS


def test_every_string_of_a_manifest_is_printed_without_a_command(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((good / "bundle/manifest.json").read_text())
    manifest |= {"licence": "MIT", "build": {"sm": "87"}, "source": {"file": "a.onnx"}}
    paths = [at for at in strings(manifest) if at[0] not in ("digest", "files")]
    assert len(paths) > 25
    for number, at in enumerate(paths):
        folder = b.copied(good / "bundle", tmp_path / str(number))

        def change(value: dict[str, Any], at: tuple[Any, ...] = at) -> None:
            value |= {"licence": "MIT", "build": {"sm": "87"}, "source": {"file": "a.onnx"}}
            spoilt(value, at)

        b.reseal(folder, change)
        for words in (["show", str(folder)], ["show", str(folder), "--json"]):
            deploy_main(words)
            said = capsys.readouterr()
            assert not obeyed(said.out), (at, words)
            assert not obeyed(said.err), (at, words)


def test_the_check_sees_a_command() -> None:
    assert len(obeyed(COMMANDS)) >= 9


@pytest.mark.parametrize("terminal", [True, False])
def test_every_way_to_print_escapes(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()

    def screen(*, stderr: bool = False, width: int | None = None) -> Console:
        return Console(file=stream, force_terminal=terminal, color_system=None, highlight=False, markup=False)

    monkeypatch.setattr(report, "_console", screen)
    monkeypatch.setattr("sys.stdout", stream)
    text = f"a{COMMANDS}b"
    report.print_json({text: text})
    report.print_plan([(text, text)])
    report.print_table(("column",), [(text,)], text)
    report.print_lines([text])
    report.print_markdown(f"# {text}\n\n`{text}`\n")
    report.print_training(Path(text), {"accuracy": {text: 0.5}, "images": {"test": 1}, "steps": 1, "seconds": 1.0})
    row = {
        "subnet": text,
        "precision": text,
        "accuracy": None,
        "sqnr_db": 40.0,
        "size_bytes": 1,
        "verdict": text,
        "grade": text,
    }
    predicted = {"value": 1.0, "low": 1.0, "high": 1.0}
    found = {"target": text, "name": text, "notes": [text], "footnote": text, "bundle": text}
    refused = [{"precision": text, "reason": text}]
    report.print_deployment({**found, "rows": [{**row, "predicted_ms": predicted}], "refused": refused})
    report.print_lines([text])
    said = stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "owned" in said
    marks = [c for c in obeyed(said) if c != r"'\x1b'" or "\x1b]" in said or "\x1b[2J" in said]
    assert not marks


@pytest.mark.parametrize(
    ("program", "words"),
    [(train_main, ()), (deploy_main, ()), (deploy_main, ("export",))],
    ids=["train", "deploy", "export"],
)
def test_a_printed_configuration_escapes_and_reads_back(
    program: Any, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, text = tmp_path / "e.toml", f"a{COMMANDS}\U000e0001\u00e9"
    values = {"recipe": text, "data": text, "out": text}
    if program is deploy_main:
        values = {"target": text, "out": text, **({"model": text, "input": [text]} if words else {})}
    escaped = "".join(f"\\U{ord(c):08X}" for c in text)
    stated = {key: f'["{escaped}"]' if key == "input" else f'"{escaped}"' for key in values}
    file.write_text("".join(f"{key} = {value}\n" for key, value in stated.items()))
    with pytest.raises(SystemExit) as end:
        program([*words, "--config", str(file), "--print-config"])
    said = capsys.readouterr()
    assert (end.value.code, said.err) == (0, "")
    assert not obeyed(said.out)
    assert "é" in said.out
    read = tomllib.loads(said.out)
    assert {key: read[key] for key in values} == values


def test_the_tables_of_the_gate_escape(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_rows([(COMMANDS, COMMANDS)])
    said = capsys.readouterr().out
    assert "owned" in said
    assert not obeyed(said)
