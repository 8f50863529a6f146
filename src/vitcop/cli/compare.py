"""`vitcop compare`: one question, answered by the dense model, under every method, and from a smaller picture."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import builtin
from ..errors import BudgetError, VitcopError, reason
from ..figures import figure
from ..inputs.chat import MAX_NEW_TOKENS, Chat, Subject, modality_of, pictures_in
from ..inputs.downsample import downsample
from ..inputs.video import Clip
from ..methods import METHODS
from ..pictures.seen import pictures_of_grids
from ..pictures.sheet import Entry, contact_sheet
from ..tables import add_columns, add_prose, output, show
from .choice import METHOD_HELP, Amount, PositionsOption, import_methods, make_method, read_methods, read_positions
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
    from ..selection.pruner import Positions, Pruner

ALL, DENSE, DOWNSAMPLE = "all", "dense", "downsample"
LONGEST_ANSWER = 24  # characters, on the sheet


def compare(
    question: QuestionArgument = None,
    image: ImageOption = None,
    video: VideoOption = None,
    frames: FramesOption = None,
    model: ModelOption = str(builtin.MODEL_PATH),
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    retention: RetentionOption = None,
    tokens: TokensOption = None,
    methods: Annotated[
        str, typer.Option(help=f"Methods, with commas: {ALL} of vitcop's own, or each {METHOD_HELP}.")
    ] = ALL,
    positions: PositionsOption = "default",
    max_new_tokens: LengthOption = MAX_NEW_TOKENS,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a picture of what each method kept, of the first picture, to this file.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Answer a question under every method at the same average retention, and from fewer pixels."""
    if question is None:
        question = question_about(image, video)
    with one_line_errors():
        amount = Amount.read(retention, tokens)
        names = read_methods("--methods", methods, words={ALL: METHODS})
        numberings = read_positions(positions)
        subject = read_subject(image, video, frames)
        check_apart({"--sheet": sheet, "--json": json_file})
        check_picture("--sheet", sheet, sources_of(image, video))
        check_file("--json", json_file, sources_of(image, video))
        with progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            names = import_methods(names)
            loaded = load(model, modality_of(subject), device, dtype)
            chat = Chat.about(subject, question, *loaded, max_new_tokens)
            progress.remove_task(loading)
            rows = list(_rows(subject, question, chat, names, numberings, amount, progress))
    with one_line_errors():
        try:
            with printing():
                show(output(), _table(question, rows))
        finally:  # whatever has become of stdout, this work was done
            if sheet:
                with writing_errors("--sheet", sheet):
                    entries = [row.entry for row in rows if isinstance(row, _Outcome)]
                    contact_sheet(entries, [question]).save(sheet)
            if json_file:
                values = [row.to_dict() for row in rows]
                asked = {"model": model, "question": question, **amount.settings}
                write_json("--json", json_file, asked | {"rows": values})


@dataclass(frozen=True)
class _Outcome:
    """An answer, and what it took.

    Attributes:
        name: of the method.
        subject, chat: what the model was shown and asked.
        report: of the prompt.
        whole: visual tokens of each picture as it is.
    """

    name: str
    answer: str
    subject: Subject
    chat: Chat
    report: Report
    whole: tuple[int, ...]

    @property
    def average(self) -> float:
        """Share of the visual tokens alive, averaged over the decoder layers."""
        return self.report.overall_retention * sum(self.report.image_lengths) / sum(self.whole)

    @property
    def drops_at_entrance(self) -> bool:
        """Whether fewer visual tokens enter the decoder than there are."""
        return self.report.all_visual_tokens[0] < sum(self.report.image_lengths)

    @property
    def entry(self) -> Entry:
        """Of the first picture, on the sheet."""
        pictures = pictures_of_grids(
            pictures_in(self.subject), self.report, self.chat.processor, self.chat.pixel_values
        )
        answer = shorten(self.answer, LONGEST_ANSWER, placeholder="...")
        number = f"picture 1 of {len(pictures)}: " if len(pictures) > 1 else ""
        average = self.report.average_retention() * self.report.image_lengths[0] / self.whole[0]
        alive = f"{self.report.visual_tokens()[-1]} of {self.whole[0]} left, {average:.1%} on average"
        return Entry(f"{self.name}: {answer}", number + alive, pictures[0], self.report)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "name": self.name,
            "answer": self.answer,
            "average_retention": self.average,
            "prefill_flops": self.report.prefill_flops[1],
            "kv_cache_bytes": self.report.kv_cache_bytes[1],
        }


