"""HiPrune: anchors of a middle encoder layer with their neighbours, and the rest of a deep one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..ops.segments import rank_in_segment, segment_sum, upload
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import EncoderSignal, Selection, VisualTokens

ANCHORS = 0.1 / 5
"""Anchors, as a share of the tokens kept: with their four neighbours they are a tenth."""

RECEIVED, RECEIVED_MIDWAY = EncoderSignal(received=True), EncoderSignal(depth=9 / 24, received=True)


@dataclass(frozen=True)
class HiPrune(EntrancePruner):
    """Keeps anchors, their neighbours and the tokens that receive most attention, at the entrance of the decoder.

    Based on "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models" (arXiv
    2508.00553, AAAI 2026). Attention received is the mean over heads and all queries, [CLS] included.

    1. Anchors: a fiftieth of the tokens kept, those that receive most attention at 9/24 of the encoder's depth; and
       their neighbours above, below, left and right.
    2. The rest: those that receive most in the layer of the features.

    Tiles and frames share the budget by their sizes.

    Difference from the authors' code: a neighbour across the border of the grid is none.

    Cost: attention received in two encoder layers.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    described = Description(
        venue="AAAI", year=2026, arxiv="2508.00553", where="entrance", signal="attention received, two depths"
    )
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    encoder_signals = (RECEIVED, RECEIVED_MIDWAY)

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        quotas, count = tokens.quotas(budget), len(tokens.shapes)
        anchors = upload([round(ANCHORS * quota) for quota in quotas], tokens.index.device)
        middle = tokens.encoder_signal(RECEIVED_MIDWAY)
        anchor = rank_in_segment(-middle, tokens.segments, count) < anchors[tokens.segments]
        rank = rank_in_segment(-tokens.encoder_signal(RECEIVED), tokens.segments, count)
        first = rank - len(rank) * _with_neighbours(tokens, anchor).long()
        return Selection(tokens.smallest_of_grids(first, quotas).sort().values)

    def selection_flops(self, stage: StageShape) -> int:
        return stage.encoder_signal(RECEIVED) + stage.encoder_signal(RECEIVED_MIDWAY)


def _with_neighbours(tokens: VisualTokens, chosen: Bool[Tensor, " visual"]) -> Bool[Tensor, " visual"]:
    """Chosen tokens and those beside them in their grid."""
    height, width = (max(sizes) + 2 for sizes in zip(*tokens.shapes, strict=True))
    row, column = tokens.cells.unbind(1)
    place = (tokens.segments * height + row + 1) * width + column + 1  # with a border of no tokens around each grid
    canvas = segment_sum(chosen.long(), place, len(tokens.shapes) * height * width)
    return torch.stack([canvas[place + step] for step in (0, 1, -1, width, -width)]).sum(0) > 0
