"""SCoRe: salient tokens that are far from each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import BudgetError
from ..ops.greedy import farthest_from_chosen, keep_greedily
from ..ops.segments import pad_segments, padded_lengths
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class SCoRe(EntrancePruner):
    """Keeps salient tokens that are far from all others it keeps, at the entrance of the decoder.

    Based on "SCoRe: Salience-Coverage Reduction for Vision Token Pruning in Vision-Language Models" (CVPR 2026): a
    greedy answer to a weighted k-center problem.

    1. The most salient token: by the attention of [CLS] in the layer of the features, or, in encoders without it, by
       attention received.
    2. Again and again the token with the largest product of its distance to the nearest one chosen and its saliency
       to the power `alpha`. Distance is 1 - cosine.

    Tiles and frames share the budget by their sizes, and each is pruned by itself.

    Written from summaries of the paper; code of its authors we know none. Difference: features are those behind the
    projector, where the paper compares those before it. What it does with tiles we have not checked.

    Cost: the saliency, N x N cosines, and as many steps as tokens are kept.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        alpha: how much saliency counts; 0 chooses, after the first, by distance alone.
    """

    described = Description(venue="CVPR", year=2026, where="entrance", signal="saliency, diversity")
    presets = {"paper": {128: {0: 128}, 64: {0: 64}, 32: {0: 32}}}

    alpha: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise BudgetError(f"SCoRe's alpha must be a number from 0 on; got {self.alpha}.")

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        order, sizes = tokens.by_grid, [size for image in tokens.segment_sizes for size in image]
        saliency = pad_segments(tokens.saliency[order], sizes)

        def pick(features: Tensor, real: Tensor, steps: int, grids: list[int]) -> Tensor:
            own = saliency[grids, : features.shape[1]]
            return farthest_from_chosen(1 - features @ features.mT, real, steps, own, own**self.alpha)

        keep = keep_greedily(tokens.hidden_states[order], sizes, tokens.quotas(budget), pick)
        return Selection(order[keep].sort().values)

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, and `2 n^2 h` for the cosines of the n tokens of each grid."""
        return stage.saliency + sum(2 * n * n * stage.hidden for n in padded_lengths(stage.grids))
