"""Prints docs/methods.md, whose table and presets come from the registry of methods."""

from __future__ import annotations

from vitcop.cli.methods import HEADER, preset_lines, row_of
from vitcop.methods import METHODS

_TEXT = """\
# Methods

Made from the methods in `src/vitcop/methods` by `make docs`; a test checks that it is up to date. `vitcop methods`
prints the table, and `vitcop methods NAME` one method with its settings.

{table}

Every method runs under FlashAttention, since none asks for attention maps; in brackets, the softmax rows that it
recomputes. `retention` means the same for all: the share of the visual tokens alive, averaged over the decoder
layers. A method that cannot average a retention raises `BudgetError`.

## Presets

The literature counts differently from paper to paper: as "64 tokens" it calls what enters the decoder, what a layer
leaves, or an average. `Method.preset(name, tokens=64)` takes the schedule that was really run on LLaVA-1.5-7B (576
visual tokens, 32 layers), and gives the method with the retention that it averages, for any model.

{presets}
"""


def page() -> str:
    """The page docs/methods.md."""
    lines = [HEADER, ("---",) * len(HEADER), *map(row_of, METHODS.values())]
    presets = [f"* `{method.__name__}`: {line}" for method in METHODS.values() for line in preset_lines(method)]
    return _TEXT.format(
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        presets="\n".join(presets),
    )


if __name__ == "__main__":
    print(page(), end="")
