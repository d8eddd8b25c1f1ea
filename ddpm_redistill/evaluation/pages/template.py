"""The look of report.html: its style sheet and the few HTML parts it is made of. Every shown string is
escaped here.

A part is a plain string of HTML. The page loads nothing: its content policy forbids scripts and every address
but the pictures inside it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root {
  color-scheme: light;
  --ink: #1f2a33; --soft: #5b6873; --line: #dfe4e8; --accent: #0f6b66; --warm: #c2703d;
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 48px 32px 72px }
header p { margin: 0; max-width: none; color: var(--soft) }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 6px; font-weight: 650 }
h2 { font-size: 20px; line-height: 1.3; margin: 0 0 14px; font-weight: 650 }
section { margin-top: 52px }
p { margin: 0 0 12px; max-width: 70ch }
h1, h2, p, dd, figcaption { overflow-wrap: break-word }
.figures {
  display: grid; grid-template-columns: repeat(3, 1fr); margin: 32px 0 0; padding: 22px 0;
  border-top: 2px solid var(--ink); border-bottom: 1px solid var(--line);
}
.figures div { padding: 0 24px; border-left: 1px solid var(--line) }
.figures div:first-child { padding-left: 0; border-left: 0 }
.figures dt { font-size: 14px; color: var(--soft) }
.figures dd { margin: 0 }
.figures .value {
  font-size: 40px; line-height: 1.2; font-weight: 600; letter-spacing: -0.02em; color: var(--accent);
  font-variant-numeric: tabular-nums;
}
.figures .none { color: var(--soft); font-size: 24px; line-height: 2; font-weight: 400; letter-spacing: 0 }
.figures .note { font-size: 14px; line-height: 1.45; color: var(--soft) }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 24px }
figure { margin: 0 }
figcaption { font-size: 15px; font-weight: 600; margin-bottom: 8px }
img { display: block; max-width: 100%; height: auto }
.grids img { width: 100%; max-width: 640px; image-rendering: pixelated }
.classed { display: flex; flex-wrap: wrap }
.classed img { width: auto; max-width: 100% }
.chart { margin-top: 24px; max-width: 640px }
.nearest { margin: 16px 0 24px }
.scroll { overflow-x: auto }
.chart + .scroll { margin-top: 24px }
.facts + .scroll { margin-top: 24px }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums }
th, td {
  text-align: left; vertical-align: top; padding: 9px 20px 9px 0; border-bottom: 1px solid var(--line);
}
th:last-child, td:last-child { padding-right: 0 }
thead th { font-size: 13px; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink) }
tbody th { font-weight: 500 }
td.number, th.number { text-align: right; white-space: nowrap }
small { display: block; font-size: 13px; line-height: 1.4; color: var(--soft); font-weight: 400 }
code {
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere;
}
.note { color: var(--soft); font-size: 14px; margin-top: 12px }
.caution {
  border-left: 3px solid var(--warm); background: #fdf7f2; padding: 10px 14px; margin: 16px 0; font-size: 15px;
}
strong { font-weight: 700; color: var(--accent) }
.wide { max-width: 1400px }
.compare table { font-size: 13.5px }
.compare th, .compare td { padding-right: 14px }
.compare thead th { white-space: normal; vertical-align: bottom; font-size: 12px }
.compare tbody th { min-width: 150px; font-weight: 600; overflow-wrap: anywhere }
.compare small { font-size: 12px }
.classes tbody th { min-width: 70px }
.reference th, .reference td { color: var(--soft) }
.facts th { width: 34%; color: var(--soft); font-weight: 400; overflow-wrap: anywhere }
.facts td { overflow-wrap: anywhere }
@media (max-width: 640px) {
  main { padding: 28px 18px 48px }
  h1 { font-size: 25px }
  section { margin-top: 40px }
  .figures { grid-template-columns: 1fr; padding: 4px 0 }
  .figures div, .figures div:first-child {
    padding: 14px 0; border-left: 0; border-top: 1px solid var(--line);
  }
  .figures div:first-child { border-top: 0 }
  .figures .value { font-size: 34px }
  .grids { grid-template-columns: 1fr }
  table { font-size: 14px }
  th, td { padding-right: 10px }
  small, code { font-size: 12px }
  /* a row's name takes a line of its own, its values stand below it under their column's name */
  .scroll tr { display: grid; grid-template-columns: repeat(var(--values), 1fr); padding: 8px 0 }
  .scroll tr { border-bottom: 1px solid var(--line) }
  .words code { font-size: 11px }
  .words tr { grid-template-columns: 70px 80px 1fr }  /* the plan: channels, resolution, layer */
  .words thead th { font-size: 12px; padding-right: 4px }
  .scroll thead tr { border-bottom-color: var(--ink); padding-bottom: 4px }
  .scroll th, .scroll td { border: 0; padding: 1px 10px 1px 0 }
  .scroll tbody th { grid-column: 1 / -1; padding-right: 0 }
  .scroll thead th:first-child { display: none }
  .scroll td.number, .scroll th.number { text-align: left }
  /* more columns than stand beside each other: every value carries its own column's name */
  .scroll.many thead { display: none }
  .scroll.many tr { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); row-gap: 6px }
  .scroll.many td::before {
    content: attr(data-column); display: block; font-size: 12px; line-height: 1.3; color: var(--soft);
    white-space: normal;
  }
}
@media print {
  @page { margin: 16mm }
  @page across { size: landscape; margin: 10mm }
  .wide { page: across }
  .wide table { font-size: 8pt }
  .wide small, .wide thead th { font-size: 7pt }
  .wide th, .wide td { padding: 4px 8px 4px 0 }
  .wide tbody th { min-width: 100px }
  body { font-size: 10.5pt }
  main { max-width: none; padding: 0 }
  section { margin-top: 9mm }
  .figures { grid-template-columns: repeat(3, 1fr) }
  .grids { grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)) }
  .scroll { overflow: visible }
  h2 { break-after: avoid }
  tr, figure, .figures, .caution { break-inside: avoid }
  .value, .caution, img { -webkit-print-color-adjust: exact; print-color-adjust: exact }
}
"""

