"""One HTML page that needs nothing but itself: escaped text, tables, and SVG inside."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:  # a second to import
    from matplotlib.figure import Figure

# Nothing is loaded from anywhere, even if a text should slip through unescaped.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
nav a { margin-right: .9rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; }
th, td { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead th { background: #eee; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; }
.verdict { padding: .6rem .9rem; border-left: .4rem solid; font-weight: 600; }
.yes { border-color: #0072B2; background: #e8f2f9; }
.no { border-color: #D55E00; background: #fbeee5; }
pre { background: #f4f4f4; padding: .6rem; overflow: auto; font-size: .8rem; }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page, from headings and the HTML below them."""
    named = [(f"s{k}", heading, body) for k, (heading, body) in enumerate(sections)]
    links = "\n".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in named)
    bodies = "\n".join(
        f'<section id="{key}">\n<h2>{escape(heading)}</h2>\n{body}\n</section>'
        for key, heading, body in named
    )
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav>
{links}
</nav>
{bodies}
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table; without a head, the first cell of a row is its name."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    top = f"<thead><tr>{top}</tr></thead>\n" if head else ""
    lines = []
    for row in rows:
        cells = [_cell(value) for value in row]
        if not head:
            cells[0] = f'<th scope="row">{escape(str(row[0]))}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>\n{top}<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def details(summary: str, text: str) -> str:
    """Long plain text, folded away."""
    return f"<details><summary>{escape(summary)}</summary>\n<pre>{escape(text)}</pre>\n</details>"


def picture(figure: Figure, key: str, caption: str) -> str:
    """A figure as SVG inside the page.

    Args:
        key: unlike that of any other picture on the page: it goes before every id, because ids of two
            SVGs on one page collide, and the second would be cut by the clip paths of the first.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(PRINT):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    size = re.search(r'viewBox="[^"]*"', head)
    assert size is not None
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([\w-]+)', rest))
    rest = re.sub(
        r'(<[^<>]*?)\sid="([^"]*)"',  # of an image, the hash of what it shows: two may have the same
        lambda tag: f'{tag[1]} id="{key}-{tag[2]}"' if tag[2] in used else tag[1],
        rest,
    )
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{key}-", rest)
    rest = rest.replace("*{stroke", "svg *{stroke", 1)
    label = escape(caption, quote=True)
    return (
        f'<figure>\n<svg {size[0]} role="img" aria-label="{label}">{rest.strip()}\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="number">{value}</td>'
    return f"<td>{escape(str(value))}</td>"
