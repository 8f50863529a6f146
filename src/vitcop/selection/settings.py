"""Whether settings are what their annotations say. Ranges are for those who know what a setting means."""

from __future__ import annotations

import dataclasses
import math
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import VitcopError

LONGEST = 60  # of a value in a message, in characters
_WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text", NoneType: "None"}


def checked(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a dataclass, with tuples for lists where the annotation allows it, since settings never change, and
    with numbers of Python for those of numpy, which JSON does not take.

    A whole number will do for a number; True and False are no numbers. What an annotation says of tensors and their
    like is left alone.

    Raises:
        VitcopError: one is not of the type that its annotation says, or a number that is not finite.
    """
    settings = {}
    for name, value in values.items():
        hint, frozen = _hints(kind)[name], _frozen(value)  # type: ignore[arg-type]
        if not (fits := _fits(frozen, hint)) and not _fits(value, hint):
            raise VitcopError(f"{name} of {kind.__name__} is {_said(hint)}; got {_shown(value)}.")
        settings[name] = frozen if fits else value
    return settings


def given(kind: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass that are settings, in the order of its signature.

    What it works out itself (`init=False`) is none.
    """
    fields = sorted(dataclasses.fields(kind), key=lambda field: field.kw_only is True)
    return {field.name: field for field in fields if field.init}


def settle(settings: Any) -> None:
    """Check the fields of a frozen dataclass that is being made, as `checked` does."""
    kind = type(settings)
    values = {name: getattr(settings, name) for name in given(kind)}
    for name, value in checked(kind, values).items():
        object.__setattr__(settings, name, value)


def _frozen(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_frozen, value)) if type(value) in (list, tuple) else value


@lru_cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError as error:
        raise VitcopError(
            f"The settings of {kind.__name__} cannot be checked: {error}. Import what their annotations name where "
            "the module sees it when it runs, not under TYPE_CHECKING."
        ) from error


def _fits(value: object, hint: Any) -> bool:
    if (origin := get_origin(hint)) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(hint))
    if isinstance(value, bool):
        return hint in (bool, object, Any)
    if hint is float:
        return isinstance(value, int | float) and _is_finite(value)
    if _is_list(hint):
        return _is_list(type(value)) and isinstance(value, origin or hint) and _fit(value, get_args(hint))
    kind = origin or hint
    # What tensors and their like make of isinstance is theirs.
    return type(kind) not in (type, ABCMeta) or isinstance(value, kind)


def _is_list(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, Sequence) and not issubclass(kind, str | bytes)


def _fit(values: Any, hints: tuple[Any, ...]) -> bool:
    """Whether each value fits its own hint, or all fit the only one; without hints all do."""
    if len(hints) == 1 or hints[1:] == (...,):
        return all(_fits(value, hints[0]) for value in values)
    return not hints or (len(values) == len(hints) and all(map(_fits, values, hints)))


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _said(hint: Any) -> str:
    """A type in words."""
    if (origin := get_origin(hint)) in (Union, UnionType):
        return " or ".join(map(_said, get_args(hint)))
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if _is_list(hint):
        each = [_said(option) for option in get_args(hint) if option is not ...]
        return f"a list, each {' then '.join(each)}" if each else "a list"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        text = f"a number of more than {LONGEST} digits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
