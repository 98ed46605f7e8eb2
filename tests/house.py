"""Measure the house: rooms, levels and arrows between them, and the limits that every file and function keeps.

``python -m tests.house`` lists offences and exits with 1 if there are any. ``--write`` renews the table of rooms in
CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
from radon.complexity import cc_visit

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hnas", "export", "hw_profiles", "benchmarks")
HOUSES = ("hnas", "hnas.export", "hnas.benchmarks")
MARKS = ("<!-- rooms -->", "<!-- /rooms -->")

COMPLEXITY, PARAMETERS, LINES, FILE_LINES = 14, 8, 60, 350
FLAGS = frozenset(
    {"deploy", "deploy_network", "train", "check"}
)  # functions whose parameters are the flags of a command


@cache
def sources() -> dict[Path, str]:
    """Return the text of every source file by its path. Links are not followed, so each file is there once."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if not _linked(path)]
    return {path: path.read_text("utf-8") for path in paths}


def _linked(path: Path) -> bool:
    return any((ROOT / part).is_symlink() for part in path.relative_to(ROOT).parents)


def module_name(path: Path) -> str:
    """Return the name that a source file is imported by: the folders at the top are sub-packages of hnas."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("hnas", *parts) if parts[0] != "hnas" else parts).removesuffix(".__init__")


# --- limits -----------------------------------------------------------------------------------------------------------


def offences() -> Iterator[str]:
    """Yield a line for every file or function above a limit, and for every name that breaks a rule of names."""
    for path, text in sources().items():
        where = path.relative_to(ROOT)
        if (lines := text.count("\n")) > FILE_LINES:
            yield f"{where} has {lines} lines, at most {FILE_LINES}"
        for name, complexity in _complexities(text):
            if complexity > COMPLEXITY:
                yield f"{where}: {name} has complexity {complexity}, at most {COMPLEXITY}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from (f"{where}: {line}" for line in _function(node, many=_has_keys(where, node.name)))
    yield from _unoffered()
    yield from _ambiguous()


def _complexities(text: str) -> Iterator[tuple[str, int]]:
    """Yield every function and method with its complexity as radon counts it, closures included."""
    blocks = list(cc_visit(text))
    while blocks:
        block = blocks.pop()
        blocks += [*getattr(block, "methods", ()), *getattr(block, "closures", ())]
        if type(block).__name__ == "Function":
            yield block.name, block.complexity


def _has_keys(path: Path, name: str) -> bool:
    """Return whether the parameters of a function are flags of a command, or keys of a recipe."""
    keys = {("tasks", "open_task"), ("strategies", "pick")}  # [data] and [train.options]
    return name in FLAGS or path == Path("hnas/spaces", f"{name}.py") or (path.parts[1], name) in keys


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, *, many: bool) -> Iterator[str]:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    count = len(plain) + len(arguments.kwonlyargs) + bool(arguments.vararg) + bool(arguments.kwarg)
    count -= bool(plain) and plain[0].arg in ("self", "cls")
    if count > PARAMETERS and not many:
        yield f"{node.name} has {count} parameters, at most {PARAMETERS}"
    docstring = ast.get_docstring(node, clean=False)
    lines = (node.end_lineno or node.lineno) - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
    if lines > LINES:
        yield f"{node.name} has {lines} lines without its docstring, at most {LINES}"


def _unoffered() -> Iterator[str]:
    """Yield names that are public but that no other file mentions: these begin with an underscore or are in __all__.

    An operation and a space may name the class that they consist of.
    """
    texts = dict(sources())
    for pattern in ("tests/**/*.py", "docs/**/*.md", "*.md", "*.toml", "Makefile"):
        texts |= {path: path.read_text("utf-8") for path in ROOT.glob(pattern) if path.is_file()}
    homes: dict[str, set[Path]] = defaultdict(set)
    for path, text in texts.items():
        for word in set(re.findall(r"[A-Za-z]\w*", text)):
            homes[word].add(path)
    for path, text in sources().items():
        tree = ast.parse(text)
        listed = _listed(tree)
        for name in _public(tree):
            if homes[name] <= {path} and name not in listed and path.parent.name not in ("ops", "spaces"):
                yield f"{path.relative_to(ROOT)}: nobody else names {name}; call it _{name}"


def _public(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def _listed(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return set()


def _ambiguous() -> Iterator[str]:
    """Yield public classes that two modules define under one name, and those that hide one that everybody knows."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path, text in sources().items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    for name, files in sorted(homes.items()):
        if len(files) > 1:
            yield f"{name} means several things: {', '.join(files)}"
        elif name in ("Path", "Tensor", "Module", "Dataset", "Process"):
            yield f"{files[0]}: {name} hides a well-known class"


