"""Figures, tables and pictures as HTML that needs nothing but itself: for notebooks and for pages to keep."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } figure { margin: 1rem 0; overflow-x: auto; }
figcaption, caption { color: #555; text-align: left; margin-bottom: .4rem; } img { max-width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: pre-line; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } figcaption, caption { color: #aaa; } }
"""

_KEPT, _ALL = "#2a6fbb", "#c9d3de"  # readable on white and on black
_BAR_WIDTH, _BAR_HEIGHT, _STEPS_HEIGHT = 360, 18, 80


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "", numbers: int = 1) -> str:
    """A table whose columns from number `numbers` on are figures."""
    lines = [_row("th", head, numbers), *(_row("td", row, numbers) for row in rows)]
    return f"<table>{f'<caption>{escape(caption)}</caption>' if caption else ''}{''.join(lines)}</table>"


def bars(caption: str, values: Iterable[tuple[str, int | float, str]]) -> str:
    """Values as bars, one below the other, against the largest of them.

    Args:
        values: of each bar its name, its length and what it says.
    """
    values = list(values)
    longest = max((value for _, value, _ in values), default=0) or 1
    lines = [
        f"<tr><td>{escape(name)}</td><td><svg width='{_BAR_WIDTH}' height='{_BAR_HEIGHT}' role='img'>"
        f"<title>{escape(said)}</title>"
        f"<rect width='{_BAR_WIDTH * value / longest:.1f}' height='{_BAR_HEIGHT}' fill='{_KEPT}'/></svg></td>"
        f"<td class='number'>{escape(said)}</td></tr>"
        for name, value, said in values
    ]
    return f"<figure><figcaption>{escape(caption)}</figcaption><table>{''.join(lines)}</table></figure>"


def steps(caption: str, alive: Sequence[int], total: int) -> str:
    """Tokens alive in each decoder layer, as columns in front of all that there were."""
    width = max(6, _BAR_WIDTH // max(1, len(alive)))
    columns = []
    for layer, count in enumerate(alive):
        height = _STEPS_HEIGHT * count / total
        columns.append(
            f"<g><title>layer {layer}: {count} of {total}</title>"
            f"<rect x='{layer * width}' width='{width - 1}' height='{_STEPS_HEIGHT}' fill='{_ALL}'/>"
            f"<rect x='{layer * width}' y='{_STEPS_HEIGHT - height:.1f}' width='{width - 1}' height='{height:.1f}' "
            f"fill='{_KEPT}'/></g>"
        )
    drawn = f"<svg width='{width * len(alive)}' height='{_STEPS_HEIGHT}' role='img'>{''.join(columns)}</svg>"
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def picture(data: bytes, kind: str, caption: str) -> str:
    """A picture in the page itself.

    Args:
        data: of a file.
        kind: its media type, such as "image/png".
    """
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f"<figure><figcaption>{escape(caption)}</figcaption><img alt='{escape(caption)}' src='{source}'></figure>"


def of_terminal(shown: RenderableType) -> str:
    """What a command prints, a table or a text, as HTML."""
    if not isinstance(shown, Table):
        return f"<p>{escape(shown.plain if isinstance(shown, Text) else str(shown))}</p>"
    columns = shown.columns
    numbers = next((n for n, column in enumerate(columns) if column.justify == "right"), len(columns))
    cells = zip(*(map(_plain, column.cells) for column in columns), strict=True)
    title = "" if shown.title is None else f"<h3>{escape(_plain(shown.title))}</h3>"
    below = "" if shown.caption is None else f"<p>{escape(_plain(shown.caption))}</p>"
    return f"{title}{table([_plain(column.header) for column in columns], cells, numbers=numbers)}{below}"


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        sections: headings, and the HTML below each.
    """
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _row(tag: str, cells: Sequence[object], numbers: int) -> str:
    kinds = ("" if column < numbers else " class='number'" for column in range(len(cells)))
    written = (f"<{tag}{kind}>{escape(str(cell))}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(written)}</tr>"
