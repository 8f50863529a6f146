"""VisPruner: half by [CLS] attention, half by what is not a duplicate."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.matching import thin_out
from ..ops.segments import indices_of, padded_lengths, rank_in_segment, share_out, upload
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens

STEP = 8
"""Duplicates that go at a time."""


@dataclass(frozen=True)
class VisPruner(EntrancePruner):
    """Keeps the most salient tokens and, as many, those that have no duplicate, at the entrance of the decoder.

    Based on "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs" (arXiv
    2412.01818, ICCV 2025).

    1. Half of the tokens, the larger one, are those to which [CLS] attends most in the layer of the features, or, in
       encoders without it, those that receive most attention.
    2. The others are dealt alternately into two sets; the 8 of the first that are most like one of the second go, and
       so on until the other half is left.

    Tiles and frames share the budget by their sizes.

    Difference from the authors' code: similarity is the cosine of features behind the projector, not before it.

    Cost: the saliency, N x N cosines, a few passes over them, and N / 8 steps.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    described = Description(
        venue="ICCV", year=2025, arxiv="2412.01818", where="entrance", signal="saliency, no duplicates"
    )
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        quotas, sizes = tokens.quotas(budget), [size for image in tokens.segment_sizes for size in image]
        salient = [-(-quota // 2) for quota in quotas]
        allowed = upload(salient, tokens.index.device)[tokens.segments]
        keep = rank_in_segment(-tokens.saliency, tokens.segments, len(quotas)) < allowed

        order = tokens.by_grid
        left = [size - count for size, count in zip(sizes, salient, strict=True)]
        others = order[indices_of(~keep[order], sum(left))]
        wanted = [quota - count for quota, count in zip(quotas, salient, strict=True)]
        filled = [i for i, count in enumerate(left) if count]
        features = tokens.hidden_states[others]
        diverse = thin_out(features, [left[i] for i in filled], [wanted[i] for i in filled], STEP)
        return Selection(indices_of(keep.index_fill(0, others[diverse], True), sum(budget)))

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, and `2 n^2 h` for the cosines of the n tokens that are not among the most salient of each grid."""
        quotas = share_out(stage.after, stage.grids)
        left = [size - -(-quota // 2) for size, quota in zip(stage.grids, quotas, strict=True)]
        return stage.saliency + sum(2 * n * n * stage.hidden for n in padded_lengths([n for n in left if n]))
