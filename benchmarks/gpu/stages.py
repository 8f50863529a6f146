"""Looks at each stage of a pruned prefill: selecting, merging and packing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vitcop.engine.stages import Stages


@contextmanager
def each_stage(watch: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Have `watch` run every stage in this block.

    Args:
        watch: gets what runs a stage, and returns its result.
    """
    stage: Any = Stages._stage

    def watched(*args: Any) -> Any:
        return watch(lambda: stage(*args))

    Stages._stage = watched
    try:
        yield
    finally:
        Stages._stage = stage
