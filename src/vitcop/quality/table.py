"""An evaluation as tables, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..figures import figure
from ..tables import add_columns
from .results import ONCE, Evaluation, Row


def tables(evaluation: Evaluation) -> Iterator[RenderableType]:
    """A table for each retention; then what all have in common."""
    for retention in evaluation.retentions:
        table = Table(title=f"retention {retention:.4g}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        name, *figures = headings(evaluation)
        add_columns(table, name)
        add_columns(table, *figures, right=True)
        rows = rows_at(evaluation, retention)
        for row in rows:
            table.add_row(*cells(evaluation, row), end_section=row.name == ONCE[-1])
        yield table
        for refusal in evaluation.refusals:
            if refusal.retention == retention:
                yield Text(f"{refusal.name}{floor_of(refusal.floor)}: {refusal.reason}", style="italic")
    yield Text(caption(evaluation))


def rows_at(evaluation: Evaluation, retention: float) -> list[Row]:
    """What is compared at one retention: those that have none, then the others."""
    once = [row for row in evaluation.rows if row.name in ONCE]
    return once + [row for row in evaluation.rows if row.name not in ONCE and row.retention == retention]


def headings(evaluation: Evaluation) -> list[str]:
    """Of the columns."""
    return ["", "average", "GFLOP", "accuracy", "of dense", "agreement", *evaluation.groups, *evaluation.types]


def cells(evaluation: Evaluation, row: Row) -> list[str]:
    """What stands under the `headings`."""
    return [
        row.name,
        f"{row.average:.1%}",
        figure(row.flops / 1e9) if row.flops else "-",
        f"{100 * evaluation.accuracy(row):.1f}",
        share_cell(evaluation, row),
        f"{evaluation.agreement(row):.0%}",
        *(f"{100 * evaluation.accuracy(row, *kinds):.0f}" for kinds in evaluation.groups.values()),
        *(f"{100 * evaluation.accuracy(row, kind):.0f}" for kind in evaluation.types),
    ]


def share_cell(evaluation: Evaluation, row: Row) -> str:
    """Share of the dense accuracy, in percent, and its interval."""
    share = evaluation.share_of_dense(row)
    value = f"{100 * share.value:.1f}"
    if share.lowest is None or share.highest is None:
        return value
    return f"{value} ({100 * share.lowest:.0f}-{100 * share.highest:.0f})"


def floor_of(floor: float | None) -> str:
    """Where a contender's retentions begin, in brackets, if it has any."""
    return "" if floor is None else f" (from {floor:.3f} on)"


def caption(evaluation: Evaluation) -> str:
    """What was asked, of which model, and how to read the figures."""
    setting, cases = evaluation.setting, evaluation.cases
    interval = "with an interval of 95 % (bootstrap over scenes)"
    if evaluation.scenes == 1:
        interval = "without an interval, which needs questions about several scenes"
    groups = "".join(f", {name} ({', '.join(kinds)})" for name, kinds in evaluation.groups.items())
    return (
        f"{setting.model}, {setting.dtype}, {setting.visual_tokens} visual tokens, {setting.layers} decoder layers, on "
        f"{setting.device}. {len(cases)} questions of the suite {setting.suite!r}, seed {setting.seed}, one per "
        f"prompt, {setting.batch} prompts at a time. Average: visual tokens alive, over all decoder layers. GFLOP: "
        "until the first token, encoder and selection included. Accuracy in percent, of all questions"
        f"{groups} and of each type. Of dense: accuracy in percent of the dense model's, {interval}. "
        "Agreement: answers, right or wrong, that are the dense model's. Random: the mean over its seeds. Majority: "
        "the answer that is most often right among those that fit the wording. Blind: no picture. Oracle: the "
        "objects' masks known, the question not."
    )
