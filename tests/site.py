"""Build the documentation as a site, and check every link in it: ``python -m tests.site`` writes ``build/site``.

The pages keep their places, so that a link on a page is the same in the repository and on the site. The navigation is
the index in ``docs/README.md``. It needs the packages of ``site.lock``; ``make site`` installs them.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
BESIDES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "hnas/assets/fashion/LICENSE")
# What a browser loads with a page. A link that a reader may follow is another thing.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|srcset|data|poster)=\W?(?:https?:)?//"
    r"|<link\b(?![^>]*\bcanonical\b)[^>]*\bhref=\W?(?:https?:)?//"
    r"|\burl\(\W?(?:https?:)?//"
)


def copy_pages(folder: Path) -> None:
    """Copy every page of the repository to ``folder``, with a page in Markdown for each notebook."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.ipynb"))
    for name in BESIDES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for notebook in (ROOT / "docs").rglob("*.ipynb"):
        page = folder / notebook.relative_to(ROOT).with_suffix(".md")
        page.write_text(notebook_page(json.loads(notebook.read_text("utf-8"))), "utf-8")
    for page in folder.rglob("*.md"):
        page.write_text(page.read_text("utf-8").replace(".ipynb)", ".md)"), "utf-8")


def notebook_page(notebook: Mapping[str, Any]) -> str:
    """Return the cells of a notebook as Markdown."""
    cells = ((cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"])
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells) + "\n"


def navigation(index: str) -> list[dict[str, Any]]:
    """Return the navigation of the site: the sections of ``index``, the text of docs/README.md, with their pages."""

    def pages() -> Iterator[tuple[str, str]]:
        section = ""
        for line in index.splitlines():
            if line.startswith("## "):
                section = line[3:]
            elif found := re.match(r"\| \[[^]]+\]\(([^)]+)\) \|", line):
                yield section, f"docs/{found[1]}".replace("docs/../", "").replace(".ipynb", ".md")

    sections: dict[str, list[str]] = {}
    for section, page in pages():
        sections.setdefault(section, []).append(page)
    first = [{"hnas": "README.md"}, {"Documentation": "docs/README.md"}]
    return [*first, *({section: named} for section, named in sections.items()), {"Changes": "CHANGELOG.md"}]


def fetched(folder: Path) -> list[str]:
    """Return what the pages of a site load from elsewhere, each as ``page: start of the element``."""
    return [
        f"{page.relative_to(folder)}: {found[0]}"
        for page in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")])
        for found in FETCHED.finditer(page.read_text("utf-8"))
    ]


def main() -> int:
    """Build the site; a link that leads nowhere, or a page that loads something from elsewhere, is exit code 1."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    logging.basicConfig(format="%(message)s")
    copy_pages(PAGES)
    config = load_config(str(ROOT / "mkdocs.yml"), nav=navigation((PAGES / "docs" / "README.md").read_text("utf-8")))
    try:
        build(config)
    except Abort as stop:
        sys.stderr.write(f"{stop}\n")
        return 1
    lines = fetched(Path(config.site_dir))
    sys.stderr.writelines(f"loads from elsewhere: {line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
