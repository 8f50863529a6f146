"""Pruning by key norm alone: ViTCoP's language-side signal as a method of its own."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..ops.saliency import key_norm
from ..selection.bases import LayerPruner, ScorePruner
from ..selection.pruner import Description
from ..selection.tokens import VisualTokens


@dataclass(frozen=True)
class KNorm(LayerPruner, ScorePruner):
    """Keeps the tokens whose keys have the smallest L2 norm, once, before decoder layer `layer`.

    Based on "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression"
    (arXiv 2406.11430), here on the mean of the KV heads and for visual tokens only.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped; at least 2, since the norms of layer 0
            rank tokens the wrong way round. None is the earliest possible one.

    Where the decoder normalises its keys (QK-norm: Qwen3, Gemma 3), what is left of the norms is how far the
    heads agree; they are used all the same, since they are this method.
    """

    described = Description(venue="EMNLP", year=2024, arxiv="2406.11430", where="layer 2", signal="key norms")
    earliest = 2

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return -key_norm(tokens.keys)
