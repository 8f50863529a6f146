"""Prints docs/floors.md, whose tables come from the measurements in vitcop.floors."""

from __future__ import annotations

from collections.abc import Iterable

from vitcop.figures import figure, percent
from vitcop.floors import KEPT, MEASUREMENTS, SMALLEST, Kind, Measurement, floors
from vitcop.models import FAMILIES

_TEXT = """\
# How far others could prune

Made from `src/vitcop/floors.py` by `make docs`; a test checks that it is up to date. **Nothing on this page was
measured here.** It is what others published about large models, most of it by methods that are not ViTCoP, and what
`vitcop.prune` warns by.

Pruning hurts where an answer hangs on few tokens, or on where they are: reading, and pointing at things even more.
General questions (GQA, POPE, MME) keep nine tenths where these lose half, so that means over benchmarks show little
of it.

## Floors

The lowest retention at which anybody kept {kept} of the dense score, whatever the method. "Above" a retention: that is
the highest that was tried, and nobody we found kept as much. A floor is no promise of another method, of another
checkpoint of the type or of your questions, and what nobody tried below it may hold.

{floors}

Not measured by anybody we found: counting and small things, by retention, on any of these models; and of reading and
grounding, on types that the table does not have:
{unknown}.

Below a floor, `vitcop.prune` says so by a warning in the log (`logging.getLogger("vitcop")`), once in a process for
each model type: of reading and of grounding the task that asks for most, who measured it, and the way out. It says
nothing

* of types without a floor;
* of models of fewer than {smallest} million parameters, such as the model in the box: what was measured has 7 billion
  and more;
* where a method is given `tokens` in the place of `retention`: what share these are depends on the picture.

`logging.getLogger("vitcop").setLevel(logging.ERROR)` silences it. Better than any floor is to know:
`vitcop plan --quality` finds the cheapest retention that keeps a share of the dense answers to
[your own questions](quality_target.md).

## What was measured

{measurements}

* **kept**: as the source counts it; **retention**: the same as the share of the visual tokens alive, averaged over the
  decoder layers, as all of vitcop has it. "?" where the source leaves open what its share averages; such rows make no
  floor. IVC-Prune counts the cache that is left; up to the layer where it chooses, all tokens are read.
* **dense** and **pruned** are on the scale of the source; 100 where it gives shares of the dense score.
* Of each table: the best method at this retention of those that train nothing, and others where they are far apart.
* **seen**: whether the number was read in the paper, in its abstract, or in what somebody else copied from its tables.
* RefCOCO/+/g: referring expressions, mean over the splits of RefCOCO, RefCOCO+ and RefCOCOg; D2Pruner's abstract says
  only that it is localization. How positions are numbered decides much of it
  ([methods.md](methods.md#which-positions)): numbered anew, LLaVA fell from 56.1 to 15.3 on RefCOCO, and to 51.4 with
  positions kept ([GAP](https://arxiv.org/abs/2506.21873), whose abstract does not say how much was kept).
* TextVQA says little of how LLaVA-1.5 and LLaVA-NeXT read: with no visual token at all they keep {blind} and
  {blind_next} of their dense scores.
"""

_KINDS: tuple[Kind, ...] = ("reading", "grounding")


def page() -> str:
    """The page docs/floors.md."""
    blind = {one.checkpoint.model_type: percent(round(one.share, 2)) for one in MEASUREMENTS if one.method == "none"}
    known = [model_type for model_type in sorted(FAMILIES) if any(floors(model_type, kind) for kind in _KINDS)]
    header = ("model", "task", "method", "kept", "retention", "dense", "pruned", "of dense", "source", "seen")
    return _TEXT.format(
        kept=percent(KEPT),
        smallest=SMALLEST // 1_000_000,
        blind=blind["llava"],
        blind_next=blind["llava_next"],
        floors=_table(("`model_type`", *_KINDS), map(_floors, known)),
        unknown=", ".join(f"`{model_type}`" for model_type in sorted(FAMILIES) if model_type not in known),
        measurements=_table(header, map(_measured, MEASUREMENTS)),
    )


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ("---",) * len(header), *rows))


def _floors(model_type: str) -> tuple[str, ...]:
    return f"`{model_type}`", *(_floors_of(model_type, kind) for kind in _KINDS)


def _floors_of(model_type: str, kind: Kind) -> str:
    found = floors(model_type, kind)
    if not found:
        return "not measured by anybody we found"
    tasks = ", ".join(f"{'' if f.measured.holds else 'above '}{f.retention:.2f} {f.measured.task}" for f in found)
    measured = found[0].measured.checkpoint
    return tasks if measured.model_type == model_type else f"as `{measured.model_type}`: {tasks}"


def _measured(one: Measurement) -> tuple[str, ...]:
    table = f", table {one.table}" if one.table else ""
    return (
        one.checkpoint.name,
        one.task,
        one.method,
        one.counted,
        "?" if one.retention is None else f"{one.retention:.2f}",
        figure(one.dense),
        figure(one.pruned),
        percent(round(one.share, 3)),
        f"[{one.source.paper}](https://arxiv.org/abs/{one.source.arxiv}){table}",
        one.source.seen,
    )


if __name__ == "__main__":
    print(page(), end="")