@dataclass(frozen=True)
class _Refusal:
    """A method that gives no answer, and why."""

    name: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return {"name": self.name, "refusal": self.reason}


def _rows(
    subject: Subject,
    question: str,
    chat: Chat,
    names: Sequence[str],
    numberings: Sequence[Positions | None],
    amount: Amount,
    progress: Progress,
) -> Iterator[_Outcome | _Refusal]:
    """The dense model, then each method, then down-sampling."""
    from .. import prune
    from ..methods.random import Random
    from ..models import known_family

    def outcome(
        name: str, subject: Subject, chat: Chat, pruner: Pruner, whole: tuple[int, ...] | None = None
    ) -> _Outcome:
        with prune(chat.model, pruner) as pruning:
            answer = ask(chat, progress, f"Answering: {name}")
        assert pruning.report is not None
        return _Outcome(name, answer, subject, chat, pruning.report, whole or pruning.report.image_lengths)

    # What drops nothing leaves the model as it is, bit by bit, and gives a report.
    everything = Random(retention=1.0)
    yield (dense := outcome(DENSE, subject, chat, everything))
    if known_family(chat.model.config.model_type).keeps_positions:
        numberings = (None,)
    for name in names:
        for positions in numberings:
            try:
                row = outcome(name, subject, chat, make_method(name, amount, positions))
            except VitcopError as error:  # of the method: the row before has shown that the model can be pruned
                yield _Refusal(name, str(error))
                break
            except Exception as error:  # of somebody's own method, which must not cost the others their rows
                if name in METHODS:
                    raise
                *_, where = traceback.extract_tb(error.__traceback__)
                yield _Refusal(name, f"{Path(where.filename).name}, line {where.lineno}: {reason(error)}")
                break
            if positions is None or not row.drops_at_entrance:  # where all enter, both numberings are one
                yield row
                break
            yield replace(row, name=f"{name}, {positions}")
    try:
        smaller = _downsampled(subject, chat, [make_method("random", amount).share_of(n) for n in dense.whole])
    except BudgetError as error:
        yield _Refusal(DOWNSAMPLE, str(error))
    else:
        own = Chat.about(smaller, question, chat.model, chat.processor, chat.max_new_tokens)
        yield outcome(DOWNSAMPLE, smaller, own, everything, dense.whole)


def _downsampled(subject: Subject, chat: Chat, shares: Sequence[float]) -> Subject:
    if isinstance(subject, Clip):
        raise BudgetError("Down-sampling is for pictures; of a video, take fewer --frames.")
    return tuple(downsample(picture, chat.processor, share)[0] for picture, share in zip(subject, shares, strict=True))


def _table(question: str, rows: Sequence[_Outcome | _Refusal]) -> Table:
    """One row for each method; those without an answer say why."""
    caption = (
        "Average: visual tokens alive, over all decoder layers. Prefill and KV cache: of the prompt in the decoder. "
        "The vision encoder, which only down-sampling makes cheaper, and the selection are not in it: see vitcop plan."
    )
    table = Table(title=Text(question), title_justify="left", caption=caption, caption_justify="left")
    add_columns(table, "")
    add_columns(table, "average", "prefill\nGFLOP", "KV cache\nMB", right=True)
    add_prose(table, "answer")
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
