"""The `vitcop` command. What is slow to import is imported where it is used, so that `--help` need not wait for it."""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import builtin
from .errors import VitcopError
from .overlay import as_seen, tiles_as_seen
from .overlay import overlay as draw_overlay
from .video import Clip, middles, read_clip

if TYPE_CHECKING:
    from .pruner import Pruner
    from .report import Report

FRAMES = 16
MAX_NEW_TOKENS = 64
REPEATS = 5
OVERLAY_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff")
GENERAL_QUESTION = "What is in this picture?"
VIDEO_QUESTION = "What happens in this video?"

Subject = Image.Image | Clip
"""What a question is about."""

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Faster vision-language models: drop the visual tokens that an answer does not need."""
    if version:
        from . import __version__

        typer.echo(f"vitcop {__version__}")
        raise typer.Exit


@app.command()
def run(
    question: Annotated[
        str | None, typer.Argument(help="What to ask.", show_default="one that suits the picture or video")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The picture.", show_default="an example")] = None,
    video: Annotated[Path | None, typer.Option(help="A video in place of the picture.")] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames to take, spread evenly over the video.", show_default=str(FRAMES))
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Folder or Hugging Face name of a vision-language model.", show_default="the small one in the box"
        ),
    ] = str(builtin.MODEL_PATH),
    retention: Annotated[
        str, typer.Option(help="Share of the visual tokens to keep, averaged over the decoder layers.")
    ] = "1/9",
    method: Annotated[str, typer.Option(help="How to choose the tokens to keep.")] = "vitcop",
    compare: Annotated[bool, typer.Option("--compare", help="Answer without pruning, too, and compare.")] = False,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of what each stage kept to this file.")] = None,
) -> None:
    """Answer a question about a picture or a video with most of its visual tokens dropped."""
    source = video or image or builtin.EXAMPLE_PICTURE
    if question is None:
        question = _question_about(source, is_video=video is not None)
    with _one_line_errors():
        share = _read_share(retention)
        subject = _read_subject(image, video, frames)
        if overlay:
            _check_can_write(overlay, source)
        with _progress() as progress:
            loading = progress.add_task("Loading", total=None)
            from . import prune
            from .pruner import Pruner

            pruner = Pruner.from_dict({"method": method, "retention": share})
            chat = _Chat.about(subject, question, *_load(model, _modality(subject)))
            progress.remove_task(loading)
            with prune(chat.model, pruner) as pruning:
                answer = chat.answer(_TokenBar(progress, "Answering"))
            report = pruning.report
            assert report is not None
            if compare:
                dense_answer = chat.answer(_TokenBar(progress, "Answering without pruning"))
                seconds = _seconds_to_first_token(chat, pruner, progress)
    if compare:
        Console().print(_table(report, (dense_answer, answer), seconds, _device_name(chat)))
    else:
        typer.echo(answer)
        typer.echo(report.summary, err=True)
    if overlay:
        with _one_line_errors(), _writing_errors(overlay):
            pictures = _pictures_of_grids(subject, chat, len(report.images[0].shapes))
            draw_overlay(pictures, report).save(overlay)


def _question_about(source: Path, *, is_video: bool) -> str:
    if is_video:
        return VIDEO_QUESTION
    return builtin.example_question() if source == builtin.EXAMPLE_PICTURE else GENERAL_QUESTION


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Show what the user can mend as one line on stderr, and exit with code 2."""
    try:
        yield
    except VitcopError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


def _read_share(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ArithmeticError) as error:
        raise VitcopError(f"--retention is a fraction such as 1/9 or a number such as 0.2; got {text!r}.") from error


def _read_subject(image: Path | None, video: Path | None, frames: int | None) -> Subject:
    """The picture, or frames of the video, that the options name."""
    if image and video:
        raise VitcopError("--image and --video do not go together; give one of them.")
    if video is None:
        if frames is not None:
            raise VitcopError("--frames goes with a video; give one with --video.")
        return _read_picture(image or builtin.EXAMPLE_PICTURE)
    count = FRAMES if frames is None else frames
    if count < 1:
        raise VitcopError(f"--frames has to be at least 1; got {count}.")
    return read_clip(video, count)


def _modality(subject: Subject) -> str:
    return "video" if isinstance(subject, Clip) else "image"


def _read_picture(path: Path) -> Image.Image:
    """The picture as a viewer shows it: turned upright, on white where it is transparent, 8 bits a channel."""
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):
                picture = picture.convert("I").point(lambda value: value / 256)
            if picture.has_transparency_data:
                paper = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(paper, picture.convert("RGBA"))
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise VitcopError(f"{path} is not a picture, or of a kind that Pillow cannot read.") from error
    except Exception as error:  # a broken file can raise anything in the decoder of its kind
        raise VitcopError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _check_can_write(path: Path, source: Path) -> None:
    """Refuse before the model runs, not after."""
    if path.suffix.lower() not in OVERLAY_KINDS:
        raise VitcopError(f"--overlay needs one of the extensions {', '.join(OVERLAY_KINDS)}; got {path.name!r}.")
    if not path.parent.is_dir():
        raise VitcopError(f"--overlay cannot be written: there is no folder {path.parent}.")
    if path.is_dir():
        raise VitcopError(f"--overlay cannot be written: {path} is a folder.")
    if path.exists() and path.samefile(source):
        raise VitcopError(f"--overlay would overwrite {source}; give it another name.")


