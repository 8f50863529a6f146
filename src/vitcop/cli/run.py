"""`vitcop run`: one question, answered by a pruned model."""

from __future__ import annotations

import statistics
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import builtin
from ..errors import check_retention
from ..figures import figure
from ..pictures.overlay import overlay as draw_overlay
from ..shares import read_share
from .choice import METHOD_HELP, check_method, make_method
from .common import (
    Chat,
    FramesOption,
    ImageOption,
    ModelOption,
    QuestionArgument,
    RetentionOption,
    TokenBar,
    VideoOption,
    check_can_write,
    load,
    modality_of,
    one_line_errors,
    pictures_of_grids,
    progress_bars,
    question_about,
    read_subject,
    writing_errors,
)

if TYPE_CHECKING:
    from ..report import Report
    from ..selection.pruner import Pruner

REPEATS = 5


def run(
    question: QuestionArgument = None,
    image: ImageOption = None,
    video: VideoOption = None,
    frames: FramesOption = None,
    model: ModelOption = str(builtin.MODEL_PATH),
    retention: RetentionOption = "1/9",
    method: Annotated[str, typer.Option(help=f"How to choose the tokens to keep: {METHOD_HELP}.")] = "vitcop",
    compare: Annotated[bool, typer.Option("--compare", help="Answer without pruning, too, and compare.")] = False,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of what each stage kept to this file.")] = None,
) -> None:
    """Answer a question about a picture or a video with most of its visual tokens dropped."""
    source = video or image or builtin.EXAMPLE_PICTURE
    if question is None:
        question = question_about(source, is_video=video is not None)
    with one_line_errors():
        share = read_share(retention)
        check_retention(share)
        check_method(method)
        subject = read_subject(image, video, frames)
        if overlay:
            check_can_write("--overlay", overlay, source)
        with progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            from .. import prune

            pruner = make_method(method, share)
            chat = Chat.about(subject, question, *load(model, modality_of(subject)))
            progress.remove_task(loading)
            with prune(chat.model, pruner) as pruning:
                answer = chat.answer(TokenBar(progress, "Answering"))
            report = pruning.report
            assert report is not None
            if compare:
                dense_answer = chat.answer(TokenBar(progress, "Answering without pruning"))
                seconds = _seconds_to_first_token(chat, pruner, progress)
    if compare:
        Console().print(_table(report, (dense_answer, answer), seconds, _device_name(chat)))
    else:
        typer.echo(answer)
        typer.echo(report.summary, err=True)
    if overlay:
        with one_line_errors(), writing_errors("--overlay", overlay):
            pictures = pictures_of_grids(subject, chat, len(report.images[0].shapes))
            draw_overlay(pictures, report).save(overlay)


def _seconds_to_first_token(chat: Chat, pruner: Pruner, progress: Progress) -> tuple[float, float]:
    """Median time that a prompt takes until its first token, dense and pruned, the vision encoder included."""
    import torch

    from .. import prune

    def timed() -> float:
        start = time.perf_counter()
        chat.generate(1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    dense, pruned = [], []
    # In turn, so that a machine that slows down or speeds up does so for both.
    for _ in progress.track(range(1 + REPEATS), description="Timing the first token"):
        dense.append(timed())
        with prune(chat.model, pruner):
            pruned.append(timed())
    return statistics.median(dense[1:]), statistics.median(pruned[1:])  # the first ones warm up


def _device_name(chat: Chat) -> str:
    import torch

    if chat.model.device.type == "cuda":
        return torch.cuda.get_device_name(chat.model.device)
    return f"CPU with {torch.get_num_threads()} threads"


def _table(report: Report, answers: tuple[str, str], seconds: tuple[float, float], device: str) -> Table:
    """What pruning changed, dense beside pruned."""
    caption = f"Time to first token: median of {REPEATS} runs on this {device}, vision encoder included."
    table = Table(caption=caption, caption_justify="left")
    table.add_column()
    table.add_column("dense", overflow="fold", min_width=15)
    table.add_column(report.method, overflow="fold", min_width=15)
    table.add_row("answer", *map(Text, answers))
    table.add_row("time to first token", *(f"{1000 * value:,.1f} ms" for value in seconds))
    table.add_section()
    total, layer = report.image_lengths[0], 0
    for alive, layers in groupby(report.visual_tokens()):
        first, layer = layer, layer + len(list(layers))
        table.add_row(f"visual tokens, layers {first}-{layer - 1}", str(total), str(alive))
    table.add_row("average retention", "100.0%", f"{report.average_retention():.1%}")
    table.add_section()
    table.add_row("decoder prefill", *(f"{figure(flops / 1e9)} GFLOP" for flops in report.prefill_flops))
    table.add_row("KV cache of the prompt", *(f"{size:,} bytes" for size in report.kv_cache_bytes))
    return table
