"""Numbers as tables and reports show them."""

from __future__ import annotations


def figure(value: float) -> str:
    """Four digits, or all of a whole number that has more."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share as sentences have it, of four digits."""
    return f"{100 * share:.4g} %"