# --- rooms ------------------------------------------------------------------------------------------------------------


@cache
def _imports() -> Mapping[str, frozenset[str]]:
    """Return the modules that each module imports; imports for typing alone are left out."""
    graph = grimp.build_graph("hnas", exclude_type_checking_imports=True, cache_dir=None)
    return {module: frozenset(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def arrows(house: str) -> dict[str, set[str]]:
    """Return, for every room of a package, the rooms of the same package that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, imported in _imports().items():
        if room := _room(house, module):
            found[room] |= {other for each in imported if (other := _room(house, each)) and other != room}
    return dict(found)


def _room(house: str, module: str) -> str:
    return module.removeprefix(f"{house}.").partition(".")[0] if module.startswith(f"{house}.") else ""


def levels(rooms: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the level of every room: 0 imports no other room, else one more than the highest room it imports."""
    found: dict[str, int] = {}
    while left := [room for room in rooms if room not in found]:
        ready = [room for room in left if rooms[room] <= found.keys()]
        if not ready:
            raise ValueError(f"these rooms import each other in a circle: {', '.join(sorted(left))}")
        found |= {room: 1 + max((found[other] for other in rooms[room]), default=-1) for room in ready}
    return found


def circle() -> list[str]:
    """Return the modules of an import circle, or nothing; imports by name at run time count as well."""
    arrows = {
        (name, other) for name, each in _imports().items() for other in each | _dynamic_imports().get(name, set())
    }
    graph: dict[str, set[str]] = defaultdict(set)
    for name, other in arrows:
        if name != other:  # a module may import itself by its own name where it runs as __main__
            graph[name].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@cache
def _dynamic_imports() -> Mapping[str, set[str]]:
    """Return the modules that each module may import by name: a constant, or everything in the folder it looks into."""
    found: dict[str, set[str]] = {}
    for path, text in sources().items():
        name = module_name(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
                found.setdefault(name, set()).update(_named(node.args[0], name, text))
    return found


def _named(argument: ast.expr, name: str, text: str) -> set[str]:
    """Return the modules that an argument of import_module can name."""
    if isinstance(argument, ast.Constant):
        return {str(argument.value)} & _imports().keys()
    spelled = ast.unparse(argument).replace("__name__ + '.' + name", "{__name__}.{name}")
    start, _, tail = spelled.removeprefix("f").strip("'\"").replace("{__name__}", name).partition("{")
    if name in ("hnas", "hnas.export", "hnas.cli"):  # a table in the file says what these may name
        return {
            module for module in _imports() if module.startswith(start) and f'"{module.removeprefix(start)}"' in text
        }
    end = tail.partition("}")[2]
    pattern = re.compile(re.escape(start) + r"\w+" + re.escape(end))
    found = {module for module in _imports() if start and pattern.fullmatch(module)}
    return {module for module in found if not module.endswith("__main__")}


def table() -> str:
    """Return the rooms of every package with level and arrows, as Markdown."""
    lines = []
    for house in HOUSES:
        rooms = arrows(house)
        height = levels(rooms)
        lines += [f"`{house}`", "", "| room | level | imports |", "|---|---|---|"]
        for room in sorted(rooms, key=lambda room: (-height[room], room)):
            lines.append(f"| {room} | {height[room]} | {', '.join(sorted(rooms[room])) or '-'} |")
        lines.append("")
    return "\n".join(lines)


def renewed(page: str) -> str:
    """Return CONTRIBUTING.md with the table of today between its marks."""
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{table()}\n{MARKS[1]}{after}"


def main() -> int:
    """Print offences, or write the table; return the exit code."""
    parser = argparse.ArgumentParser("tests.house", description="Check the limits of files, functions and names.")
    parser.add_argument("--write", action="store_true", help="renew the table of rooms in CONTRIBUTING.md")
    page = ROOT / "CONTRIBUTING.md"
    known, today = page.read_text("utf-8"), renewed(page.read_text("utf-8"))
    if parser.parse_args().write:
        page.write_text(today, "utf-8")
        return 0
    found = list(offences())
    if known != today:
        found.append("CONTRIBUTING.md: the table of rooms is not that of today; run python -m tests.house --write")
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
