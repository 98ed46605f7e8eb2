"""The site of the documentation: its pages, its navigation, and what it may load. ``make site`` builds it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests import site

INDEX = (site.ROOT / "docs" / "README.md").read_text("utf-8")


def test_the_navigation_is_the_index(tmp_path: Path) -> None:
    site.copy_pages(tmp_path)
    first, index, *sections, last = site.navigation(INDEX)
    assert [*first.values(), *index.values(), *last.values()] == ["README.md", "docs/README.md", "CHANGELOG.md"]
    assert [name for section in sections for name in section] == re.findall(r"^## (.+)$", INDEX, re.MULTILINE)
    listed = {page for section in sections for pages in section.values() for page in pages}
    pages = {page.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("*.md")}
    assert pages == {*listed, "README.md", "docs/README.md", "CHANGELOG.md"}


def test_a_notebook_becomes_a_page(tmp_path: Path) -> None:
    site.copy_pages(tmp_path)
    page = (tmp_path / "docs" / "first_bundle.md").read_text("utf-8")
    cells = json.loads((site.ROOT / "docs" / "first_bundle.ipynb").read_text("utf-8"))["cells"]
    assert page.count("```python\n") == sum(cell["cell_type"] == "code" for cell in cells) > 3
    assert "(first_bundle.md)" in (tmp_path / "docs" / "python.md").read_text("utf-8")


def test_what_a_page_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "right.html").write_text(
        '<link rel="canonical" href="https://a/"><link rel="stylesheet" href="../a.css"><a href="https://b/">b</a>'
        '<script src="a.js"></script>'
    )
    assert not site.fetched(tmp_path)
    for number, element in enumerate(
        (
            '<script src="https://a/b.js">',
            "<img alt=x src=http://a/b.png>",
            '<link rel="stylesheet" href="//a/b.css">',
            '<source srcset="//a/b.webp">',
            '<object data="https://a/b">',
        )
    ):
        (tmp_path / f"{number}.html").write_text(element)
    (tmp_path / "5.css").write_text("@font-face { src: url(https://a/b.woff2) }")
    (tmp_path / "right.css").write_text("a { background: url('data:image/svg+xml,<svg xmlns=\"http://a/svg\">') }")
    assert sorted(line.partition(".")[0] for line in site.fetched(tmp_path)) == ["0", "1", "2", "3", "4", "5"]


def test_the_lock_has_hashes_and_one_version_of_each_package() -> None:
    text = (site.ROOT / "site.lock").read_text("utf-8")
    found = re.findall(r"^([\w.-]+)==\S+ \\\n(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", text, re.MULTILINE)
    assert len(set(found)) == len(re.findall(r"^[^#\n]+==\d", text, re.MULTILINE)) > 20
    assert {"mkdocs", "mkdocs-material"} <= set(found)
