"""Looks at each stage of a pruned prefill: selecting, merging and packing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vitcop.engine.prefill import Prefill


@contextmanager
def each_stage(watch: Callable[[int, Callable[[], Any]], Any]) -> Iterator[None]:
    """Have `watch` run every stage in this block.

    Args:
        watch: gets the layer that the stage stands before, and what runs it, whose result it returns.
    """
    stage: Any = Prefill._stage

    def watched(prefill: Prefill, *args: Any) -> Any:
        return watch(prefill.tokens.layer, lambda: stage(prefill, *args))

    Prefill._stage = watched
    try:
        yield
    finally:
        Prefill._stage = stage
