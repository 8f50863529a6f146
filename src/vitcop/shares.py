"""Shares as people write them."""

from __future__ import annotations

from fractions import Fraction

from .errors import VitcopError


def read_share(text: str, name: str = "--retention") -> float:
    """What an option, of this name, says: a share such as 1/9 or 0.2.

    Raises:
        VitcopError: it is no number.
    """
    try:
        return float(Fraction(text))
    except (ValueError, ArithmeticError) as error:
        raise VitcopError(f"{name} is a fraction such as 1/9 or a number such as 0.2; got {text!r}.") from error
