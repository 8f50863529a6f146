"""What checks the shapes that annotations say, while tests run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its annotations checked; one within another is made anew in each call, and left as it is."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
