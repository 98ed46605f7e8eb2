"""What the documents promise: their code runs, their links lead somewhere, their flags and devices exist.

A fenced bash or python block is executed unless the line before it says ``<!-- not tested: why -->``. The blocks of one
document run in order in one folder, like a reader's session; there are a few small photographs in it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas import hw_profiles
from hnas.benchmarks.cli import main as bench_main
from hnas.benchmarks.costs import arm64
from hnas.benchmarks.fuzz import command as fuzz
from hnas.benchmarks.papers import __main__ as papers
from hnas.benchmarks.peers import command as race
from hnas.cli import COMMANDS, deploy_main, train_main
from hnas.export import backends
from tests.conftest import need

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BIN = Path(sys.executable).parent
SECONDS = 240  # for one command, on a machine that is shared: a hang is a failure, slowness is not

# Given after the reader's own arguments, so that they win: the same work, as little of it as there can be.
ECONOMIES = {
    "hnas-train": ["--epochs", "1", "--threads", "1"],
    "hnas-deploy --target": ["--budget", "3evals"],
    "hnas-bench": ["--max-time", "5s", "--processes", "1"],
}
# A check of a network that was hardly trained, on a busy machine, may come out either way; it may not break.
VERDICTS = {"hnas-bench check": (0, 1, 4)}
FOREIGN = {"--build-arg", "--output"}  # flags in the text that are another program's; the second as far as "_filepath"
PROGRAMS = ("hnas-deploy", "hnas-train", "hnas-bench")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, what it holds, and whether it is to be run."""

    line: int
    language: str
    text: str
    tested: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    begun: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begun is None:
            begun = number
            continue
        before = lines[begun - 1].strip() if begun else ""
        text = "\n".join(lines[begun + 1 : number]) + "\n"
        found.append(Block(begun + 1, lines[begun][3:].strip(), text, not before.startswith("<!-- not tested:")))
        begun = None
    assert begun is None, f"{page.name}:{begun} opens a block that nothing closes"
    return found


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.tested and block.language in ("bash", "python")]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell text; comments and continued lines are understood."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def targets(text: str) -> list[str]:
    """The devices that a text names; one in capitals stands for any, and comments name none."""
    plain = re.sub(r"  #.*", "", text)
    found = re.findall(r"(?:--target[ =]|TARGET=|\bdevice=\"|hnas\.deploy\(\")([\w-]+)", plain)
    return [name for name in found if not name.isupper()]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- the blocks run


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A reader's folder: photographs of two classes that a network can tell apart."""
    rng = np.random.default_rng(0)
    for name, shade in (("cat", 80), ("dog", 170)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = rng.normal(shade, 25, (24, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def run(words: list[str], folder: Path, allowed: tuple[int, ...] = (0,)) -> None:
    own = {"XDG_CACHE_HOME": str(folder / ".cache"), "PYTHONPATH": ""}
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    said = f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode in allowed, said
    assert "Traceback" not in done.stderr, said


def run_command(words: list[str], folder: Path) -> None:
    program = words[0]
    assert program in PROGRAMS, f"{shlex.join(words)} is set-up; put <!-- not tested: set-up --> before its block"
    allowed = VERDICTS.get(" ".join(words[:2]), (0,))
    thrift = ECONOMIES.get(program) or ECONOMIES.get(" ".join(words[:2]), [])
    run([str(BIN / program), *words[1:], *thrift], folder, allowed)


def run_python(text: str, folder: Path) -> None:
    """Run a block in a process of its own; one that begins with ``# name.py`` is kept under that name."""
    name = re.match(r"# (\w+\.py)\n", text)
    file = folder / (name[1] if name else "block.py")
    file.write_text(text, encoding="utf-8")
    run([sys.executable, str(file)], folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=named)
def test_the_code_of_a_document_runs_in_order(page: Path, session: Path) -> None:
    for name in {hw_profiles.load(name).backend for block in runnable(page) for name in targets(block.text)}:
        need(name, backends.load(name).missing())
    for block in runnable(page):
        if block.language == "python":
            run_python(block.text, session)
        else:
            for words in commands(block.text):
                run_command(words, session)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_that_is_not_run_is_at_least_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{named(page)}:{block.line}", "exec")


def test_the_readme_is_tested() -> None:
    """The README shows the library and the commands in blocks that run: a marker on all of them would hide rot."""
    languages = {block.language for block in runnable(ROOT / "README.md")}
    assert languages == {"bash", "python"}


# --- what is named exists


@cache
def _flags_of_help(entry: Callable[[list[str]], int], *words: str) -> frozenset[str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        entry([*words, "--help"])
    return frozenset(re.findall(r"--[a-z][a-z-]*", said.getvalue()))


def known_flags(program: str, command: str = "") -> frozenset[str]:
    """The flags that a program takes, or one of its sub-commands."""
    if program == "hnas-train":
        return _flags_of_help(train_main)
    if program == "hnas-bench":
        subs = [command] if command in ("check", "compare") else ["check", "compare"]
        return frozenset().union(*(_flags_of_help(bench_main, sub) for sub in subs))
    return _flags_of_help(deploy_main, *([command] if command in COMMANDS else []))


def every_flag() -> frozenset[str]:
    subs = [known_flags("hnas-deploy", command) for command in ("", *COMMANDS)]
    helps = "".join(module.parser().format_help() for module in (arm64, fuzz, papers, race))
    modules = frozenset(re.findall(r"--[a-z][a-z-]*", helps))
    return frozenset().union(*subs, known_flags("hnas-train"), known_flags("hnas-bench"), modules)


def invocations(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each use of our programs in the document: (program, the words after it), from blocks and from inline code."""
    text = page.read_text(encoding="utf-8")
    spans = [*re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text), *re.findall(r"^\s*(hnas-\w+ .*)$", text, re.MULTILINE)]
    for span in spans:
        found = re.search(rf"\b({'|'.join(PROGRAMS)})\b(.*)", span)
        if found:
            yield found[1], found[2].split("#")[0].split()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_flag_exists(page: Path) -> None:
    wrong = []
    for program, words in invocations(page):
        known = known_flags(program, words[0] if words else "")
        wrong += [f"{program} {flag}" for flag in re.findall(r"--[a-z][a-z-]*", " ".join(words)) if flag not in known]
    alone = re.findall(r"(?<!`)`(--[a-z][a-z-]*)[^`\n]*`", page.read_text(encoding="utf-8"))
    wrong += [flag for flag in alone if flag not in every_flag() | FOREIGN]
    assert not wrong, f"{named(page)} names flags that do not exist: {', '.join(sorted(set(wrong)))}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_target_exists(page: Path) -> None:
    for name in targets(page.read_text(encoding="utf-8")):
        hw_profiles.load(name)


# --- links lead somewhere


def anchors(page: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_resolves(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"{named(page)} has links that lead nowhere: {', '.join(broken)}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    missing = [page for page in pages if page != "README.md" and f"({page})" not in index]
    assert not missing, f"docs/README.md does not link {', '.join(missing)}"
