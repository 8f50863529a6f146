"""A benchmark as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..tables import add_columns
from .results import DENSE, SPED_UP, Benchmark, Block, Row, Setting, Spread

_QUIET = 1.25  # the longest over the shortest time of the same work

TIMES = {
    "vision": "vision",
    "selection": "selection",
    "prefill": "prefill",
    "first_token": "first token",
    "decode": "decode,\na token",
}


def tables(benchmark: Benchmark) -> Iterator[RenderableType]:
    """Times, then what follows from them, for each batch size and retention; then what all have in common."""
    for block in benchmark.blocks:
        title = f"batch {block.batch}, retention {block.retention:.4g}"
        yield _times(block, title)
        yield _gains(block, title)
        for refusal in block.refusals:
            yield Text(f"{refusal.method}: {refusal.reason}", style="italic")
        share = block.encoder_share
        yield Text(
            f"The vision encoder takes {share:.0%} of the dense model's time until the first token, which comes at "
            f"most {_digits(1 / share)} times sooner, whatever is dropped behind it."
        )
        same = block.same_work
        if same.highest > _QUIET * same.lowest:
            times = f"{_digits(same.lowest * 1000)} to {_digits(same.highest * 1000)} ms"
            yield Text(
                f"The device was not quiet: the same encoder on the same picture took {times}. End what else runs on "
                "it, and measure again.",
                style="bold",
            )
    yield Text(_caption(benchmark.setting))


def _times(block: Block, title: str) -> Table:
    table = _empty(f"Milliseconds, {title}")
    add_columns(table, *TIMES.values(), right=True)
    for row in block.rows:
        _add(table, row, *(_cell(row.seconds(phase), 1000) for phase in TIMES))
    return table


def _gains(block: Block, title: str) -> Table:
    table = _empty(f"Speed-up and memory, {title}")
    headings = ("prefill", "first\ntoken", "decode", "predicted,\nprefill", "achieved /\npredicted")
    add_columns(table, *headings, "tokens/s", "peak\nMB", "KV cache\nMB", right=True)
    for row in block.rows:
        _add(
            table,
            row,
            *(_cell(block.speedup(row, phase)) for phase in SPED_UP),
            _digits(row.predicted),
            f"{block.achieved(row):.0%}",
            _digits(block.tokens_per_second(row)),
            *(_digits(value / 1e6) for value in (row.peak_bytes, row.kv_bytes)),
        )
    return table


def _empty(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    add_columns(table, "")
    add_columns(table, "average", right=True)
    return table


def _add(table: Table, row: Row, *cells: str) -> None:
    table.add_row(row.method, f"{row.average_retention:.1%}", *cells)
    if row.method == DENSE:
        table.add_section()


def _cell(spread: Spread, unit: int = 1) -> str:
    lowest, highest = _digits(spread.lowest * unit), _digits(spread.highest * unit)
    return f"{_digits(spread.median * unit)}\n{lowest}-{highest}"


def _digits(value: float) -> str:
    """Three, or all of a whole number that has more."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def _caption(setting: Setting) -> str:
    rounds = "1 round" if setting.repeats == 1 else f"{setting.repeats} rounds"
    threads = "" if setting.gpu else ", 1 thread" if setting.threads == 1 else f", {setting.threads} threads"
    return (
        f"{setting.model}, {setting.weights}, {setting.dtype}, {setting.attention} attention, on {setting.device}"
        f"{threads}. {setting.picture[0]} x {setting.picture[1]} pixels became {setting.placeholders} of "
        f"{setting.prompt_tokens} tokens of each prompt. Median of {rounds}, below it the "
        "lowest and the highest; a speed-up is against the dense model in the same round. Predicted: of the decoder "
        f"layers by the ceilings {setting.flops_per_second / 1e12:,.3g} TFLOP/s and "
        f"{setting.bytes_per_second / 1e9:,.3g} GB/s, measured in this run. See docs/benchmarks.md."
    )
