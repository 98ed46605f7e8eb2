"""Test the documents: their code runs; their links, flags, devices, Python names and files exist.

A fenced bash or python block is executed, unless the line before it is ``<!-- not tested: why -->``. The blocks of one
document run in order in one folder, which also holds a few small images.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
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
from hnas.benchmarks.costs import arm64, verdicts
from hnas.benchmarks.fuzz import command as fuzz
from hnas.benchmarks.papers import __main__ as papers
from hnas.benchmarks.peers import command as race
from hnas.cli import COMMANDS, deploy_main, train_main
from hnas.export import backends
from tests import matrix
from tests.conftest import NO_WEIGHTS, need

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BIN = Path(sys.executable).parent
SECONDS = 600  # limit of one command: only a hang fails, also on two slow and busy cores

# Added after the arguments in the document, so they take effect: the same work, as little of it as possible.
ECONOMIES = {
    "hnas-train": ["--epochs", "1", "--threads", "1"],
    "hnas-deploy --target": ["--budget", "3evals"],
    "hnas-deploy score": ["--subnets", "2"],
    "hnas-bench": ["--max-time", "5s", "--processes", "1"],
}
# The verdict on a barely trained network on a busy machine may be any; the check must not break.
VERDICTS = {"hnas-bench check": (0, 1, 4)}
# Commands of other pages that need what a page has made: they run after its blocks.
AFTERWARDS = {"README.md": ("hnas-deploy score --supernet trained --data photos",)}
FOREIGN = {"--build-arg", "--output"}  # flags of other programs; the second is the start of --output_filepath
PROGRAMS = ("hnas-deploy", "hnas-train", "hnas-bench")
DRAWN = re.compile(r"\b(rand|randn|randint|randperm|rand_like|randn_like|normal|random|default_rng|Random)\(")
SEEDED = re.compile(r"manual_seed\(|default_rng\([^)]|random\.seed\(|Random\([^)]")


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line, its language, its text, and whether it is run."""

    line: int
    language: str
    text: str
    tested: bool


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
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
    """Yield the words of each command of a shell text, without comments, with continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def targets(text: str) -> list[str]:
    """Return the devices that a text names, without placeholders in capitals and without comments."""
    plain = re.sub(r"  #.*", "", text)
    found = re.findall(r"(?:--target[ =]|TARGET=|\bdevice=\"|hnas\.deploy\(\")([\w-]+)", plain)
    return [name for name in found if not name.isupper()]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- the blocks run


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Return a folder with images of two classes that a network can tell apart."""
    rng = np.random.default_rng(0)
    for name, shade in (("cat", 80), ("dog", 170)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = rng.normal(shade, 25, (24, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def run(words: list[str], folder: Path, allowed: tuple[int, ...] = (0,)) -> None:
    own = {"XDG_CACHE_HOME": str(folder / ".cache"), "PYTHONPATH": str(NO_WEIGHTS)}
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
    """Run a block in its own process. A block that begins with ``# name.py`` is saved under that name."""
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
    for line in AFTERWARDS.get(named(page), ()):
        run_command(line.split(), session)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_that_is_not_run_is_at_least_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{named(page)}:{block.line}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_random_numbers_of_an_example_have_a_seed(page: Path) -> None:
    """An example without a seed fails by chance: int8 has near-ties on some networks."""
    for block in blocks(page):
        if block.language == "python" and DRAWN.search(block.text):
            assert SEEDED.search(block.text), f"{named(page)}:{block.line} draws random numbers; set a seed"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_readme_is_tested() -> None:
    """Check that the README has tested blocks of both languages: markers on all of them would hide errors."""
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
    """Return the flags of a program, or of one of its sub-commands."""
    if program == "hnas-train":
        return _flags_of_help(train_main, *(["grow"] if command == "grow" else []))
    if program == "hnas-bench":
        names = ["check", "compare", "run", "history", "report", "loadgen"]
        subs = [command] if command in names else names
        return frozenset().union(*(_flags_of_help(bench_main, sub) for sub in subs))
    return _flags_of_help(deploy_main, *([command] if command in COMMANDS else []))


def every_flag() -> frozenset[str]:
    subs = [known_flags("hnas-deploy", command) for command in ("", *COMMANDS)]
    helps = "".join(module.parser().format_help() for module in (arm64, fuzz, matrix, papers, race, verdicts))
    modules = frozenset(re.findall(r"--[a-z][a-z-]*", helps))
    return frozenset().union(
        *subs, *(known_flags("hnas-train", each) for each in ("", "grow")), known_flags("hnas-bench"), modules
    )


def invocations(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (program, the words after it) for each use of our programs, in blocks and in inline code."""
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
    for name in set(targets(page.read_text(encoding="utf-8"))) - {"cuda"}:  # the GPU of a machine that has one
        hw_profiles.load(name)


def python_names(page: Path) -> set[str]:
    """Return the dotted names under ``hnas`` in the text, and those that its Python blocks import."""
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))
    names = set(re.findall(r"\bhnas(?:\.[A-Za-z_]\w*)+", text))
    names |= {f"hnas.{name}" for name in re.findall(r"(?<![\w.`/])`?(export\.[A-Za-z_]\w*)\(", text)}
    for block in blocks(page):
        for node in ast.walk(ast.parse(block.text)) if block.language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hnas":
                names |= {f"{node.module}.{each.name}" for each in node.names}
    return names


def resolves(name: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of the longest module in it."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(words[:count]))
            for word in words[count:]:
                found = getattr(found, word, None)
            return found is not None
    return False


def written(page: Path) -> set[Path]:
    """Return the files that the page tells its reader to write: blocks that begin with ``# folder/name.py``."""
    return {Path(found[1]) for block in blocks(page) if (found := re.match(r"# (\w+/[\w/]+\.py)\n", block.text))}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_python_name_exists(page: Path) -> None:
    new = tuple("hnas." + ".".join(path.with_suffix("").parts) for path in written(page))
    wrong = sorted(name for name in python_names(page) if not name.startswith(new) and not resolves(name))
    assert not wrong, f"{named(page)} names what does not exist: {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_exists(page: Path) -> None:
    spans = re.findall(
        r"`((?:hnas|export|benchmarks|hw_profiles|tests|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    new = {path.parent for path in written(page)}
    missing = [path for path in spans if "NAME" not in path and not (ROOT / path).exists()]
    missing = [path for path in missing if Path(path).parent not in new]
    assert not missing, f"{named(page)} names files that do not exist: {', '.join(missing)}"


# --- links lead somewhere


def anchors(page: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
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
