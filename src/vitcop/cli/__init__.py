"""The `vitcop` command. What is slow to import is imported where it is used, so that `--help` need not wait for it."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from . import app as page
from . import bench, compare, eval, methods, plan, report, run, serve

# What is not a user's to mend is told by Python's own traceback: rich would draw hundreds of lines of other libraries.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Faster vision-language models: drop the visual tokens that an answer does not need."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries: what matters to a user is an error, of one line
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
app.command()(serve.serve)
app.command()(report.report)
app.command()(page.app)
