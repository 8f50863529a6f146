"""Methods and models as options name them: what can be told before torch is imported is told before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import VitcopError, check_retention, check_tokens, unknown_name
from ..selection.registry import check
from ..shares import read_share
from .common import RETENTION, SHAPES, TESTBED, read_list

if TYPE_CHECKING:
    from ..selection.pruner import Positions, Pruner

METHOD_HELP = "a name of vitcop methods, file.py:Class or package.module:Class"
CONTENDERS = ("dense", "downsample", "majority", "blind", "oracle")
"""What stands beside methods in the tables of `compare`, `bench` and `eval`."""
NUMBERINGS: dict[str, tuple[Positions | None, ...]] = {
    "default": (None,),
    "keep": ("keep",),
    "compact": ("compact",),
    "both": ("keep", "compact"),
}
PositionsOption = Annotated[
    str,
    typer.Option(
        help="Positions of what the entrance leaves: keep, compact (numbered anew), both in turn, or default, as each "
        "method has them by itself."
    ),
]


def check_method(text: str) -> None:
    """Refuse what can be no method."""
    check(text)


@dataclass(frozen=True)
class Amount:
    """How much is kept of a picture, as options say it: see `Pruner`.

    Attributes:
        retention, tokens: of which one is given.
    """

    retention: float | None = None
    tokens: int | None = None

    @classmethod
    def read(cls, retention: str | None, tokens: int | None) -> Amount:
        """What `--retention` and `--tokens` say; without both, the share that commands keep by themselves.

        Raises:
            VitcopError: it is nothing that can be kept, or both are given.
        """
        if tokens is None:
            share = read_share(RETENTION if retention is None else retention)
            check_retention(share)
            return cls(share)
        if retention is not None:
            raise VitcopError("--retention and --tokens exclude each other; give one of them.")
        check_tokens(tokens)
        return cls(tokens=tokens)

    @property
    def settings(self) -> dict[str, int | float]:
        """Of a method."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def make_method(text: str, amount: Amount, positions: Positions | None = None) -> Pruner:
    """The method that an option names; without positions, with those it has by default.

    Raises:
        VitcopError: there is none.
    """
    from ..selection.pruner import Pruner

    return Pruner.from_dict({"method": text, **amount.settings, "positions": positions})


def read_positions(text: str, *, both: bool = True) -> tuple[Positions | None, ...]:
    """What `--positions` says: one after the other, None for each method's own.

    Args:
        both: whether it may be more than one.
    """
    known = {name: each for name, each in NUMBERINGS.items() if both or len(each) == 1}
    if text not in known:
        raise VitcopError(unknown_name("value of --positions", text, known))
    return known[text]


def read_methods(
    option: str, text: str, *, words: Mapping[str, Iterable[str]] | None = None, others: Iterable[str] = ()
) -> list[str]:
    """What an option says of several methods.

    Args:
        words: that stand for many.
        others: what may be named besides methods.
    """
    words, others = words or {}, (*others,)
    names = [name for word in read_list(option, text) for name in words.get(word, (word,))]
    for name in names:
        if name not in others:
            check(name, others=(*others, *words))
    return list(dict.fromkeys(names))


def import_methods(texts: Iterable[str], *, others: Iterable[str] = ()) -> list[str]:
    """The methods' own names, by which those of files and modules are known from now on.

    Args:
        texts: what `read_methods` gives.
        others: as there.
    """
    from ..selection.pruner import Pruner

    names, others = [], (*others,)
    for text in texts:
        name = text if text in others else Pruner.named(text).name
        if name != text and name in CONTENDERS:
            raise VitcopError(f"{text} cannot be told from what commands call {name!r}; give it another `name`.")
        names.append(name)
    return list(dict.fromkeys(names))


def check_shape(name: str) -> None:
    """Refuse what is no shape, and cannot be the testbed, a folder or a name on the hub either."""
    known = *SHAPES, TESTBED
    if "/" not in name and name not in known and not Path(name).exists():
        raise VitcopError(f"{unknown_name('shape', name, known)} A folder or a Hugging Face name will do as well.")