MANY = 4
"""Columns that stand beside each other on a phone."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def text(value: object) -> str:
    """Any value as HTML text, safe between tags and inside a quoted attribute."""
    shown = str(value).encode("utf-8", "replace").decode("utf-8")  # half a character, as JSON can hold, cannot be saved
    return html.escape(shown, quote=True)


def page(title: str, subtitle: str, parts: Iterable[str], wide: bool = False) -> str:
    """A whole document; ``wide``: for a table of many columns, printed across."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<main class="{"wide" if wide else ""}">\n'
        f"<header>\n<h1>{text(title)}</h1>\n<p>{text(subtitle)}</p>\n</header>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A headed section; empty when it has no part."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{text(heading)}</h2>\n{body}\n</section>" if body else ""


def headline(figures: Iterable[tuple[str, str | None, str]]) -> str:
    """The row of large numbers: (label, value or None when not measured, note)."""
    cells = []
    for label, value, note in figures:
        shown = '<dd class="value none">not measured</dd>' if value is None else f'<dd class="value">{text(value)}</dd>'
        cells.append(f'<div><dt>{text(label)}</dt>{shown}<dd class="note">{text(note)}</dd></div>')
    return f'<dl class="figures">{"".join(cells)}</dl>'


def picture(png: bytes, alt: str, caption: str = "", css_class: str = "") -> str:
    """A figure with its PNG inlined."""
    data = base64.b64encode(png).decode("ascii")
    title = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{text(alt)}" src="data:image/png;base64,{data}">'
    return f'<figure class="{text(css_class)}">{title}{image}</figure>'


def cell(value: object, note: str = "", code: bool = False, best: bool = False) -> str:
    """The inside of a table cell: a value and, under it, a smaller note."""
    tag = "code" if code else "strong" if best else ""
    shown = f"<{tag}>{text(value)}</{tag}>" if tag else text(value)
    return shown + (f"<small>{text(note)}</small>" if note else "")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers_from: int = 1,
    label: str = "",
    css_class: str = "",
    references: int = 0,
) -> str:
    """A table; ``rows`` hold :func:`cell` parts, the first of each is the row's header. Columns from
    ``numbers_from`` on are right-aligned. The last ``references`` rows are set back."""
    kind = [' class="number"' if index >= numbers_from else "" for index in range(len(columns))]
    head = "".join(f'<th scope="col"{k}>{text(c)}</th>' for c, k in zip(columns, kind, strict=True))
    body = []
    for first, *rest in rows:
        named = zip(rest, columns[1:], kind[1:], strict=True)
        cells = "".join(f'<td{k} data-column="{text(column)}">{value}</td>' for value, column, k in named)
        body.append(f'<th scope="row">{first}</th>{cells}</tr>')
    kinds = ["<tr>"] * (len(body) - references) + ['<tr class="reference">'] * references
    inside = "".join(opening + row for opening, row in zip(kinds, body, strict=True))
    opening = f'<table aria-label="{text(label)}" style="--values: {len(columns) - 1}">'
    width = "words" if numbers_from >= len(columns) else "many" if len(columns) > MANY else ""
    classes = " ".join(filter(None, ["scroll", width, css_class]))
    return f'<div class="{classes}">{opening}<thead><tr>{head}</tr></thead><tbody>{inside}</tbody></table></div>'


def facts(rows: Iterable[tuple[str, object]], label: str = "") -> str:
    """A two-column table of names and values."""
    body = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return f'<table class="facts" aria-label="{text(label)}"><tbody>{body}</tbody></table>' if body else ""


def paragraph(content: str, css_class: str = "") -> str:
    """One paragraph of text."""
    return f'<p class="{text(css_class)}">{text(content)}</p>' if css_class else f"<p>{text(content)}</p>"
