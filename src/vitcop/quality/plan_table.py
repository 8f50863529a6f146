"""What was chosen for a quality target, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..figures import figure, percent
from ..tables import add_columns
from .agreement import CONFIDENCE
from .results import Refusal, Row
from .target import Half, QualityPlan


def tables(plan: QualityPlan) -> Iterator[RenderableType]:
    """Each candidate at the lowest retention that was taken; then what is promised, and what was seen of it."""
    table = Table(caption=_caption(plan), caption_justify="left")
    add_columns(table, "")
    add_columns(table, "retention", "average", "GFLOP", "of dense", "kept", "at least", "asked", right=True)
    for name in plan.candidates:
        taken, looks = plan.taken(name), str(len(plan.of(name)))
        table.add_row(name, *(_cells(plan, taken) if taken else ["-"] * 6), looks)
    yield table
    for name in plan.candidates:
        refusals = [look for look in plan.of(name) if isinstance(look, Refusal)]
        if refusals and plan.taken(name) is None:
            yield Text(f"{name}: {refusals[-1].reason}", style="italic")
    yield Text("\n".join(_sentences(plan)))


def _cells(plan: QualityPlan, row: Row) -> list[str]:
    kept = plan.choosing.agreement(row)
    return [
        f"{row.retention:.4g}",
        f"{row.average:.1%}",
        figure(row.flops / 1e9),
        f"{row.flops / plan.dense_flops:.1%}",
        f"{kept.share:.1%}",
        f"{kept.at_least:.1%}",
    ]


def _sentences(plan: QualityPlan) -> Iterator[str]:
    target, winner = percent(plan.target), plan.winner
    if winner is None:
        yield (
            f"No promise: at no retention that was tried did a method show that it keeps {target} of the dense "
            "answers. Ask for less, name other methods, or give more questions."
        )
        return
    kept, cost = plan.choosing.agreement(winner), percent(winner.flops / plan.dense_flops)
    yield (
        f"Promised: {winner.name} at retention {winner.retention:.4g} keeps {target} of the dense answers or more, for "
        f"{cost} of the operations. It kept {kept.same} of {kept.asked} by which it was chosen."
        f"{_right(plan.choosing, winner)}"
    )
    if plan.held_out and plan.check and plan.seen:
        lowest, highest = plan.seen.interval
        yield (
            f"Seen: it kept {plan.seen.same} of {plan.seen.asked} that took no part: {percent(plan.seen.share)}, with "
            f"an interval of {percent(CONFIDENCE)} from {percent(lowest)} to {percent(highest)}."
            f"{_right(plan.held_out, plan.check)}"
        )
        yield (
            f"That is {target} or more: the promise holds."
            if plan.holds
            else f"That is less than {target}: the promise does not hold. Give more questions, or ask for more."
        )


def _right(half: Half, row: Row) -> str:
    """What becomes of right answers, where they are known."""
    if not half.known:
        return ""
    return f" Right are {half.right(*row.answers)} of the {half.known} known ones, dense {half.right(half.dense)}."


def _caption(plan: QualityPlan) -> str:
    setting, choosing = plan.setting, plan.choosing
    return (
        f"{setting.model}, {setting.dtype}, {setting.visual_tokens} visual tokens in a picture of middling size, "
        f"{setting.layers} decoder layers, on {setting.device}. Chosen by {len(choosing.questions)} questions about "
        f"{choosing.pictures} pictures, drawn by seed {setting.seed}, {setting.batch} prompts at a time: of each "
        f"method the lowest retention, of those asked, that shows with {percent(CONFIDENCE)} confidence that it keeps "
        f"{percent(plan.target)}. Kept: answers that are the dense model's, right or wrong. At least: with that "
        "confidence, of one look by itself. Average: visual tokens alive, over all decoder layers. GFLOP: until the "
        "first token, encoder and selection included. Asked: at how many retentions."
    )
