"""`vitcop methods`: what there is, and one method in detail."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import VitcopError
from ..methods import METHODS
from ..selection.registry import plug_ins
from ..tables import add_columns, add_prose, output, show
from .choice import METHOD_HELP, check_method
from .common import one_line_errors
from .outputs import printing

if TYPE_CHECKING:
    from ..selection.pruner import Pruner

HEADER = ("method", "paper", "prunes at", "by", "tokens", "flash-safe", "vLLM")


def methods(
    name: Annotated[
        str | None, typer.Argument(help=f"One method, to be told all of: {METHOD_HELP}.", show_default="a list")
    ] = None,
) -> None:
    """List the pruning methods, or explain one."""
    if name is None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in HEADER:
            (add_columns if title in ("method", "paper", "tokens", "vLLM") else add_prose)(table, title)
        for method in METHODS.values():
            table.add_row(*map(Text, row_of(method)))
        with one_line_errors(), printing():
            show(output(), table)
            for other, place in plug_ins().items():
                typer.echo(f"Of another package: {other} ({place})")
        return
    with one_line_errors():
        check_method(name)
        from ..selection.pruner import Pruner

        kind = Pruner.named(name)
        with printing():
            typer.echo("\n".join(_details(kind, name)))


def row_of(method: type[Pruner]) -> tuple[str, ...]:
    """A method in the table of methods."""
    described = method.described
    return (
        method.name,
        f"{described.venue} {described.year or ''}".strip(),
        described.where,
        described.signal,
        "merged" if described.merges else "dropped",
        _flash_safe(method),
        _in_vllm(method),
    )


def _flash_safe(method: type[Pruner]) -> str:
    if method.default_calibrate != "none":
        return "uncalibrated"
    return f"yes, {method.described.rows}" if method.described.rows else "yes"


def _in_vllm(method: type[Pruner]) -> str:
    if _not_served(method):
        return "no"
    return "probe" if _not_served(method, probe=False) else "yes"


def _not_served(method: type[Pruner], *, probe: bool = True) -> str:
    """Why a server cannot prune by a method, however it is set; empty if it can."""
    from ..entrance import check_entrance

    settings = {"retention": 1 / 9, "positions": "compact", "calibrate": "none"}
    try:
        check_entrance(method._made(settings), probe=probe)
    except VitcopError as error:
        return str(error)
    return ""


def _serving(method: type[Pruner], name: str) -> Iterator[str]:
    if reason := _not_served(method):
        yield f"Not served by vLLM. {reason}"
        return
    positions = " --positions compact" if method.default_positions == "keep" else ""
    yield f"Served by vLLM: vitcop serve MODEL --method {name}{positions}"
    if method.default_calibrate != "none":
        yield "    with calibrate='none', which is set in the command that --print gives; see docs/serving.md"
    if _not_served(method, probe=False):
        yield "    on vLLM's own models alone, or where keys are normalised, as it runs the first layers over a picture"


def _details(method: type[Pruner], name: str) -> Iterator[str]:
    from ..selection.settings import given

    yield f"{method.__name__} (--method {name})"
    yield ""
    yield inspect.getdoc(method) or ""
    yield ""
    yield "Settings and their defaults:"
    own = {"positions": method.default_positions, "calibrate": method.default_calibrate}
    for field in given(method).values():
        default = own.get(field.name, field.default)
        yield f"    {field.name}" if default is dataclasses.MISSING else f"    {field.name} = {default!r}"
    yield ""
    yield from _serving(method, name)
    presets = list(preset_lines(method))
    if presets:
        yield ""
        yield "Presets, on LLaVA-1.5-7B:"
        yield from (f"    {line}" for line in presets)


def preset_lines(method: type[Pruner]) -> Iterator[str]:
    """The presets of a method, and what each really averages."""
    from ..selection.pruner import LITERATURE_TOKENS, preset_retention

    for name, schedules in method.presets.items():
        for tokens, schedule in sorted(schedules.items(), reverse=True):
            alive = ", ".join(f"{count} from layer {layer}" for layer, count in schedule.items())
            average = preset_retention(schedule)
            yield f"{name}, {tokens} tokens: {alive} on; {LITERATURE_TOKENS * average:.1f} on average ({average:.1%})"
