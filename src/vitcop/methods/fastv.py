"""FastV: an image is worth half its tokens after layer 2."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..selection.bases import LayerPruner, ScorePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import VisualTokens


@dataclass(frozen=True)
class FastV(LayerPruner, ScorePruner):
    """Keeps the tokens to which the last token of the prompt attends most, once, before decoder layer `layer`.

    Based on "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
    Vision-Language Models" (arXiv 2403.06764, ECCV 2024). Attention is that of layer `layer - 1`, mean over heads;
    tokens keep their positions.

    Difference from the authors' code: the one softmax row is worked out from the layer's own query and the keys in
    the cache, so that no layer has to run eager attention.

    Cost: one softmax row.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped, at least 1; the paper's K. None is 2, or the
            earliest possible one after that.
    """

    described = Description(
        venue="ECCV", year=2024, arxiv="2403.06764", where="layer 2", signal="attention of last token", rows="1 row"
    )
    presets = {"paper": {192: {2: 192}, 128: {2: 128}, 64: {2: 64}}}

    def selection_flops(self, stage: StageShape) -> int:
        return stage.row()

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return tokens.attention()
