"""Tells the arguments of `--model_args` that are vitcop's from those of lmms-eval's wrapper."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import VitcopError, unknown_name
from ..selection.pruner import Pruner
from ..shares import read_share


def split_arguments(arguments: Mapping[str, Any], wrapper: Iterable[str]) -> tuple[Pruner | None, dict[str, Any]]:
    """The method that the arguments describe, None for the dense model, and the arguments of the wrapper.

    Args:
        arguments: as lmms-eval reads them: numbers, booleans and strings, by name.
        wrapper: names that the wrapper takes.

    Raises:
        VitcopError: a name is neither the method's nor the wrapper's, or the method cannot have that value.
    """
    name = arguments.get("method")
    kind: Any = Pruner.named(name) if name is not None else None
    fields = [field.name for field in dataclasses.fields(kind)] if kind else ["retention"]
    settings = {key: _read(key, value) for key, value in arguments.items() if key in fields}
    others = {key: value for key, value in arguments.items() if key not in ("method", *fields)}
    known = {"method", *fields, *wrapper}
    for key in others:
        if key not in known:
            raise VitcopError(unknown_name("argument", key, known))
    if name is not None:
        return Pruner.from_dict({"method": name, **settings}), others
    if settings.get("retention", 1) != 1:
        raise VitcopError("retention needs a method: add one, such as method=vitcop; without one the model is dense.")
    return None, others


def _read(name: str, value: object) -> object:
    if name == "retention":
        return read_share(str(value), name)
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise VitcopError(f"{name} is a list such as [8,16,24]; got {value!r}.") from error
    return value
