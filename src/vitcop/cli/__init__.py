"""The `vitcop` command. What is slow to import is imported where it is used, so that `--help` need not wait for it."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from PIL import Image

from . import bench, compare, eval, methods, plan, run

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Faster vision-language models: drop the visual tokens that an answer does not need."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error that follows is enough
    if version:
        from .. import __version__

        typer.echo(f"vitcop {__version__}")
        raise typer.Exit


app.command()(run.run)
app.command()(compare.compare)
app.command()(methods.methods)
app.command()(plan.plan)
app.command()(bench.bench)
app.command("eval")(eval.eval_)
