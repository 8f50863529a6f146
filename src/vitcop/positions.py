"""The rotary positions of a pruned prompt, and of what comes behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class RotaryPositions:
    """RotaryPositions of the tokens that entered the decoder; with axes where a token has one per axis (M-RoPE).

    Attributes:
        values: of the token in each slot; meaningless in padding.
        shift: by how much the tokens behind the prompt lie before their place in the unpruned prompt, per row.
    """

    values: Int[Tensor, "*axes batch entered"]
    shift: Int[Tensor, " batch"]

    def behind(self, mask: Shaped[Tensor, "batch entered"] | None) -> Int[Tensor, " batch"]:
        """Position of the first token behind each row. On all axes it is one more than the largest so far.

        Args:
            mask: where a slot holds a token; None when all do.
        """
        values = self.values if mask is None else self.values.masked_fill(~mask.to(self.values.device), -1)
        last = values.amax(-1)
        # Of four axes, the first counts tokens; the rotary ones are the last three.
        return (last if last.ndim == 1 else last[-3:].amax(0)) + 1

    def given(self, positions: Int[Tensor, "*axes batch new"]) -> Int[Tensor, "*axes batch new"]:
        """RotaryPositions of later tokens that were counted in the unpruned prompt."""
        return positions - self.shift.to(positions.device)[:, None]

    def select_rows(self, rows: Int[Tensor, " rows"]) -> RotaryPositions:
        rows = rows.to(self.values.device)
        return RotaryPositions(self.values[..., rows, :], self.shift[rows.to(self.shift.device)])

    def without_last(self, tokens: int) -> RotaryPositions:
        return replace(self, values=self.values[..., :-tokens])


def count_positions(mask: Shaped[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """RotaryPositions counted over the tokens of each row; padding is at 0."""
    mask = mask.long()
    return (mask.cumsum(-1) - 1) * mask
