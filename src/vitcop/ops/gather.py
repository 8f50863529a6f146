"""Whole rows of tokens, copied."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def gather_slots(values: Shaped[Tensor, ...], slots: Int[Tensor, "batch kept"], dim: int) -> Shaped[Tensor, ...]:
    """Gather `slots` along dimension `dim` (negative) of a tensor.

    The batch is the dimension just before `dim`, or of size one there when all rows share the values.
    Everything else is broadcast: (1, seq, head_dim) with `dim=-2` gives (batch, kept, head_dim).
    """
    slots, (rows, width) = slots.to(values.device), values.shape[dim - 1 :][:2]
    if rows > 1:
        slots = slots + width * torch.arange(rows, device=slots.device)[:, None]
    # Whole rows are copied: `gather`, which reads an index for every value, takes ten times as long.
    return values.flatten(dim - 1, dim).index_select(dim, slots.flatten()).unflatten(dim, slots.shape)
