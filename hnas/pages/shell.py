"""The frame of every page: style, title, and a policy that lets a browser load nothing: ``page("title", "<p>...")``.

The charts are SVG that is written here: two kinds of charts of a hundred points. altair with vl-convert is 34 MB of
packages, and the script of plotly alone is larger than a page may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as _escape

from hnas.report import visible

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff; --tint: #f6f8fa;
  --one: #0b5fcc; --two: #b35900; --three: #1a7f37; --four: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --paper: #0d1117;
  --tint: #161b22; --one: #6cb0ff; --two: #f0a35e; --three: #5fd07c; --four: #c4a1ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
a { color: var(--one); } :focus-visible { outline: 3px solid var(--one); outline-offset: 2px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
code, pre { font: .85em/1.45 ui-monospace, monospace; background: var(--tint); border-radius: 4px; }
code { padding: .1em .3em; overflow-wrap: anywhere; } pre { padding: .7rem; overflow-x: auto; }
.soft { color: var(--soft); font-size: .9rem; }
figure { margin: 0; } svg { max-width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .path { fill: none; stroke: var(--soft); stroke-width: 1.5; }
svg .mark { fill: currentColor; stroke: currentColor; } svg .mark[role=button] { cursor: pointer; }
svg .mark .hit { fill: transparent; stroke: none; }
svg .mark line { stroke-width: 1.5; opacity: .55; } svg .mark text { fill: currentColor; stroke: none; }
svg .mark:focus-visible .shape, svg .mark:hover .shape, svg .mark.chosen .shape { stroke-width: 5; }
svg .bar { fill: var(--one); } svg .bar.two { fill: var(--two); opacity: .6; }
.flow { display: flex; flex-wrap: wrap; gap: .4rem; align-items: stretch; }
.flow > div { border: 1px solid var(--line); border-radius: 4px; padding: .3rem .6rem; font-size: .85rem; }
.flow > div:not(:first-child)::before { content: "\\2192  "; color: var(--soft); }
details { border-bottom: 1px solid var(--line); padding: .3rem 0; } summary { cursor: pointer; }
.one { color: var(--one); } .two { color: var(--two); } .three { color: var(--three); } .four { color: var(--four); }
.hidden { display: none; }
fieldset { border: 1px solid var(--line); border-radius: 4px; margin: .5rem 0; } label { margin-right: 1rem; }
@media print { body { max-width: none; } fieldset { display: none; } .wide { overflow: visible; }
  pre { white-space: pre-wrap; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

# Points open what they stand for, boxes hide groups of points, and paper shows everything.
SCRIPT = """
const all = (s) => document.querySelectorAll(s);
function choose(key) {
  all('.chosen').forEach((e) => e.classList.remove('chosen'));
  all('[data-key]').forEach((e) => { if (e.dataset.key === key) e.classList.add('chosen'); });
  const found = document.getElementById(key);
  if (found) { found.open = true; found.scrollIntoView({block: 'nearest'}); found.querySelector('summary').focus(); }
}
all('.mark[role=button]').forEach((mark) => {
  mark.addEventListener('click', () => choose(mark.dataset.key));
  mark.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(mark.dataset.key); }
  });
});
all('input[data-filter]').forEach((box) => box.addEventListener('change', () => {
  all('[data-group]').forEach((e) => { if (e.dataset.group === box.dataset.filter)
    e.classList.toggle('hidden', !box.checked); });
}));
addEventListener('beforeprint', () => all('details').forEach((e) => { e.open = true; }));
"""


def text(value: object) -> str:
    """Return a value as text that HTML shows and obeys in nothing; control characters are escaped too."""
    return _escape(visible(str(value)))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table. Cells are HTML: `text` makes it of a value. ``numbers``: the columns that are aligned right."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    kinds = [' class="n"' if index in numbers else "" for index in range(len(columns))]
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, body: str, script: str = "") -> str:
    """Return a whole page. ``body`` and ``script`` are HTML and JavaScript of this project."""
    end = f"<script>{script}</script>" if script else ""
    policy = _POLICY + ("; script-src 'unsafe-inline'" if script else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n<h1>{text(title)}</h1>\n"
        f"{body}\n</main>{end}</body></html>\n"
    )
