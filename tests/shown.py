"""What is left of tables on narrow terminals."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table

from vitcop.tables import show

WIDTHS = 40, 80, 200


def assert_nothing_is_lost(renderables: Iterable[RenderableType]) -> None:
    """Every word of every table is there, whole, at any width, and no line is longer than that."""
    renderables = list(renderables)
    for width in WIDTHS:
        console = Console(file=io.StringIO(), width=width)
        show(console, *renderables)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        words = [word for line in lines for word in line.split()]
        for table in (each for each in renderables if isinstance(each, Table)):
            cells = [str(cell) for column in table.columns for cell in column.cells]
            for word in {word for text in (*cells, str(table.caption or "")) for word in text.split()}:
                assert word in words, f"{word!r} is lost at {width} columns"
