"""Writes pages of docs/results from the answers that `make quality` and `make testbed-quality` have stored there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

from docs.pages import DOCS, README, rewrite
from vitcop.methods import METHODS, Census, ViTCoP
from vitcop.quality import Evaluation
from vitcop.quality.plot import plot
from vitcop.quality.results import MAJORITY, ONCE, ORACLE, RANDOM, Row
from vitcop.quality.table import caption, cells, headings, rows_at, share_cell
from vitcop.quality.variants import CENSUS, VITCOP

_SUMMARISED = {
    ViTCoP.name: "ViTCoP",
    "paper": "ViTCoP, compact",
    f"{ViTCoP.name}, keep": "ViTCoP, keep",
    Census.name: "Census",
    f"{Census.name}, keep": "Census",
    RANDOM: "random",
    f"{RANDOM}, keep": "random, keep",
    ORACLE: "oracle",
    f"{ORACLE}, keep": "oracle, keep",
}
"""Of the rows of a run, as far as it has them, those that summaries show, and what these call them."""
_SHORT = "ViTCoP, compact", "Census", "random, keep"
"""Of these, those of the README."""
ABLATED = {
    "validation": "on a validation seed, on the model in the box",
    "test": "on a test seed, on the model in the box",
    "testbed": "on a test seed, on the testbed",
}
RESULTS = DOCS / "results"
_TEXT = """\
# What the model in the box still sees

Made by `make quality`, which asks all questions anew, from the answers in [quality.json](quality.json); a test checks
that this page says what they say. **The model in the box is small, was trained on drawn scenes and is no evidence
about large models**; its [card](../../src/vitcop/builtin/model/README.md) says what its scores can and cannot show.
[evaluation.md](../evaluation.md) says how to measure large ones. All methods keep positions
([methods.md](../methods.md)), but for "paper", which is ViTCoP as in its paper, where they are compact.

{caption}

## Accuracy, in percent of the dense model's

{shares}

![Accuracy against operations](../images/quality.png)

{positions}

{details}
"""
_TESTBED = """\
# What the testbed still sees

Made by `make testbed-quality`, which asks all questions anew, from the answers in [testbed.json](testbed.json); a test
checks that this page says what they say. [The testbed](../testbed.md) is a LLaVA of networks that were pretrained at
scale: what methods go by was found in them, not made. It is small all the same; its
[card](../../src/vitcop/testbed/card.md) says what it was trained on and what it can do. Questions of place ask where
something is, or what is somewhere; the others are questions of content. All methods
keep positions ([methods.md](../methods.md)), but for "paper", which is ViTCoP as in its paper, where they are compact.

{caption}

## Accuracy, in percent of the dense model's

{shares}

## Questions of place, and of content

Percent of right answers, of place / of content.

{groups}

![Accuracy against operations](../images/quality-testbed.png)

{positions}

{details}
"""
_POSITIONS = """\
## Positions kept, and numbered anew

In percent of the dense model's accuracy{groups}, from [{file}]({file}): the same questions, at one retention.

{table}
"""
_ABLATIONS = """\
# What each part of ViTCoP is worth

Made by `{target}` from the answers in [{file}]({file}), {where}: **no evidence
about large models**. All variants spend the same average retention. `vitcop eval --methods vitcop-ablations` measures
them on any model; `src/vitcop/quality/variants.py` says what each is.

{caption}

## Against the paper's

Points of accuracy won or lost, the mean over the retentions that the variant reaches, with an interval of 95 % (paired
bootstrap over scenes). Where nothing differs, one interval in twenty misses 0 by chance.

{gains}

## Accuracy, in percent of the dense model's

{shares}

{details}
"""

_CENSUS = """\
# What each part of Census is worth

Made by `make quality` and `make testbed-quality` from the answers in [census-builtin.json](census-builtin.json) and
[census-testbed.json](census-testbed.json), on test seeds; its parts were chosen on others. All variants spend the same
average retention. `vitcop eval --methods census-ablations` measures them on any model;
`src/vitcop/quality/variants.py` says what each is.

{parts}
"""
_CENSUS_PART = """\
## {model}

{caption}

