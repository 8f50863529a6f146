"""`vitcop bench`: how much faster pruning makes a model on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import builtin
from ..errors import UnsupportedModelError, VitcopError, check_retention, unknown_name
from ..inputs.pictures import check_size
from ..shares import read_share
from .common import (
    CountingBar,
    check_place,
    check_plot,
    load,
    one_line_errors,
    progress_bars,
    read_list,
    read_size,
    writing_errors,
)

if TYPE_CHECKING:
    from ..bench import Subject

METHODS = "vitcop,visionzip,random,uniformgrid,downsample"
RANDOM, LOADED = "random weights", "loaded"
DTYPES = ("float32", "bfloat16", "float16")
WIDTH = 120


def bench(
    model: Annotated[
        str,
        typer.Option(
            help="A shape to fill with random weights (llava-1.5-7b, llava-1.5-13b, llava-next-7b, llava-next-13b, "
            "llava-onevision-0.5b, qwen2.5-vl-7b, qwen3-vl-8b, internvl3-8b), or a folder or Hugging Face name.",
            show_default="the small one in the box",
        ),
    ] = str(builtin.MODEL_PATH),
    method: Annotated[
        str, typer.Option(help="Methods, with commas; downsample is the dense model on fewer pixels.")
    ] = (METHODS),
    retention: Annotated[
        str, typer.Option(help="Shares of the visual tokens to keep, averaged over the decoder layers, with commas.")
    ] = "1/9",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1",
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda if it is there")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="bfloat16 on cuda, float32 on cpu"),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT of the picture, in pixels.", show_default="what suits the model")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which each method takes its turn.")] = 5,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode in each.")] = 16,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens behind the picture.")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was measured to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-up of the prefill into this file.")] = None,
) -> None:
    """Time dense and pruned in turn, part by part, beside what the hardware would allow."""
    with one_line_errors():
        methods = read_list("--method", method)
        shares = [read_share(text) for text in read_list("--retention", retention)]
        sizes = [_read_batch(text) for text in read_list("--batch", batch)]
        for share in shares:
            check_retention(share)
        width, height = (None, None) if image is None else read_size(image)
        if 0 in (width, height):
            raise VitcopError(f"--image has at least one pixel each way; got {image!r}.")
        if width and height:
            check_size("--image", width, height)
        if json_file:
            check_place("--json", json_file)
        if plot:
            check_plot(plot)
        with progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            from ..bench import Course, run_benchmark
            from ..models import Size

            _check_methods(methods)
            subject = _subject(model, device, dtype)
            progress.remove_task(loading)
            picture = None if width is None or height is None else Size(height, width)
            course = Course(methods, shares, sizes, repeats, decode_tokens, text_tokens, picture)
            benchmark = run_benchmark(subject, course, CountingBar(progress, "Measuring"))
    from ..bench.table import tables

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH  # a file has no width, and the usual guess cuts numbers off
    console.print(*tables(benchmark), sep="\n\n")
    if json_file:
        with one_line_errors(), writing_errors("--json", json_file):
            json_file.write_text(json.dumps(benchmark.to_dict(), indent=1), encoding="utf-8")
    if plot:
        from ..bench.plot import plot as draw

        with one_line_errors(), writing_errors("--plot", plot):
            draw(benchmark).savefig(plot, dpi=150)


def _read_batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise VitcopError(f"--batch is a whole number from 1 on, or several with commas; got {text!r}.")
    return int(text)


def _check_methods(names: list[str]) -> None:
    from ..bench import DOWNSAMPLE
    from ..methods import METHODS

    for name in names:
        if name not in METHODS and name != DOWNSAMPLE:
            raise VitcopError(unknown_name("method", name, [*METHODS, DOWNSAMPLE]))


def _subject(name: str, device: str | None, dtype: str | None) -> Subject:
    """A shape filled with random weights, or a model that is loaded."""
    import torch
    import transformers

    from ..bench import SHAPES, Subject
    from ..bench.random_weights import random_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise VitcopError(unknown_name("device", device, ("cpu", "cuda")))
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModelError("There is no GPU that torch can use; leave out --device cuda, or say --device cpu.")
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    if dtype not in DTYPES:
        raise VitcopError(unknown_name("dtype", dtype, DTYPES))
    transformers.logging.set_verbosity_error()
    if name in SHAPES:
        return Subject(name, RANDOM, *random_model(name, torch.device(device), getattr(torch, dtype)))
    if "/" not in name and not Path(name).exists():
        raise VitcopError(f"{unknown_name('shape', name, SHAPES)} A folder or a Hugging Face name will do as well.")
    own = "the model in the box" if name == str(builtin.MODEL_PATH) else name
    return Subject(own, LOADED, *load(name, "image", device, dtype))
