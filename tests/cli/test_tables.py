"""What commands show stands on a terminal of any width, whole."""

import pytest
from rich.table import Table
from shown import assert_nothing_is_lost
from typer.testing import CliRunner

from vitcop import cli, tables


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("run", ["--compare"]),
        ("compare", ["--methods", "pyramiddrop,vitcop", "--retention", "0.02"]),
        ("plan", ["--model", "qwen2.5-vl-7b"]),
        ("methods", []),
    ],
)
def test_nothing_is_lost_on_a_narrow_terminal(command, arguments, monkeypatch):
    shown = []
    for module in (getattr(cli, command), cli.outputs):
        monkeypatch.setattr(module, "show", lambda console, *renderables: shown.extend(renderables), raising=False)
    result = CliRunner().invoke(cli.app, [command, *arguments])
    assert result.exit_code == 0, result.output
    assert shown and isinstance(shown[0], Table)
    assert_nothing_is_lost(shown)


@pytest.mark.parametrize(("columns", "width"), [(None, tables.FILE_WIDTH), ("40", 40)])
def test_a_file_is_as_wide_as_it_says_or_wide_enough_for_tables(columns, width, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert tables.output().width == width
