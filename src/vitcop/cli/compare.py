"""`vitcop compare`: one question, answered by the dense model, under every method, and from a smaller picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import builtin
from ..errors import BudgetError, VitcopError, check_retention
from ..figures import figure
from ..inputs.downsample import downsample
from ..inputs.video import Clip
from ..methods import METHODS
from ..pictures.sheet import Entry, contact_sheet
from ..shares import read_share
from .choice import METHOD_HELP, import_methods, make_method, read_methods
from .common import (
    Chat,
    FramesOption,
    ImageOption,
    ModelOption,
    QuestionArgument,
    RetentionOption,
    Subject,
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

ALL, DENSE, DOWNSAMPLE = "all", "dense", "downsample"


def compare(
    question: QuestionArgument = None,
    image: ImageOption = None,
    video: VideoOption = None,
    frames: FramesOption = None,
    model: ModelOption = str(builtin.MODEL_PATH),
    retention: RetentionOption = "1/9",
    methods: Annotated[
        str, typer.Option(help=f"Methods, with commas: {ALL} of vitcop's own, or each {METHOD_HELP}.")
    ] = ALL,
    sheet: Annotated[Path | None, typer.Option(help="Write a picture of what each method kept to this file.")] = None,
) -> None:
    """Answer a question under every method at the same average retention, and from fewer pixels."""
    source = video or image or builtin.EXAMPLE_PICTURE
    if question is None:
        question = question_about(source, is_video=video is not None)
    with one_line_errors():
        share = read_share(retention)
        check_retention(share)
        names = read_methods("--methods", methods, words={ALL: METHODS})
        subject = read_subject(image, video, frames)
        if sheet:
            check_can_write("--sheet", sheet, source)
        with progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            names = import_methods(names)
            chat = Chat.about(subject, question, *load(model, modality_of(subject)))
            progress.remove_task(loading)
            rows = list(_rows(subject, question, chat, names, share, progress))
    Console().print(_table(rows))
    if sheet:
        with one_line_errors(), writing_errors("--sheet", sheet):
            contact_sheet([row.entry for row in rows if isinstance(row, _Outcome)]).save(sheet)


@dataclass(frozen=True)
class _Outcome:
    """An answer, and what it took.

    Attributes:
        name: of the method.
        subject, chat: what the model was shown and asked.
        report: of the prompt.
        whole: visual tokens of the picture as it is.
    """

    name: str
    answer: str
    subject: Subject
    chat: Chat
    report: Report
    whole: int

    @property
    def average(self) -> float:
        """Share of the visual tokens alive, averaged over the decoder layers."""
        return self.report.average_retention() * self.report.image_lengths[0] / self.whole

    @property
    def entry(self) -> Entry:
        grids = len(self.report.images[0].shapes)
        alive = self.report.visual_tokens()[-1]
        caption = f"{alive} of {self.whole} left, {self.average:.1%} on average"
        return Entry(self.name, caption, pictures_of_grids(self.subject, self.chat, grids), self.report)


@dataclass(frozen=True)
class _Refusal:
    """A method that gives no answer, and why."""

    name: str
    reason: str


def _rows(
    subject: Subject, question: str, chat: Chat, names: Sequence[str], share: float, progress: Progress
) -> Iterator[_Outcome | _Refusal]:
    """The dense model, then each method, then down-sampling."""
    from .. import prune
    from ..methods.random import Random

    def outcome(name: str, subject: Subject, chat: Chat, pruner: Pruner, whole: int | None = None) -> _Outcome:
        bar = TokenBar(progress, f"Answering: {name}")
        try:
            with prune(chat.model, pruner) as pruning:
                answer = chat.answer(bar)
        finally:
            progress.remove_task(bar.task)
        assert pruning.report is not None
        return _Outcome(name, answer, subject, chat, pruning.report, whole or pruning.report.image_lengths[0])

    # What drops nothing leaves the model as it is, bit by bit, and gives a report.
    everything = Random(retention=1.0)
    yield (dense := outcome(DENSE, subject, chat, everything))
    for name in names:
        try:
            yield outcome(name, subject, chat, make_method(name, share))
        except VitcopError as error:  # of the method: the row before has shown that the model can be pruned
            yield _Refusal(name, str(error))
    try:
        smaller = _downsampled(subject, chat, share)
    except BudgetError as error:
        yield _Refusal(DOWNSAMPLE, str(error))
    else:
        own = Chat.about(smaller, question, chat.model, chat.processor)
        yield outcome(DOWNSAMPLE, smaller, own, everything, dense.whole)


def _downsampled(subject: Subject, chat: Chat, share: float) -> Image.Image:
    if isinstance(subject, Clip):
        raise BudgetError("Down-sampling is for pictures; of a video, take fewer --frames.")
    return downsample(subject, chat.processor, share)[0]


def _table(rows: Sequence[_Outcome | _Refusal]) -> Table:
    """One row for each method; those without an answer say why."""
    caption = (
        "Average: visual tokens alive, over all decoder layers. Prefill and KV cache: of the prompt in the decoder. "
        "The vision encoder, which only down-sampling makes cheaper, and the selection are not in it: see vitcop plan."
    )
    table = Table(caption=caption, caption_justify="left")
    table.add_column("", no_wrap=True)
    for title in ("average", "prefill\nGFLOP", "KV cache\nMB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for row in rows:
        if row.name == DOWNSAMPLE:
            table.add_section()
        if isinstance(row, _Refusal):
            table.add_row(row.name, "-", "-", "-", Text(row.reason, style="italic"))
        else:
            (_, flops), (_, size) = row.report.prefill_flops, row.report.kv_cache_bytes
            figures = f"{row.average:.1%}", figure(flops / 1e9), figure(size / 1e6)
            table.add_row(row.name, *figures, Text(row.answer))
        if row.name == DENSE:
            table.add_section()
    return table
