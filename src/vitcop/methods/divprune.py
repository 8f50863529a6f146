"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.greedy import farthest_first, keep_greedily
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class DivPrune(EntrancePruner):
    """Keeps tokens that are far from each other, at the entrance of the decoder.

    Based on "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models" (arXiv 2503.02175, CVPR 2025).
    First the token whose nearest neighbour is farthest, then again and again the token with the largest distance to
    the nearest one chosen; distance is 1 - cosine of projected features. Written from the paper alone.

    Difference: each image is pruned by itself, as its budget is its own; the paper chooses among all of the prompt.

    Cost: N x N cosines, and as many steps as tokens are kept.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    described = Description(venue="CVPR", year=2025, arxiv="2503.02175", where="entrance", signal="diversity")
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return Selection(keep_greedily(tokens.hidden_states, tokens.lengths, budget, farthest_first))

    def selection_flops(self, stage: StageShape) -> int:
        """`2 n^2 h` for all cosines."""
        return 2 * stage.before**2 * stage.hidden
