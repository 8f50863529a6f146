"""Writes what the runs in benchmarks/runs say about speed into the README, and draws a plot of each.

A run is made by `vitcop bench --json benchmarks/runs/NAME.json`; see docs/benchmarks.md. Needs matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from docs.readme import rewrite
from vitcop.bench import Benchmark, Block, Row, Spread
from vitcop.bench.plot import plot
from vitcop.bench.results import DENSE

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
COLUMNS = (
    "method",
    "average",
    "selection",
    "prefill",
    "speed-up",
    "predicted",
    "achieved",
    "first token",
    "decode",
    "peak memory",
)


def main() -> None:
    """Rewrite a part of the README, and the plots."""
    rewrite("speed", section())
    for name, benchmark in runs().items():
        plot(benchmark).savefig(IMAGES / f"speed-{name}.png", dpi=120)


def runs() -> dict[str, Benchmark]:
    """All runs, by the names of their files."""
    files = sorted((HERE / "runs").glob("*.json"))
    return {file.stem: Benchmark.from_dict(json.loads(file.read_text(encoding="utf-8"))) for file in files}


def section() -> str:
    """The part of the README."""
    parts = list(_parts())
    if not any(benchmark.setting.gpu for benchmark in runs().values()):
        parts.append(
            "On a GPU: **not measured**; none was at hand. [`make gpu`](docs/benchmarks.md#on-a-gpu) measures it."
        )
    return "\n".join(f"{part}\n" for part in parts)


def _parts() -> Iterator[str]:
    for name, benchmark in runs().items():
        setting = benchmark.setting
        threads = "" if setting.gpu else f", {setting.threads} threads"
        yield (
            f"{setting.model}, {setting.weights}, {setting.dtype}, {setting.device}{threads}; {setting.placeholders} "
            f"of {setting.prompt_tokens} tokens stand for the picture. Median (lowest to highest) of {setting.repeats} "
            "rounds:"
        )
        rows = [_line(block, row) for block in benchmark.blocks for row in block.rows if row.method != DENSE]
        yield "\n".join([_joined(COLUMNS), _joined(["---"] * len(COLUMNS)), *rows])
        yield f"![Prefill speed-up against average retention](docs/images/speed-{name}.png)"


def _line(block: Block, row: Row) -> str:
    dense, prefill = block.rows[0], row.seconds("prefill")
    selection = Spread.of([a / b for a, b in zip(row.samples["selection"], row.samples["prefill"], strict=True)])
    cells = (
        f"{row.method}" + (f", batch {block.batch}" if block.batch > 1 else ""),
        f"{row.average_retention:.1%}",
        f"{selection.median:.1%}",
        f"{_time(dense.seconds('prefill').median)} to {_time(prefill.median)}",
        _times(block.speedup(row, "prefill")),
        f"{row.predicted:.1f}x",
        f"{block.achieved(row):.0%}",
        f"{block.speedup(row, 'first_token').median:.2f}x",
        f"{block.speedup(row, 'decode').median:.2f}x",
        f"{row.peak_bytes / dense.peak_bytes:.0%}",
    )
    return _joined(cells)


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _times(spread: Spread) -> str:
    return f"{spread.median:.1f}x ({spread.lowest:.1f} to {spread.highest:.1f})"


if __name__ == "__main__":
    main()
