"""An evaluation as a plot: accuracy against operations."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from .results import BLIND, DENSE, MAJORITY, ONCE, ORACLE, RANDOM, Evaluation, Interval

_MARKERS = "osD^vPX<>*hp"
_COLORS = matplotlib.color_sequences["tab20"][::2] + matplotlib.color_sequences["tab20"][1::2]
LEAST_SPAN = 0.2  # of the axis of operations
_REFERENCES = {ORACLE: "black", RANDOM: "grey", "paper": _COLORS[0]}  # the paper's ViTCoP is as ViTCoP, dashed


def plot(evaluation: Evaluation) -> Figure:
    """Accuracy of each contender against the operations until the first token, as a share of the dense model's.

    Bars are the interval of 95 % of the share of the dense accuracy. Lines across are the dense model and those that
    see no picture.
    """
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    panel = figure.subplots()
    dense = evaluation.dense
    rows = [row for row in evaluation.rows if row.name not in ONCE and row.retention < 1]
    for number, name in enumerate(dict.fromkeys(row.name for row in rows)):
        own = sorted((row for row in rows if row.name == name), key=lambda row: row.flops)
        contender, _, _ = name.partition(",")  # of what may be asked under two numberings
        shares = [evaluation.share_of_dense(row) for row in own]
        base = evaluation.accuracy(dense)
        panel.errorbar(
            [row.flops / dense.flops for row in own],
            [100 * base * share.value for share in shares],
            None if evaluation.scenes == 1 else [[100 * base * bar for bar in bars] for bars in _bars(shares)],
            fmt=_MARKERS[number % len(_MARKERS)] + ("--" if contender in _REFERENCES else "-"),
            color=_REFERENCES.get(contender, _COLORS[number % len(_COLORS)]),
            linewidth=2.4 if contender == "vitcop" else 1.0,
            markersize=5,
            elinewidth=0.6,
            alpha=0.85,
            label=name,
        )
    for name, style in ((DENSE, "-"), (BLIND, ":"), (MAJORITY, "-.")):
        (row,) = (row for row in evaluation.rows if row.name == name)
        panel.axhline(100 * evaluation.accuracy(row), color="grey", linestyle=style, linewidth=1, label=name)
    places = [row.flops / dense.flops for row in rows]
    if places and max(places) - min(places) < LEAST_SPAN:  # at one retention, all methods need nearly the same
        middle = (min(places) + max(places)) / 2
        panel.set_xlim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    panel.set_xlabel("operations until the first token, as a share of dense")
    panel.set_ylabel("accuracy, %")
    panel.grid(alpha=0.25)
    setting = evaluation.setting
    panel.set_title(
        f"{setting.model}: {len(evaluation.cases)} questions, suite {setting.suite!r}, seed {setting.seed}",
        fontsize="medium",
    )
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def _bars(shares: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above their figures."""
    reach = [
        (share.value - share.lowest, share.highest - share.value)
        for share in shares
        if share.lowest is not None and share.highest is not None
    ]
    return [below for below, _ in reach], [above for _, above in reach]
