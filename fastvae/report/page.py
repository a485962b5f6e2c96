"""A page of HTML in one file: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..plots.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem 1.2rem 3rem;
  background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.5rem; padding-top: 0.7rem;
  border-top: 1px solid #d5d5d5; }
h3 { font-size: 1.02rem; margin: 1.3rem 0 0.3rem; }
p { margin: 0.4rem 0; max-width: 75ch; }
nav a { margin-right: 1rem; color: #0a58a6; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0; font-size: 0.94rem; }
th, td { text-align: left; vertical-align: top; padding: 0.28rem 0.9rem 0.28rem 0;
  border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: 0.8rem 1.2rem; align-items: flex-start; }
figure { margin: 0.4rem 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 0.9rem; color: #3d3d3d; }
code, pre { font: 0.9rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: #f4f4f4; padding: 0.6rem 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.note { color: #3d3d3d; }
@media (max-width: 600px) {
  body { padding: 0.7rem 0.8rem 2rem; }
  td.number, th.number { white-space: normal; }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PIXELS_PER_INCH = 76
"""Of the page; pictures have twice as many, for screens with small pixels."""


def text(*lines: str) -> str:
    """Return a paragraph for each line."""
    return "".join(f"<p>{escape(line)}</p>\n" for line in lines)


def code(command: str) -> str:
    """Return what is to be typed."""
    return f"<pre>{escape(command)}</pre>\n"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    """Return a table; the columns at the places `numbers` are aligned at their right."""
    kind = {place: ' class="number"' for place in numbers}
    top = "".join(
        f'<th scope="col"{kind.get(place, "")}>{escape(heading)}</th>'
        for place, heading in enumerate(headings)
    )
    lines = [
        "".join(
            f"<td{kind.get(place, '')}>{escape(str(value))}</td>" for place, value in enumerate(row)
        )
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    head = f"<thead><tr>{top}</tr></thead>" if any(headings) else ""
    return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>\n'


def picture(figure: Figure, words: str, caption: str = "") -> str:
    """Return a figure with its picture inside; `words` are for those who cannot see it."""
    content = io.BytesIO()
    write_figure(figure, content, "png", 2 * PIXELS_PER_INCH)
    data = base64.b64encode(content.getvalue()).decode()
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escape(words)}">'
    return f'<figure style="width: {width}px">{image}{below}</figure>\n'


def pictures(*figures: str) -> str:
    """Return pictures beside each other as far as there is room."""
    return f'<div class="pictures">{"".join(figures)}</div>\n'


def section(name: str, heading: str, *parts: str) -> str:
    """Return a section; `name` is where the list of contents leads."""
    return f'<section id="{escape(name)}"><h2>{escape(heading)}</h2>\n{"".join(parts)}</section>\n'


def subsection(heading: str, *parts: str) -> str:
    """Return a part of a section."""
    return f"<h3>{escape(heading)}</h3>\n{''.join(parts)}"


def page(title: str, introduction: str, sections: dict[str, str], contents: dict[str, str]) -> str:
    """Return the whole page.

    Parameters
    ----------
    title
        As text.
    introduction
        HTML.
    sections
        HTML of each section by its name.
    contents
        The headings, as text, by the same names.
    """
    links = "".join(
        f'<a href="#{escape(name)}">{escape(contents[name])}</a>\n' for name in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{introduction}<nav>{links}</nav>\n"
        f"<main>\n{''.join(sections.values())}</main>\n</body>\n</html>\n"
    )
