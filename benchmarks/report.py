"""Writes what the runs in benchmarks/runs say about speed into README and docs/benchmarks.md, and plots each.

A run is made by `vitcop bench --json benchmarks/runs/NAME.json`; see docs/benchmarks.md. Needs matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from docs.pages import DOCS, README, rewrite
from vitcop.bench import Benchmark, Block, Row, Spread
from vitcop.bench.plot import plot
from vitcop.bench.results import DENSE
from vitcop.methods import ViTCoP

HERE = Path(__file__).parent
PAGE = DOCS / "benchmarks.md"
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
    """Rewrite both parts, and the plots."""
    rewrite(README, "speed", short())
    rewrite(PAGE, "speed", section())
    for name, benchmark in runs().items():
        plot(benchmark).savefig(DOCS / "images" / f"speed-{name}.png", dpi=120)


def runs() -> dict[str, Benchmark]:
    """All runs, by the names of their files."""
    files = sorted((HERE / "runs").glob("*.json"))
    return {file.stem: Benchmark.from_dict(json.loads(file.read_text(encoding="utf-8"))) for file in files}


def section() -> str:
    """The part of the page: every method."""
    parts = list(_parts())
    if not _on_a_gpu():
        parts.append("On a GPU: **not measured**; none was at hand. [`make gpu`](#on-a-gpu) measures it.")
    return "\n".join(f"{part}\n" for part in parts)


def short() -> str:
    """The part of the README: the prefill by ViTCoP, and all until the first token."""
    speedups = {}
    for benchmark in runs().values():
        setting = benchmark.setting
        for block in benchmark.blocks:
            batch = f", batch {block.batch}" if block.batch > 1 else ""
            run = f"{setting.model}, {setting.weights}, {setting.prompt_tokens} tokens{batch}, {setting.device}"
            for row in block.rows:
                if row.method == ViTCoP.name:
                    for phase, name in (("prefill", "prefill"), ("first_token", "first token, encoder included")):
                        speedup = f"{block.speedup(row, phase).median:.1f}x"
                        predicted = f" ({row.predicted:.1f}x)" if phase == "prefill" else ""
                        speedups.setdefault(f"{name}: {run}", {})[block.retention] = speedup + predicted
    retentions = sorted({each for run in speedups.values() for each in run}, reverse=True)
    head = [
        "speed-up by ViTCoP (predicted)",
        *(str(Fraction(each).limit_denominator(100)) for each in retentions),
    ]
    rows = [_joined([run, *(of_run.get(each, "") for each in retentions)]) for run, of_run in speedups.items()]
    table = "\n".join([_joined(head), _joined(["---", *["---:"] * len(retentions)]), *rows])
    return f"{table}\n" + ("" if _on_a_gpu() else "\nOn a GPU: **not measured**; none was at hand.\n")


def _on_a_gpu() -> bool:
    return any(benchmark.setting.gpu for benchmark in runs().values())


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
        yield f"![Prefill speed-up against average retention](images/speed-{name}.png)"


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
