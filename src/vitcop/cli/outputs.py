"""What commands write: refused before the work where it could not be written after it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from ..errors import VitcopError
from ..tables import output, show
from .common import one_line_errors

PLOT_KINDS = (".png", ".svg", ".pdf")
PICTURE_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff")

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write all of it to this file, as plain values and unrounded.")
]


def check_picture(option: str, path: Path | None, sources: Sequence[Path]) -> None:
    """Refuse a picture that could not be written, or only over one of the files that are read."""
    if path is None:
        return
    _check_kind(option, path, PICTURE_KINDS)
    check_file(option, path, sources)


def check_plot(path: Path | None) -> None:
    """Refuse a plot that could not be drawn or written."""
    if path is None:
        return
    _check_kind("--plot", path, PLOT_KINDS)
    check_file("--plot", path)
    if find_spec("matplotlib") is None:
        raise VitcopError('--plot needs matplotlib: pip install "vitcop[plot]"')


def check_file(option: str, path: Path | None, sources: Sequence[Path] = ()) -> None:
    """Refuse a file that could not be written, or only over one of the files that are read. Nothing changes by it."""
    if path is None:
        return
    with writing_errors(option, path):
        if path.is_dir():
            raise VitcopError(f"{option} cannot be written: {path} is a folder.")
        if path.exists():
            for source in sources:
                if path.samefile(source):
                    raise VitcopError(f"{option} would overwrite {source}; give it another name.")
            if path.is_file():
                os.close(os.open(path, os.O_WRONLY))  # neither empties nor touches it
            return
        if not path.parent.is_dir():
            raise VitcopError(f"{option} cannot be written: there is no folder {path.parent}.")
        _check_folder(path.parent)


def check_apart(files: Mapping[str, Path | None]) -> None:
    """Refuse two options that name one file: what is written last would be all of it."""
    taken: dict[Path, str] = {}
    for option, path in files.items():
        if path is not None and (other := taken.setdefault(path.resolve(), option)) != option:
            raise VitcopError(f"{other} and {option} are both to be written to {path}; give one another name.")


def make_folder(option: str, path: Path) -> None:
    """Make a folder, and refuse one that takes no files."""
    with writing_errors(option, path):
        path.mkdir(parents=True, exist_ok=True)
        _check_folder(path)


def write_json(option: str, path: Path, values: dict[str, Any]) -> None:
    """Write plain values to a file."""
    with writing_errors(option, path):
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def deliver(
    tables: Iterable[RenderableType],
    values: dict[str, Any],
    draw: Callable[[], Any] | None = None,
    *,
    json_file: Path | None,
    plot: Path | None = None,
) -> None:
    """Print what was measured, and write it to the files that were asked for, whatever becomes of stdout.

    Args:
        values: for JSON.
        draw: makes the figure, if there is one.
    """
    with one_line_errors():
        try:
            with printing():
                show(output(), *tables)
        finally:
            if json_file:
                write_json("--json", json_file, values)
            if plot and draw:
                with writing_errors("--plot", plot):
                    draw().savefig(plot, dpi=150)


@contextmanager
def printing() -> Iterator[None]:
    """Say in one line why stdout takes nothing. That its reader has gone, such as `head`, is no error of that kind."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VitcopError(f"Cannot write to stdout: {error.strerror or error}.") from error


@contextmanager
def writing_errors(option: str, path: Path) -> Iterator[None]:
    """Name the file that could not be written, and the option that asked for it."""
    try:
        yield
    except OSError as error:
        raise VitcopError(f"{option} cannot be written to {path}: {error.strerror or error}.") from error


def _check_folder(path: Path) -> None:
    tempfile.TemporaryFile(dir=path).close()  # permissions alone do not tell; of this, nothing stays


def _check_kind(option: str, path: Path, kinds: Sequence[str]) -> None:
    """Refuse a file whose name does not say how to write it."""
    if path.suffix.lower() not in kinds:
        raise VitcopError(f"{option} needs one of the extensions {', '.join(kinds)}; got {path.name!r}.")
