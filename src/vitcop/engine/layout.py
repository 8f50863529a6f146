"""Which prompt tokens a stretch of decoder layers holds, and where in it they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .calibration import Counts
from .positions import count_positions


@dataclass(frozen=True, eq=False)
class Layout:
    """A batch of prompts of unequal length, packed against the right edge.

    Attributes:
        columns: prompt column of the token in each slot; meaningless where `mask` is False.
        mask: where a slot holds a token; None when all do, so that attention needs no mask.
        counts: how often each token counts in attention; None when all count once.
    """

    columns: Int[Tensor, "batch width"]
    mask: Bool[Tensor, "batch width"] | None
    counts: Counts | None = None

    @property
    def width(self) -> int:
        return self.columns.shape[1]

    @property
    def alive(self) -> Bool[Tensor, "batch width"]:
        """Where a slot holds a token."""
        return torch.ones_like(self.columns, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def ranks(self) -> Int[Tensor, "batch width"]:
        """Number of each token in its prompt; 0 at padding."""
        if self.mask is not None:
            return count_positions(self.mask)
        return torch.arange(self.width, device=self.columns.device).expand_as(self.columns)

    @property
    def real_columns(self) -> Int[Tensor, "batch width"]:
        """`columns`, and -1 at padding."""
        return self.columns if self.mask is None else self.columns.masked_fill(~self.mask, -1)

    def keep(
        self, alive: Bool[Tensor, "batch width"], lengths: Sequence[int]
    ) -> tuple[Layout, Int[Tensor, "batch kept"]]:
        """The layout of the slots in `alive`, `lengths[i]` of them of prompt `i`, and the slots it gathers."""
        width = max(lengths)
        # Stable and ascending: what goes comes first and what stays comes last, each in its order.
        slots = alive.byte().argsort(dim=1, stable=True)[:, -width:]
        mask = None if min(lengths) == width else alive.gather(1, slots)
        counts = None if self.counts is None else self.counts.map(lambda part: part.gather(1, slots))
        return Layout(self.columns.gather(1, slots), mask, counts), slots

    def to(self, device: torch.device) -> Layout:
        return self._map(lambda part: part.to(device))

    def select_prompts(self, prompts: Int[Tensor, " prompts"]) -> Layout:
        """The layout of a batch made of these prompts."""
        prompts = prompts.to(self.columns.device)
        return self._map(lambda part: part[prompts])

    def of_rows(self, rows: slice) -> Layout:
        """The layout of neighbouring rows of the batch."""
        return self._map(lambda part: part[rows])

    def ends_with(self, columns: Int[Tensor, " some"]) -> bool:
        """Whether the last slots of every prompt hold these prompt columns."""
        last = slice(self.width - len(columns), None)
        held = (self.columns[:, last] == columns.to(self.columns.device)).all()
        return bool(held if self.mask is None else held & self.mask[:, last].all())

    def without_last(self, slots: int) -> Layout:
        """The layout without its last slots."""
        return self._map(lambda part: part[:, :-slots])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Layout:
        mask = None if self.mask is None else change(self.mask)
        counts = None if self.counts is None else self.counts.map(change)
        return Layout(change(self.columns), mask, counts)
