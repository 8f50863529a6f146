"""`vitcop bench`: how much faster pruning makes a model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import builtin
from ..errors import VitcopError, check_retention
from ..inputs.pictures import check_size
from ..shares import read_share
from .choice import METHOD_HELP, check_shape, import_methods, read_methods
from .common import (
    SHAPES,
    TESTBED,
    CountingBar,
    DeviceOption,
    choose_device,
    load,
    one_line_errors,
    progress_bars,
    read_list,
    read_size,
    title_of,
)
from .outputs import JsonOption, check_apart, check_file, check_plot, deliver

if TYPE_CHECKING:
    from ..bench import Subject

DOWNSAMPLE = "downsample"
METHODS = f"vitcop,visionzip,random,uniformgrid,{DOWNSAMPLE}"
RANDOM, LOADED = "random weights", "loaded"


def bench(
    model: Annotated[
        str,
        typer.Option(
            help=f"A shape to fill with random weights ({', '.join(SHAPES)}), or a folder, Hugging Face name or "
            f"{TESTBED}.",
            show_default="the small one in the box",
        ),
    ] = str(builtin.MODEL_PATH),
    methods: Annotated[
        str,
        typer.Option(
            help=f"Methods, with commas: each {METHOD_HELP}, or {DOWNSAMPLE}, the dense model on fewer pixels."
        ),
    ] = METHODS,
    retentions: Annotated[
        str, typer.Option(help="Shares of the visual tokens to keep, averaged over the decoder layers, with commas.")
    ] = "1/9",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1",
    device: DeviceOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="bfloat16 on cuda, float32 on cpu"),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT of the picture, in pixels.", show_default="what suits the model")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which each method takes its turn.")] = 5,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode in each.")] = 16,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens behind the picture.")] = 64,
    json_file: JsonOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-up of the prefill into this file.")] = None,
) -> None:
    """Time dense and pruned in turn, part by part, beside what the hardware would allow."""
    with one_line_errors():
        names = read_methods("--methods", methods, others=[DOWNSAMPLE])
        shares = [read_share(text, "--retentions") for text in read_list("--retentions", retentions)]
        sizes = [_read_batch(text) for text in read_list("--batches", batches)]
        for share in shares:
            check_retention(share)
        check_shape(model)
        width, height = (None, None) if image_size is None else read_size(image_size)
        if 0 in (width, height):
            raise VitcopError(f"--image-size has at least one pixel each way; got {image_size!r}.")
        if width and height:
            check_size("--image-size", width, height)
        check_apart({"--json": json_file, "--plot": plot})
        check_file("--json", json_file)
        check_plot(plot)
        with progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            from ..bench import Course, run_benchmark
            from ..models import Size

            names = import_methods(names, others=[DOWNSAMPLE])
            subject = _subject(model, device, dtype)
            progress.remove_task(loading)
            picture = None if width is None or height is None else Size(height, width)
            course = Course(names, shares, sizes, repeats, decode_tokens, text_tokens, picture)
            benchmark = run_benchmark(subject, course, CountingBar(progress, "Measuring"))
    from ..bench.table import tables

    def draw() -> Any:
        from ..bench.plot import plot as drawn

        return drawn(benchmark)

    deliver(tables(benchmark), benchmark.to_dict(), draw, json_file=json_file, plot=plot)


def _read_batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise VitcopError(f"--batches is a whole number from 1 on, or several with commas; got {text!r}.")
    return int(text)


def _subject(name: str, device: str | None, dtype: str | None) -> Subject:
    """A shape filled with random weights, or a model that is loaded."""
    import torch
    import transformers

    from ..bench import Subject
    from ..bench.random_weights import random_model

    device = choose_device(device, dtype)
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    transformers.logging.set_verbosity_error()
    if name in SHAPES:
        return Subject(name, RANDOM, *random_model(name, torch.device(device), getattr(torch, dtype)))
    return Subject(title_of(name), LOADED, *load(name, "image", device, dtype))