@contextmanager
def _writing_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VitcopError(f"--overlay cannot be written to {path}: {error.strerror or error}.") from error


def _progress() -> Progress:
    # Even a disabled bar ends with an empty line where it cannot draw, and a quiet console does not.
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


class _TokenBar:
    """A progress bar that `generate` moves, which takes it for a streamer."""

    def __init__(self, progress: Progress, text: str) -> None:
        self.progress, self.task = progress, progress.add_task(text, total=MAX_NEW_TOKENS)

    def put(self, tokens: object) -> None:
        self.progress.advance(self.task)

    def end(self) -> None:
        self.progress.update(self.task, completed=MAX_NEW_TOKENS)


@dataclass(frozen=True)
class _Chat:
    """A loaded model, and a question about a picture or a video as it takes it."""

    model: Any
    processor: Any
    inputs: Any

    @staticmethod
    def about(subject: Subject, question: str, model: Any, processor: Any) -> _Chat:
        modality = _modality(subject)
        token = getattr(processor, f"{modality}_token", f"<{modality}>")
        if token in question:
            raise VitcopError(f"The question {question!r} holds {token!r}, which stands for the {modality}.")
        prompt = f"USER: {token}\n{question} ASSISTANT:"
        if getattr(processor, "chat_template", None) is not None:
            content = [{"type": modality}, {"type": "text", "text": question}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        try:
            inputs = processor(text=prompt, return_tensors="pt", **_visual_arguments(subject))
        except ValueError as error:
            raise VitcopError(f"The model cannot take the question {question!r} on this {modality}: {error}") from error
        return _Chat(model, processor, inputs.to(model.device, dtype=model.dtype))

    def answer(self, bar: _TokenBar) -> str:
        output = self.generate(MAX_NEW_TOKENS, streamer=bar)
        new = output[:, self.inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    def generate(self, max_new_tokens: int, **options: Any) -> Any:
        return self.model.generate(**self.inputs, **options, max_new_tokens=max_new_tokens, do_sample=False)


def _visual_arguments(subject: Subject) -> dict[str, Any]:
    """A picture or a video as the processors of transformers take it."""
    if isinstance(subject, Clip):
        # They may not take frames away again, but some write into the prompt when each frame was.
        return {
            "videos": [list(subject.frames)],
            "video_metadata": [subject.metadata],
            "do_sample_frames": False,
        }
    return {"images": subject}


def _load(name: str, modality: str) -> tuple[Any, Any]:
    """A model, on the GPU if there is one, and its processor.

    Raises:
        VitcopError: it cannot be found, loaded or pruned, or does not take the modality.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from .models import FAMILIES, known_family

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _loading_errors(name):
        model_type = AutoConfig.from_pretrained(name).model_type
    if modality not in known_family(model_type).modalities:  # before gigabytes are loaded in vain
        able = ", ".join(sorted(name for name, family in FAMILIES.items() if modality in family.modalities))
        raise VitcopError(
            f"Models of type {model_type!r} take no {modality}s, or only as pictures of their own, which `vitcop run` "
            f"does not show them; with --model, name one of type {able}."
        )
    with _loading_errors(name):
        processor = AutoProcessor.from_pretrained(name)
        dtype = "auto" if device == "cuda" else torch.float32
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).to(device), processor


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any of several libraries, which have no base class in common
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            raise VitcopError(f"The processor of {name!r} needs torchvision: pip install torchvision") from error
        where = "" if Path(name).is_dir() else "there is no such folder, and the hub gave: "
        reason = str(error).strip().partition("\n")[0]
        raise VitcopError(f"Cannot load the model {name!r}: {where}{reason}") from error


def _pictures_of_grids(subject: Subject, chat: _Chat, grids: int) -> list[Image.Image]:
    """What each grid of a picture or a video covers."""
    if isinstance(subject, Clip):
        frames = (subject.frames[number] for number in middles(grids, len(subject.frames)))
        return [as_seen(frame, chat.processor.video_processor) for frame in frames]
    if grids == 1:
        return [as_seen(subject, chat.processor.image_processor)]
    return tiles_as_seen(chat.inputs["pixel_values"], chat.processor.image_processor)


def _seconds_to_first_token(chat: _Chat, pruner: Pruner, progress: Progress) -> tuple[float, float]:
    """Median time that a prompt takes until its first token, dense and pruned, the vision encoder included."""
    import torch

    from . import prune

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


def _device_name(chat: _Chat) -> str:
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
    table.add_row("decoder prefill", *(f"{flops / 1e9:,.4g} GFLOP" for flops in report.prefill_flops))
    table.add_row("KV cache of the prompt", *(f"{size:,} bytes" for size in report.kv_cache_bytes))
    return table


from .plan_command import plan  # noqa: E402 - it needs the helpers above

app.command()(plan)
