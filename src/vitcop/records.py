"""Dataclasses back from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def taken(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A dataclass from those of the values that it has fields for."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
