"""A benchmark as a plot: the prefill speed-up that was achieved, beside the predicted one."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from .results import DENSE, Benchmark, Block, Setting

_MARKERS = "osD^vPX<>*hp"
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


def plot(benchmark: Benchmark) -> Figure:
    """One panel for each batch size: speed-up of the prefill against average retention.

    Points with bars are median, lowest and highest of what was measured; the line is the prediction for a method that
    drops all it drops at the entrance of the decoder.
    """
    batches = list(dict.fromkeys(block.batch for block in benchmark.blocks))
    figure = Figure(figsize=(2 + 4.5 * len(batches), 4.8), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    lowest = min(row.average_retention for block in benchmark.blocks for row in block.rows)
    for panel, batch in zip(panels, batches, strict=True):
        _draw(panel, [block for block in benchmark.blocks if block.batch == batch], lowest / 1.5)
        panel.set_title(f"batch {batch}", fontsize="medium")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("prefill speed-up over dense")
    figure.suptitle(_title(benchmark.setting), fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _draw(panel: Axes, blocks: list[Block], least: float) -> None:
    curve = [(share, predicted) for share, predicted in blocks[0].roofline if share >= least]
    panel.plot(*zip(*curve, strict=True), color="grey", linewidth=1.2, label="predicted")
    methods = dict.fromkeys(row.method for block in blocks for row in block.rows if row.method != DENSE)
    for number, method in enumerate(methods):
        found = [(block, row) for block in blocks for row in block.rows if row.method == method]
        achieved = [block.speedup(row, "prefill") for block, row in found]
        panel.errorbar(
            [row.average_retention for _, row in found],
            [spread.median for spread in achieved],
            [
                [spread.median - spread.lowest for spread in achieved],
                [spread.highest - spread.median for spread in achieved],
            ],
            fmt=_MARKERS[number % len(_MARKERS)],
            color=f"C{number}",
            alpha=0.8,
            capsize=3,
            label=method,
        )
    panel.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.set_xlim(least, 1.1)
    panel.set_xticks([tick for tick in _TICKS if tick >= least])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.set_xlabel("visual tokens alive, average over decoder layers")


def _title(setting: Setting) -> str:
    random = ", random weights" if setting.weights == "random weights" else ""
    return f"{setting.model}{random}, {setting.dtype}\n{setting.device}"
