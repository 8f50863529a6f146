"""Calibrated attention: what is added to logits so that a token counts for those that were merged into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models import ModelFamily
from ..ops.precision import full_precision


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each slot of a layer counts in attention (RESTORE, arXiv 2606.01711, from its description).

    Attributes:
        stands_for: tokens that each visual token stands for, itself included; 0 for text, which is left alone.
        by_distance: whether a visual token counts the more the further it is from the query.
    """

    stands_for: Float[Tensor, "batch held"]
    by_distance: bool

    def logits(
        self, family: ModelFamily, layer: int, queries: Int[Tensor, "batch new"], keys: Int[Tensor, "batch held"]
    ) -> Float[Tensor, "batch new_or_1 held"]:
        """What is added to the logits of each token: log s, for all queries at once, or, by distance,
        `log(s (2 - D(|m - n|)))` for positions m and n. D is the mean of cosines of the angles by which the rotary
        embedding turns queries and keys that far apart: what it leaves, on the average, of their product.

        Args:
            layer: of the decoder, whose rotary embedding it is.
            queries, keys: prompt columns, which stand as far apart as positions do.
        """
        size = self.stands_for.clamp(min=1).log()[:, None]
        if not self.by_distance:
            return size
        frequencies = family.rotary_frequencies(layer).to(keys.device)
        with full_precision(keys.device):
            # cos(a - b) = cos a cos b + sin a sin b: two matrices in the place of one of queries x keys x planes.
            similar = _turned(queries, frequencies) @ _turned(keys, frequencies).mT / len(frequencies)
        return size + torch.where(self.stands_for[:, None] > 0, 2 - similar, 1).log()

    def map(self, change: Callable[[Tensor], Tensor]) -> Counts:
        """The counts of other slots, made of these by a function."""
        return replace(self, stands_for=change(self.stands_for))


def _turned(columns: Int[Tensor, "batch tokens"], frequencies: Float[Tensor, " planes"]) -> Tensor:
    angles = columns[..., None].float() * frequencies.float()  # a model that was cast has half-precision frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
