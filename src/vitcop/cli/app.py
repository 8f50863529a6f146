"""`vitcop app`: a page in the browser on which pruning can be played with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from .. import builtin
from ..errors import VitcopError
from ..methods import METHODS
from .common import DeviceOption, DtypeOption, load, one_line_errors, progress_bars, read_list, title_of

HOST, PORT = "127.0.0.1", 7860


def app(
    models: Annotated[
        str,
        typer.Option(
            help="Models to choose from, with commas: folders, Hugging Face names or testbed.",
            show_default="the small one in the box",
        ),
    ] = str(builtin.MODEL_PATH),
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; with any other than the default, others can use the page.")
    ] = HOST,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = PORT,
) -> None:
    """Ask in the browser: two methods side by side, and what each kept."""
    with one_line_errors():
        names = read_list("--models", models)
        if find_spec("gradio") is None:
            raise VitcopError('The page needs Gradio: pip install "vitcop[app]"')
        with progress_bars() as progress:
            progress.add_task("Loading", total=None)
            from ..app.asking import Model
            from ..app.page import make_page, serve_page

            loaded = {title_of(name): Model(title_of(name), *load(name, "image", device, dtype)) for name in names}
            page = make_page(loaded, list(METHODS))
        typer.echo(f"http://{host}:{port}", err=True)
        try:
            serve_page(page, host, port)
        except OSError as error:
            raise VitcopError(f"Cannot listen on {host}:{port}: {error}") from error