Points of accuracy won or lost against Census as it is by default ("counted"), the mean over the retentions, with an
interval of 95 % (paired bootstrap over scenes). Where nothing differs, one interval in twenty misses 0 by chance.

{gains}

Accuracy, in percent of the dense model's:

{shares}

Answers, right or wrong, that are the dense model's, in percent:

{agreement}
"""


def evaluation(name: str) -> Evaluation:
    """A stored run."""
    return Evaluation.from_dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def page(text: str, found: Evaluation, **words: str) -> str:
    """A page about a run."""
    details = "\n\n".join(_details(found))
    return text.format(caption=caption(found), shares=_shares(found), details=details, **words)


def ablations(kind: str) -> str:
    """The page about variants of ViTCoP, one of `ABLATED`."""
    found, target = evaluation(f"ablations-{kind}"), "make testbed-quality" if kind == "testbed" else "make quality"
    words = {"file": f"ablations-{kind}.json", "where": ABLATED[kind], "target": target}
    return page(_ABLATIONS, found, gains=gains(found, VITCOP), **words)


def census() -> str:
    """The page about variants of Census, on both models."""
    parts = []
    for name, model in (("census-builtin", "The model in the box"), ("census-testbed", "The testbed")):
        found = evaluation(name)
        parts.append(
            _CENSUS_PART.format(
                model=model,
                caption=caption(found),
                gains=gains(found, CENSUS),
                shares=_shares(found),
                agreement=_agreement(found),
            )
        )
    return _CENSUS.format(parts="\n".join(parts))


def quality() -> str:
    """The page about all methods on the model in the box."""
    return page(_TEXT, evaluation("quality"), positions=positions("quality-positions"))


def testbed() -> str:
    """The page about all methods on the testbed."""
    found = evaluation("testbed")
    return page(_TESTBED, found, groups=_groups(found), positions=positions("testbed-positions"))


def positions(name: str) -> str:
    """The section about a run of every method both ways at one retention."""
    both = evaluation(name)
    (retention,) = both.retentions
    rows = [row for row in both.rows if row.name.endswith((", keep", ", compact")) and row.retention == retention]
    head, groups = [_fraction(retention), "of dense"], ""
    if both.groups:
        head, groups = [*head, " / ".join(both.groups)], ", and right answers by group"
    table = _table(
        head, [[row.name, share_cell(both, row), *[_of_groups(both, row)] * bool(both.groups)] for row in rows]
    )
    return _POSITIONS.format(file=f"{name}.json", groups=groups, table=table).rstrip()


def section() -> str:
    """The part of docs/results/README.md: both models, the testbed first."""
    return (
        _summary(evaluation("testbed"), "new scenes of things that it knows, on new photographs,", "the testbed")
        + "\n"
        + _summary(evaluation("quality"), "held-out drawn scenes", "the model in the box")
    )


def short() -> str:
    """The part of the README: both models, and no interval."""
    models = {"the testbed": evaluation("testbed"), "the model in the box": evaluation("quality")}
    retentions = [each for each in evaluation("testbed").retentions if each < 1]
    table = [
        [f"{model}: {_SUMMARISED[name].partition(',')[0]}", *(f"{100 * left[name]:.0f}" for left in lefts)]
        for model, found in models.items()
        for lefts in [[_left(found, retention) for retention in retentions]]
        for name in _asked(found)
        if _SUMMARISED[name] in _SHORT
    ]
    asked = " and ".join(f"{len(found.cases)} questions to {model}" for model, found in models.items())
    shares = _table(["percent of the dense (unpruned) model's right answers", *map(_fraction, retentions)], table)
    return f"{shares}\n\nOf {asked}: [all methods, with intervals](docs/results/README.md).\n"


def _asked(found: Evaluation) -> list[str]:
    """The rows of a run that summaries show."""
    asked = {row.name for row in found.rows}
    return [name for name in _SUMMARISED if name in asked]


def _left(found: Evaluation, retention: float) -> dict[str, float]:
    """Accuracy as a share of the dense model's, by row."""
    dense = found.accuracy(found.dense)
    return {row.name: found.accuracy(row) / dense for row in found.rows if row.retention == retention}


