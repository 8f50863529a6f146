"""`vitcop plan`: what pruning would leave and save, from a config alone; or what may go for the answers to stay."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .. import builtin
from ..errors import VitcopError
from ..figures import figure
from ..inputs.chat import MAX_NEW_TOKENS
from ..tables import add_columns
from .choice import METHOD_HELP, Amount, PositionsOption, check_method, check_shape, make_method
from .common import (
    BATCH,
    SHAPES,
    TESTBED,
    BatchOption,
    DeviceOption,
    DtypeOption,
    FolderOption,
    LengthOption,
    RetentionOption,
    one_line_errors,
    read_config,
    read_size,
)
from .outputs import JsonOption, check_file, deliver
from .target import CANDIDATES, Inquiry, plan_quality

if TYPE_CHECKING:
    from ..costs.plan import Plan

METHOD, TEXT_TOKENS = "vitcop", 64


def plan(
    model: Annotated[
        str,
        typer.Option(
            help="A shape of `vitcop bench`, such as llava-1.5-7b; or a folder, config.json, Hugging Face name or "
            f"{TESTBED}.",
            show_default="the small one in the box",
        ),
    ] = str(builtin.MODEL_PATH),
    method: Annotated[str, typer.Option(help=f"How to choose the tokens to keep: {METHOD_HELP}.")] = METHOD,
    retention: RetentionOption = None,
    tokens: Annotated[int | None, typer.Option(help="Visual tokens to average instead.")] = None,
    flops: Annotated[
        float | None, typer.Option(help="Share of the dense prefill FLOPs to stay within instead.")
    ] = None,
    kv_mb: Annotated[float | None, typer.Option(help="MB of KV cache to stay within instead.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT of the picture or video, in pixels.", show_default="what suits the model"),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video in place of the picture.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens in the prompt.")] = TEXT_TOKENS,
    json_file: JsonOption = None,
    quality: Annotated[
        str | None,
        typer.Option(
            help="Share of the dense model's answers to keep instead, such as 0.97, at the lowest cost. This, and all "
            "options from here on, ask the model itself."
        ),
    ] = None,
    questions_file: Annotated[
        Path | None,
        typer.Option(help='Lines of JSON with "picture", a file, "question" and, if it is known, "answer".'),
    ] = None,
    methods: Annotated[str, typer.Option(help=f"Methods to try, with commas, each {METHOD_HELP}.")] = CANDIDATES,
    positions: PositionsOption = "default",
    seed: Annotated[int, typer.Option(help="Draws the half of the pictures that chooses.")] = 0,
    batch: BatchOption = BATCH,
    max_new_tokens: LengthOption = MAX_NEW_TOKENS,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    folder: FolderOption = None,
) -> None:
    """Show what pruning would leave and save, from a model's config and without its weights.

    With --quality and --questions-file, ask the model what may go for its answers to stay; exit with 1 if that fails.
    """
    with one_line_errors():
        given = {"--retention": retention, "--tokens": tokens, "--flops": flops, "--kv-mb": kv_mb, "--quality": quality}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise VitcopError(f"{' and '.join(named)} exclude each other; give one of them.")
        inquiry = Inquiry(questions_file, methods, positions, seed, batch, max_new_tokens, device, dtype, folder)
        if quality is not None:
            changed = {"--method": method != METHOD, "--text-tokens": text_tokens != TEXT_TOKENS}
            changed |= {"--image-size": image_size is not None, "--frames": frames is not None}
            if any(changed.values()):
                option = next(option for option, is_changed in changed.items() if is_changed)
                raise VitcopError(f"{option} does not go with --quality, which tries --methods on --questions-file.")
            plan_quality(quality, model, inquiry, json_file)
            return
        if inquiry.given:
            raise VitcopError(f"{inquiry.given[0]} goes with --quality; give one, such as --quality 0.97.")
        check_file("--json", json_file)
        amount = Amount.read(retention, None)
        check_method(method)
        check_shape(model)
        width, height = (None, None) if image_size is None else read_size(image_size)
        from ..costs.plan import Planner

        pruner = make_method(method, amount)
        config = _config(model)
        planner = Planner.of(config, height=height, width=width, frames=frames, text_tokens=text_tokens)
        if tokens is not None:
            planned = planner.for_tokens(pruner, tokens)
        elif flops is not None:
            planned = planner.for_flops(pruner, flops)
        elif kv_mb is not None:
            planned = planner.for_kv_mb(pruner, kv_mb)
        else:
            planned = planner.plan(pruner)
    deliver([_table(planned)], planned.to_dict(), json_file=json_file)


def _config(name: str) -> Any:
    if name not in SHAPES:
        return read_config(name)
    from ..bench import shapes

    return shapes.SHAPES[name].config()


def _counted(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {plural or f'{noun}s'}"


def _table(plan: Plan) -> Table:
    """What pruning would change, dense beside pruned."""
    size, geometry, total = plan.size, plan.geometry, plan.geometry.image.num_tokens
    video = "" if size.frames is None else f"{size.frames} frames of "
    others = plan.prompt_tokens - total - plan.text_tokens
    rows, columns = max(geometry.image.shapes, key=math.prod)
    caption = (
        f"Assumed: one prompt with {video}{size.width} x {size.height} pixels, which become "
        f"{_counted(len(geometry.image.shapes), 'grid')}, the largest of {rows} x {columns} visual tokens, by the "
        "default settings of the processor's class: those of the checkpoint may differ, and the numbers with them. "
        "Besides, "
        f"{_counted(others, 'separator or marker', 'separators and markers')} and "
        f"{_counted(plan.text_tokens, 'text token')} (--text-tokens). FLOPs of matrix products; see docs/costs.md."
        f"\n\nVision tower and projector are {plan.encoder_share:.1%} of the dense prompt's FLOPs, and pruning leaves "
        f"them alone: until the first token at most {plan.most_speedup:.3g} times fewer FLOPs, whatever is dropped."
    )
    table = Table(caption=caption, caption_justify="left")
    add_columns(table, "")
    add_columns(table, "dense", plan.method.name, "share", right=True)
    for first, last, alive in plan.stretches:
        table.add_row(f"visual tokens, layers {first}-{last}", str(total), str(alive), f"{alive / total:.1%}")
    average = sum(plan.visual_tokens) / len(plan.visual_tokens)
    table.add_row("visual tokens, average", str(total), f"{average:.1f}", f"{plan.average_retention:.1%}")
    table.add_section()
    dense = plan.dense_flops
    parts = [
        ("vision tower", dense.vision, plan.flops.vision),
        ("projector", dense.projector, plan.flops.projector),
        ("decoder prefill", dense.decoder, plan.flops.decoder),
        ("selection", dense.selection, plan.flops.selection),
        ("all until the first token", dense.total, plan.flops.total),
    ]
    for name, before, after in parts:
        share = f"{after / before:.1%}" if before else f"{after / dense.total:.2%} of all"
        table.add_row(name, *(f"{figure(value / 1e9)} GFLOP" for value in (before, after)), share)
    table.add_section()
    held = (f"{figure(value / 1e6)} MB" for value in (plan.dense_kv_bytes, plan.kv_bytes))
    table.add_row(f"KV cache, {plan.bytes_per_value} bytes a value", *held, f"{plan.kv_share:.1%}")
    return table
