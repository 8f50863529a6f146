"""SCOPE: salient tokens that together cover the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import BudgetError
from ..ops.greedy import best_cover, keep_greedily
from ..ops.segments import pad_segments, padded_lengths
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class SCOPE(EntrancePruner):
    """Keeps salient tokens that cover what is not covered yet, at the entrance of the decoder.

    Based on "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs" (arXiv 2510.24214, NeurIPS
    2025).

    1. Every token is covered as well as the largest cosine of its features to those of a token that is kept; at first,
       and by what is unlike it, not at all.
    2. Again and again the token with the largest product of gain and saliency to the power `alpha` is added. Its gain
       is how much better it would cover all tokens together. Saliency is the attention of [CLS] in the layer of the
       features, or, in encoders without it, attention received.

    Tiles and frames share the budget by their sizes, and each is covered by itself.

    Written from summaries of the paper. Difference: features are those behind the projector; which ones the authors'
    code compares, what it does with tiles, and whether it scales saliency, we have not checked.

    Cost: the saliency, N x N cosines, and a few passes over them.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        alpha: how much saliency counts; 0 chooses by coverage alone.
    """

    described = Description(
        venue="NeurIPS", year=2025, arxiv="2510.24214", where="entrance", signal="saliency, coverage of picture"
    )
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise BudgetError(f"SCOPE's alpha must be a number from 0 on; got {self.alpha}.")

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        order, sizes = tokens.by_grid, [size for image in tokens.segment_sizes for size in image]
        weight = pad_segments(tokens.saliency[order] ** self.alpha, sizes)

        def pick(features: Tensor, real: Tensor, steps: int, grids: list[int]) -> Tensor:
            return best_cover(features @ features.mT, real, steps, weight[grids, : features.shape[1]])

        keep = keep_greedily(tokens.hidden_states[order], sizes, tokens.quotas(budget), pick)
        return Selection(order[keep].sort().values)

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, and `2 n^2 h` for the cosines of the n tokens of each grid."""
        return stage.saliency + sum(2 * n * n * stage.hidden for n in padded_lengths(stage.grids))
