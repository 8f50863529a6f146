"""Census: salient tokens that cover the picture, each of which counts for all that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BudgetError
from ..ops.greedy import best_cover, keep_greedily
from ..ops.matching import cosines_worked_out, most_similar
from ..ops.segments import indices_of, pad_segments, padded_lengths, share_out
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class Census(EntrancePruner):
    """Keeps salient tokens that cover the picture, merges each other one into the most similar of them, and lets these
    count for all that they stand for.

    vitcop's own. What it takes from others: the coverage of SCOPE (arXiv 2510.24214), the merging of VisionZip (arXiv
    2412.04467), and calibrated attention as RESTORE has it (arXiv 2606.01711). docs/results/census.md says what each
    part is worth.

    1. Every token is covered as well as the largest cosine of its features to those of a token that is kept; at first,
       and by what is unlike it, not at all. Again and again the token is added that raises most the sum of what is
       covered, each token weighed by its saliency to the power `alpha`, times its own saliency to that power. Saliency
       is the attention of [CLS] in the layer of the features, or, in encoders without it, attention received. A plain
       background is so covered by a token or two, which the most salient tokens alone would leave out.
    2. Every other token goes to the kept one with the largest cosine, which becomes the mean of its group.
    3. A token that stands for s counts s times in the attention of all layers (`calibrate`), so that text looks at the
       picture as much as it would have, and at each of its parts.

    Tiles and frames share the budget by their sizes, and each is covered by itself; one whose share is nothing leaves
    nothing, and is not counted. Nothing depends on the question, so that a cached prefix with the picture stays valid
    for the next one.

    Flash and flex attention cannot count a token several times; with calibrate="none" they can be used. As a stage of
    a `Pipeline` it counts if that is told to calibrate.

    Cost: the saliency, N x N cosines and a few passes over them, and those of N tokens to the ones kept. Calibrated
    layers need a mask of floats, of the prompt's length squared, where a plain causal prompt needs none.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        alpha: how much saliency counts; 0 chooses by coverage alone.
    """

    described = Description(where="entrance", signal="saliency, coverage of picture", merges=True)
    default_positions = "keep"
    default_calibrate = "size"

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise BudgetError(f"Census's alpha must be a number from 0 on; got {self.alpha}.")

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return stand_for_the_rest(tokens, self.representatives(tokens, budget), budget)

    def weights(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        """How much it is worth to cover each token, and to cover by it."""
        return tokens.saliency.float() ** self.alpha

    def representatives(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Int[Tensor, " kept"]:
        """The rows that are kept, in no order."""
        order, sizes = tokens.by_grid, [size for image in tokens.segment_sizes for size in image]
        weight = pad_segments(self.weights(tokens)[order], sizes)

        def pick(directions: Tensor, real: Tensor, steps: int, grids: list[int]) -> Tensor:
            own = weight[grids, : directions.shape[1]]
            return best_cover(directions @ directions.mT * own[..., None], real, steps, own)

        return order[keep_greedily(tokens.hidden_states[order], sizes, tokens.quotas(budget), pick)]

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, `2 n^2 h` for the cosines of the n tokens of each grid, and `2 n k h` for those to its k kept ones.

        n and k are the largest among grids of about the same size, which are worked out together.
        """
        among = sum(n * n for n in padded_lengths(stage.grids))
        to_kept = cosines_worked_out(stage.grids, share_out(stage.after, stage.grids))
        return stage.saliency + 2 * (among + to_kept) * stage.hidden


def stand_for_the_rest(tokens: VisualTokens, kept: Int[Tensor, " kept"], budget: tuple[int, ...]) -> Selection:
    """Merges every other token into the one of its grid that is kept and most like it."""
    order, sizes = tokens.by_grid, [size for image in tokens.segment_sizes for size in image]
    stands = torch.zeros_like(order, dtype=torch.bool).index_fill(0, kept, True)
    found = most_similar(tokens.hidden_states[order], sizes, stands[order], tokens.quotas(budget))
    number = stands.cumsum(0) - 1
    group = torch.empty_like(order)
    group[order] = torch.where(found < 0, -1, number[order[found]])  # none where a grid's share is nothing
    return Selection(indices_of(stands, sum(budget)), tokens.groups(torch.where(stands, number, group), stands, budget))
