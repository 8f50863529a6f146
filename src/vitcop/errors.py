"""The errors a user can meet. Each is also a `ValueError`, so generic handlers catch it."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable


class VitcopError(ValueError):
    """Base class of every error that vitcop raises on purpose."""


class UnsupportedModelError(VitcopError):
    """This model, or this way of calling it, cannot be pruned correctly; the message names the way out."""


class BudgetError(VitcopError):
    """No schedule of the method reaches the retention asked for; the message names what is possible."""


def one_line(text: object) -> str:
    """A text from outside as it can stand in a message, with line breaks, escapes and the like written out.

    Args:
        text: the name of a file, or the message of an error of another library.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def reason(error: Exception) -> str:
    """What an error of another library says, as one sentence of at most 300 characters."""
    text = textwrap.shorten(one_line(" ".join(str(error).split())), 300, placeholder=" ...")
    kind = "" if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: "
    return f"{kind}{text}".removesuffix(".").removesuffix(": ") + "."


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a registry: what it may have meant, and all there is."""
    names = sorted(known)
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    meant = f" Did you mean {lower[close[0]]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{meant} Known: {', '.join(names) or 'none'}."


def check_retention(retention: object) -> None:
    """Raise unless `retention` is a share of tokens that can be kept."""
    if not isinstance(retention, int | float) or isinstance(retention, bool) or not 0 < retention <= 1:
        raise BudgetError(
            f"retention is a share of the visual tokens, a number above 0 and at most 1; got {retention!r:.20}."
        )


def check_tokens(tokens: int) -> None:
    """Raise unless `tokens` is a number of tokens that can be kept."""
    if tokens < 1:
        raise BudgetError(f"tokens is the most visual tokens of an image, at least 1; got {tokens}.")
