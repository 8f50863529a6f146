"""`vitcop run`: one question, answered by a pruned model."""

from __future__ import annotations

import statistics
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import builtin
from ..figures import figure
from ..inputs.chat import MAX_NEW_TOKENS, Chat, modality_of, pictures_in
from ..tables import add_columns, add_prose, output, show
from .choice import METHOD_HELP, Amount, check_method, make_method, read_positions
from .common import (
    DeviceOption,
    DtypeOption,
    FramesOption,
    ImageOption,
    LengthOption,
    ModelOption,
    QuestionArgument,
    RetentionOption,
    TokensOption,
    VideoOption,
    ask,
    load,
    one_line_errors,
    progress_bars,
    question_about,
    read_subject,
    sources_of,
)
from .outputs import JsonOption, check_apart, check_file, check_picture, printing, write_json, writing_errors

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
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    retention: RetentionOption = None,
    tokens: TokensOption = None,
    method: Annotated[str, typer.Option(help=f"How to choose the tokens to keep: {METHOD_HELP}.")] = "vitcop",
    positions: Annotated[
        str,
        typer.Option(
            help="Positions of what the entrance leaves: keep, compact (numbered anew), or the method's default."
        ),
    ] = "default",
    max_new_tokens: LengthOption = MAX_NEW_TOKENS,
    compare: Annotated[bool, typer.Option("--compare", help="Answer without pruning, too, and compare.")] = False,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of what each stage kept to this file.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Answer a question about pictures or a video with most of their visual tokens dropped."""
    if question is None:
        question = question_about(image, video)
    with one_line_errors():
        amount = Amount.read(retention, tokens)
        check_method(method)
        (numbering,) = read_positions(positions, both=False)
        subject = read_subject(image, video, frames)
        check_apart({"--overlay": overlay, "--json": json_file})
        check_picture("--overlay", overlay, sources_of(image, video))
        check_file("--json", json_file, sources_of(image, video))
        with progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            from .. import prune

            pruner = make_method(method, amount, numbering)
            loaded = load(model, modality_of(subject), device, dtype)
            chat = Chat.about(subject, question, *loaded, max_new_tokens)
            progress.remove_task(loading)
            with prune(chat.model, pruner) as pruning:
                answer = ask(chat, progress, "Answering")
            report = pruning.report
            assert report is not None
            asked = {
                "model": model,
                "question": question,
                "answer": answer,
                **pruner.to_dict(),
                "report": report.to_dict(),
            }
            heading = [question, f"{report.method}: {answer}"]
            if compare:
                dense_answer = ask(chat, progress, "Answering without pruning")
                seconds = _seconds_to_first_token(chat, pruner, progress)
                asked |= {"dense_answer": dense_answer, "seconds_to_first_token": seconds}
                heading.append(f"dense: {dense_answer}")
    with one_line_errors():
        try:
            with printing():
                if compare:
                    show(output(), _table(question, report, (dense_answer, answer), seconds, _device_name(chat)))
                else:
                    typer.echo(question, err=True)  # alone on stdout, the answer can go on into a pipe
                    typer.echo(answer)
                    typer.echo(report.summary, err=True)
        finally:  # whatever has become of stdout, this work was done
            if overlay:
                with writing_errors("--overlay", overlay):
                    page = report.overlay(pictures_in(subject), chat.processor, chat.pixel_values, heading)
                    page.save(overlay)
            if json_file:
                write_json("--json", json_file, asked)


def _seconds_to_first_token(chat: Chat, pruner: Pruner, progress: Progress) -> dict[str, float]:
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
    # The first ones warm up.
    return {"dense": statistics.median(dense[1:]), "pruned": statistics.median(pruned[1:])}


def _device_name(chat: Chat) -> str:
    import torch

    if chat.model.device.type == "cuda":
        return torch.cuda.get_device_name(chat.model.device)
    threads = torch.get_num_threads()
    return "CPU with 1 thread" if threads == 1 else f"CPU with {threads} threads"


def _table(question: str, report: Report, answers: tuple[str, str], seconds: dict[str, float], device: str) -> Table:
    """What pruning changed, dense beside pruned."""
    caption = f"Time to first token: median of {REPEATS} runs on this {device}, vision encoder included."
    table = Table(title=Text(question), title_justify="left", caption=caption, caption_justify="left")
    add_columns(table, "")
    add_prose(table, "dense", report.method)
    table.add_row("answer", *map(Text, answers))
    table.add_row("time to first token", *(f"{1000 * value:,.1f} ms" for value in seconds.values()))
    table.add_section()
    total, layer = sum(report.image_lengths), 0
    for alive, layers in groupby(report.all_visual_tokens):
        first, layer = layer, layer + len(list(layers))
        table.add_row(f"visual tokens, layers {first}-{layer - 1}", str(total), str(alive))
    table.add_row("average retention", "100.0%", f"{report.overall_retention:.1%}")
    table.add_section()
    table.add_row("decoder prefill", *(f"{figure(flops / 1e9)} GFLOP" for flops in report.prefill_flops))
    table.add_row("KV cache of the prompt", *(f"{size:,} bytes" for size in report.kv_cache_bytes))
    return table
