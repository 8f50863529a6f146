"""Tables on a terminal of any width: where columns do not fit, rows stand below each other, and nothing is cut off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 120  # of a file or a pipe, which have none
PROSE_WIDTH = 15  # below which sentences are hard to read
LONGEST = 1000  # line, in characters
INDENT = 2


def output() -> Console:
    """The console of stdout."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


def add_columns(table: Table, *headings: str, right: bool = False) -> None:
    """Columns whose cells stand on one line each."""
    for heading in headings:
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)


def add_prose(table: Table, *headings: str) -> None:
    """Columns whose cells may go over several lines."""
    for heading in headings:
        table.add_column(heading, overflow="fold", min_width=PROSE_WIDTH)


def show(console: Console, *renderables: RenderableType) -> None:
    """Print these with an empty line between them, each table so that it fits."""
    fitting = [_fitted(each, console) if isinstance(each, Table) else each for each in renderables]
    console.print(*fitting, sep="\n\n")


def _fitted(table: Table, console: Console) -> RenderableType:
    return table if _least_width(table, console) <= console.width else Group(*_paragraphs(table))


def _least_width(table: Table, console: Console) -> int:
    narrow = copy(table)
    narrow.columns = [each if each.no_wrap else replace(each, width=each.min_width) for each in table.columns]
    return Measurement.get(console, console.options.update(max_width=LONGEST), narrow).maximum


def _paragraphs(table: Table) -> Iterator[RenderableType]:
    """Every row as its first cell, and below it a line for each of the others."""
    if table.title:
        yield Text(str(table.title), style="italic")
    headings = [" ".join(str(column.header).split()) for column in table.columns[1:]]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        yield Text(str(name), style="bold")
        for heading, cell in zip(headings, cells, strict=True):
            words = Text.assemble(f"{heading}: ", cell if isinstance(cell, Text) else " ".join(str(cell).split()))
            yield Padding(words, (0, 0, 0, INDENT), expand=False)
    if table.caption:
        yield Text(str(table.caption))