def _summary(found: Evaluation, about: str, model: str) -> str:
    guess = next(row for row in found.rows if row.name == MAJORITY)
    lines = [
        f"Of {len(found.cases)} questions about {about} {model} answers "
        f"{100 * found.accuracy(found.dense):.0f} % right (guessing: {100 * found.accuracy(guess):.0f} %). What is "
        "left of that, in percent (interval of 95 %):",
        "",
    ]
    columns = _asked(found)
    table = []
    for retention in found.retentions:
        rows = {row.name: row for row in found.rows if row.retention == retention < 1}
        if rows:
            methods = [row for name, row in rows.items() if name.partition(",")[0] in METHODS]
            most = max(map(found.accuracy, methods))
            best = [row for row in methods if found.accuracy(row) == most]
            own = [share_cell(found, rows[name]) for name in columns]
            table.append(
                [_fraction(retention), *own, f"{' and '.join(row.name for row in best)}: {share_cell(found, best[0])}"]
            )
    lines.append(_table(["retention", *(_SUMMARISED[name] for name in columns), "best method here"], table))
    return "\n".join(lines) + "\n"


def _groups(found: Evaluation) -> str:
    """Accuracy by group of types, of those at each retention."""
    once = [[row.name, *[_of_groups(found, row)] * len(found.retentions)] for row in found.rows if row.name in ONCE]
    return _by_retention(found, lambda row: _of_groups(found, row), once)


def _agreement(found: Evaluation) -> str:
    return _by_retention(found, lambda row: f"{100 * found.agreement(row):.0f}", [])


def _by_retention(found: Evaluation, cell: Callable[[Row], str], once: list[list[str]]) -> str:
    """A line for each contender, behind those of what has no retention."""
    rows = []
    for name in dict.fromkeys(row.name for row in found.rows if row.name not in ONCE):
        at = {row.retention: cell(row) for row in found.rows if row.name == name}
        rows.append([name, *(at.get(retention, "-") for retention in found.retentions)])
    return _table(["", *map(_fraction, found.retentions)], once + rows)


def _of_groups(found: Evaluation, row: Row) -> str:
    return " / ".join(f"{100 * found.accuracy(row, *kinds):.0f}" for kinds in found.groups.values())


def _shares(found: Evaluation) -> str:
    names = dict.fromkeys(each.name for each in (*found.rows, *found.refusals) if each.name not in ONCE)
    rows = [[name, *(_share(found, name, retention) for retention in found.retentions)] for name in names]
    once = [[row.name, *[share_cell(found, row)] * len(found.retentions)] for row in found.rows if row.name in ONCE]
    return _table(["", *map(_fraction, found.retentions)], once + rows)


def gains(found: Evaluation, variants: Iterable[str]) -> str:
    """What each variant wins over the first, which is the method itself."""
    whole, *others = variants
    rows = []
    for name in others:
        gain = found.gain(name, whole)
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
        lines = [_seeds(found, row) for row in rows if len(row.answers) > 1]
        refusals = [refusal for refusal in found.refusals if refusal.retention == retention]
        lines += [f"{refusal.name}: {refusal.reason}" for refusal in refusals]
        if lines:
            yield "\n".join(f"* {line}" for line in lines)


def _seeds(found: Evaluation, row: Row) -> str:
    lowest, highest = found.spread(row)
    return f"{row.name}: {100 * lowest:.1f} to {100 * highest:.1f} over its {len(row.answers)} seeds."


def _fraction(retention: float) -> str:
    return str(Fraction(retention).limit_denominator(100))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the pages, and parts of two others."""
    for name, image, text in (("quality", "quality", quality()), ("testbed", "quality-testbed", testbed())):
        plot(evaluation(name)).savefig(DOCS / "images" / f"{image}.png", dpi=120)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    rewrite(README, "quality", short())
    rewrite(RESULTS / "README.md", "quality", section())
    (RESULTS / "census.md").write_text(census(), encoding="utf-8")
    for kind in ABLATED:
        name = f"ablations-{kind}"
        (RESULTS / f"{name}.md").write_text(ablations(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
