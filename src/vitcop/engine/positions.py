"""The rotary positions of a pruned prompt, and of what comes behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Real, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RotaryPositions:
    """Positions of the tokens that entered the decoder; with axes where a token has one per axis (M-RoPE), of
    which time need not be whole (Qwen3-Omni).

    Attributes:
        values: of the token in each slot; meaningless in padding.
        shift: by how much the tokens behind the prompt lie before their place in the unpruned prompt, per prompt.
        floor: the first position behind all that was dropped before the decoder, per prompt; 0 where what is left
            was numbered anew.
    """

    values: Real[Tensor, "*axes batch entered"]
    shift: Int[Tensor, " batch"]
    floor: Real[Tensor, " batch"]

    def behind(self, alive: Bool[Tensor, "batch entered"]) -> Real[Tensor, " batch"]:
        """Position of the first token behind each prompt. On all axes it is one more than the largest so far.

        Args:
            alive: where a slot holds a token.
        """
        return torch.maximum(position_behind(self.values, alive), self.floor)

    def given(self, positions: Real[Tensor, "*axes batch new"]) -> Real[Tensor, "*axes batch new"]:
        """Positions of later tokens that were counted in the unpruned prompt."""
        return positions - self.shift.to(positions.device)[:, None]

    def select_prompts(self, prompts: Int[Tensor, " prompts"]) -> RotaryPositions:
        prompts = prompts.to(self.values.device)
        return RotaryPositions(self.values[..., prompts, :], self.shift[prompts], self.floor[prompts])

    def without_last(self, tokens: int) -> RotaryPositions:
        return replace(self, values=self.values[..., :-tokens])


def position_behind(
    positions: Real[Tensor, "*axes batch seq"], chosen: Bool[Tensor, "batch seq"]
) -> Real[Tensor, " batch"]:
    """One more than the largest position among the chosen tokens of each prompt; 0 where there are none."""
    last = positions.masked_fill(~chosen.to(positions.device), -1).amax(-1)
    # Of four axes, the first counts tokens; the rotary ones are the last three.
    return (last if last.ndim == 1 else last[-3:].amax(0)) + 1


def count_positions(mask: Shaped[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Positions counted over the tokens of each prompt; padding is at 0."""
    mask = mask.long()
    return (mask.cumsum(-1) - 1) * mask
