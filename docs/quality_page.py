"""Writes docs/results/quality.md and the ablations from the answers that `make quality` has stored beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from docs.readme import rewrite
from vitcop.methods import METHODS, ViTCoP
from vitcop.quality import Evaluation
from vitcop.quality.plot import plot
from vitcop.quality.results import MAJORITY, ONCE, ORACLE, RANDOM, Row
from vitcop.quality.table import caption, cells, headings, rows_at, share_cell
from vitcop.quality.variants import VARIANTS

PAPER = "paper"
RESULTS = Path(__file__).parent / "results"
_TEXT = """\
# What the model in the box still sees

Made by `make quality`, which asks all questions anew, from the answers in [quality.json](quality.json); a test checks
that this page says what they say. **The model in the box is small, was trained on drawn scenes and is no evidence
about large models**; its [card](../../src/vitcop/builtin/model/README.md) says what its scores can and cannot show.
[evaluation.md](../evaluation.md) says how to measure large ones.

{caption}

## Accuracy, in percent of the dense model's

{shares}

![Accuracy against operations](../images/quality.png)

{details}
"""
_ABLATIONS = """\
# What each part of ViTCoP is worth

Made by `make quality` from the answers in [{file}]({file}), on a {kind} seed, on the model in the box: **no evidence
about large models**. All variants spend the same average retention. `vitcop eval --methods ablations` measures them
on any model; `src/vitcop/quality/variants.py` says what each is.

{caption}

## Against the paper's

Points of accuracy won or lost, the mean over the retentions that the variant reaches, with an interval of 95 % (paired
bootstrap over scenes). Where nothing differs, one interval in twenty misses 0 by chance.

{gains}

## Accuracy, in percent of the dense model's

{shares}

{details}
"""


def evaluation(name: str) -> Evaluation:
    """A stored run."""
    return Evaluation.from_dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def page(text: str, found: Evaluation, **words: str) -> str:
    """A page about a run."""
    details = "\n\n".join(_details(found))
    return text.format(caption=caption(found), shares=_shares(found), details=details, **words)


def ablations(kind: str) -> str:
    """The page about variants of ViTCoP, on the "validation" or the "test" seed."""
    found = evaluation(f"ablations-{kind}")
    return page(_ABLATIONS, found, file=f"ablations-{kind}.json", kind=kind, gains=gains(found))


def quality() -> str:
    """The page about all methods."""
    return page(_TEXT, evaluation("quality"))


def section(found: Evaluation) -> str:
    """The part of the README."""
    guess = next(row for row in found.rows if row.name == MAJORITY)
    lines = [
        f"Of {len(found.cases)} held-out questions about drawn scenes the model in the box answers "
        f"{100 * found.accuracy(found.dense):.0f} % right (guessing: {100 * found.accuracy(guess):.0f} %). What is "
        "left of that, in percent (interval of 95 %):",
        "",
    ]
    table = []
    for retention in found.retentions:
        rows = {row.name: row for row in found.rows if row.retention == retention < 1}
        if rows:
            best = max((row for name, row in rows.items() if name in METHODS), key=found.accuracy)
            own = [share_cell(found, rows[name]) for name in (ViTCoP.name, RANDOM, ORACLE)]
            table.append([_fraction(retention), *own, f"{best.name}: {share_cell(found, best)}"])
    lines.append(_table(["retention", "ViTCoP", "random", "oracle", "best method here"], table))
    return "\n".join(lines) + "\n"


def _shares(found: Evaluation) -> str:
    names = dict.fromkeys(each.name for each in (*found.rows, *found.refusals) if each.name not in ONCE)
    rows = [[name, *(_share(found, name, retention) for retention in found.retentions)] for name in names]
    once = [[row.name, *[share_cell(found, row)] * len(found.retentions)] for row in found.rows if row.name in ONCE]
    return _table(["", *map(_fraction, found.retentions)], once + rows)


def gains(found: Evaluation) -> str:
    """What each variant wins over the paper's setting."""
    rows = []
    for name in VARIANTS:
        if name != PAPER:
            gain = found.gain(name, PAPER)
            rows.append([name, f"{100 * gain.value:+.1f} ({100 * gain.lowest:+.1f} to {100 * gain.highest:+.1f})"])
    return _table(["variant", "points"], rows)


def _share(found: Evaluation, name: str, retention: float) -> str:
    for row in found.rows:
        if (row.name, row.retention) == (name, retention):
            return share_cell(found, row)
    (refusal,) = (each for each in found.refusals if (each.name, each.retention) == (name, retention))
    return "-" if refusal.floor is None else f"from {refusal.floor:.3f} on"


def _details(found: Evaluation) -> Iterator[str]:
    for retention in found.retentions:
        yield f"## Retention {_fraction(retention)}"
        rows = rows_at(found, retention)
        yield _table(headings(found), [cells(found, row) for row in rows])
        lines = [_seeds(found, row) for row in rows if row.name == RANDOM and len(row.answers) > 1]
        refusals = [refusal for refusal in found.refusals if refusal.retention == retention]
        lines += [f"{refusal.name}: {refusal.reason}" for refusal in refusals]
        if lines:
            yield "\n".join(f"* {line}" for line in lines)


def _seeds(found: Evaluation, row: Row) -> str:
    lowest, highest = found.spread(row)
    return f"random: {100 * lowest:.1f} to {100 * highest:.1f} over its {len(row.answers)} seeds."


def _fraction(retention: float) -> str:
    return str(Fraction(retention).limit_denominator(100))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the pages, and a part of the README."""
    plot(evaluation("quality")).savefig(RESULTS.parent / "images" / "quality.png", dpi=120)
    (RESULTS / "quality.md").write_text(quality(), encoding="utf-8")
    rewrite("quality", section(evaluation("quality")))
    for kind in ("validation", "test"):
        name = f"ablations-{kind}"
        (RESULTS / f"{name}.md").write_text(ablations(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
