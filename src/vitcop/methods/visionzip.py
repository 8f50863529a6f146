"""VisionZip: dominant tokens, and contextual ones that gather the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BudgetError
from ..ops.matching import cosines_worked_out, most_similar
from ..ops.segments import indices_of, rank_in_segment, share_out, upload
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class VisionZip(EntrancePruner):
    """Keeps the most salient tokens, and merges all others into a few, at the entrance of the decoder.

    Based on "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (arXiv 2412.04467, CVPR 2025).

    1. Dominant: the tokens to which [CLS] attends most in the layer of the features, or, in encoders without it, those
       that receive most attention.
    2. Contextual: of the R others, in order, every (R // C)-th, C in all, is an anchor. Each that is left goes to the
       anchor whose key, mean over heads, has the largest cosine to its own. An anchor becomes itself plus the mean
       of those (a sum).

    10 of 64 tokens are contextual, in proportion. Tiles and frames share the budget by their sizes.

    Differences from the authors' code: the [CLS] token, which is one of the dominant there, is no visual token in
    transformers, and one more patch stays in its place; merging is done behind the projector; contextual tokens stay
    where their anchors stand and do not follow the dominant ones.

    Cost: the saliency, and R x C cosines.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        contextual_fraction: share of the tokens kept that are contextual.
    """

    described = Description(
        venue="CVPR", year=2025, arxiv="2412.04467", where="entrance", signal="saliency, similar keys", merges=True
    )
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    contextual_fraction: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual_fraction < 1:
            raise BudgetError(
                f"contextual_fraction is a share of what is kept, from 0 and below 1; got {self.contextual_fraction}."
            )

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        quotas, sizes = tokens.quotas(budget), [size for image in tokens.segment_sizes for size in image]
        contextual = [round(self.contextual_fraction * quota) for quota in quotas]
        dominant = [quota - count for quota, count in zip(quotas, contextual, strict=True)]
        device, segments, count = tokens.index.device, tokens.segments, len(quotas)

        def per_row(values: list[int]) -> Tensor:
            return upload(values, device)[segments]

        is_dominant = rank_in_segment(-tokens.saliency, segments, count) < per_row(dominant)
        rest = (~is_dominant).long()
        number = _number_among(rest, segments, count)
        others = [size - kept for size, kept in zip(sizes, dominant, strict=True)]
        stride = per_row([max(1, n // max(1, c)) for n, c in zip(others, contextual, strict=True)])
        anchor = ~is_dominant & (number % stride == 0) & (number // stride < per_row(contextual))

        order = tokens.by_grid
        match = torch.empty_like(segments)
        metric = tokens.keys.float().mean(1)[order]
        found = most_similar(metric, sizes, anchor[order], contextual)
        match[order] = torch.where(found < 0, -1, order[found])
        keep = is_dominant | anchor
        slot = keep.cumsum(0) - 1
        merge = torch.where(keep | (match < 0), -1, slot[match])
        return Selection(indices_of(keep, sum(budget)), merge, reduction="add_mean")

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, and `2 n c d` for the cosines of the n tokens of a grid to c anchors, d the size of a head.

        n and c are the largest among grids of about the same size, which are worked out together.
        """
        contextual = [round(self.contextual_fraction * quota) for quota in share_out(stage.after, stage.grids)]
        return stage.saliency + 2 * cosines_worked_out(stage.grids, contextual) * stage.head_dim


def _number_among(member: Tensor, segments: Tensor, count: int) -> Tensor:
    """Number of each row among the members of its segment, in order; of no meaning for other rows."""
    return rank_in_segment(1 - member, segments, count)
