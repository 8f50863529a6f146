"""DART: drop what duplicates the pivots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..selection.bases import LayerPruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens

PIVOTS = 4
"""Of each kind."""


@dataclass(frozen=True)
class DART(LayerPruner):
    """Keeps a few pivots and the tokens that are least like them, once, before decoder layer `layer`.

    Based on "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More" (arXiv
    2502.11494, EMNLP 2025).

    1. Pivots: the 4 visual tokens, and the 4 text tokens behind the image, whose keys in layer `layer - 1`, all heads
       together, have the largest L1 norm.
    2. Each pivot in turn, visual ones first, by falling norm, adds the tokens least similar to it, by the cosine of
       hidden states after the decoder's final norm, the same number each. The visual pivots stay as well, so that
       the paper's "64" keeps 68.

    Differences from the authors' code: the order is said; where fewer pivots exist, fewer are asked; and norms are of
    keys without their rotary embedding, since else they depend on the padding before a prompt.

    Cost: 8 x N cosines.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped, at least 1; None is 2, or the earliest possible one
            after that.
    """

    described = Description(
        venue="EMNLP", year=2025, arxiv="2502.11494", where="layer 2", signal="unlike pivots of large key norm"
    )
    presets = {"paper": {192: {2: 196}, 128: {2: 132}, 64: {2: 68}}}

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        text = tokens.text
        assert text.keys is not None  # there are none at the entrance, where no DART stands
        visual, words = (normalize(tokens.final_norm(t.hidden_states).float(), dim=-1) for t in (tokens, text))
        images = zip(
            visual.split(tokens.lengths),
            _l1_norm(tokens.without_rotary(tokens.keys, tokens.slots)).split(tokens.lengths),
            words.split(text.lengths),
            _l1_norm(tokens.without_rotary(text.keys, text.slots)).split(text.lengths),
            budget,
            strict=True,
        )
        keep, start = [], 0
        for image in images:
            keep.append(start + _choose(*image))
            start += len(image[0])
        return Selection(torch.cat(keep))

    def selection_flops(self, stage: StageShape) -> int:
        """`2 p n h` for the cosines of p pivots to n tokens, and the check of what is turned back."""
        pivots = min(PIVOTS, stage.after) + min(PIVOTS, stage.text)
        return 2 * pivots * stage.before * stage.hidden + stage.check


def _l1_norm(keys: Float[Tensor, "tokens heads head_dim"]) -> Float[Tensor, " tokens"]:
    return keys.float().abs().sum((1, 2))


def _choose(visual: Tensor, norm: Tensor, words: Tensor, words_norm: Tensor, budget: int) -> Int[Tensor, " kept"]:
    """Ascending rows of one image that stay."""
    pivots = norm.argsort(descending=True, stable=True)[: min(PIVOTS, budget)]
    asked = torch.cat([visual[pivots], words[words_norm.argsort(descending=True, stable=True)[:PIVOTS]]])
    wanted = budget - len(pivots)
    each = -(-wanted // len(asked))
    similarity = (asked @ visual.T).nan_to_num(1)  # of features that are not finite; what is kept has to come last
    kept = torch.zeros(len(visual), dtype=torch.bool, device=visual.device).index_fill(0, pivots, True)
    for number, to_pivot in enumerate(similarity):
        free = to_pivot.masked_fill(kept, torch.inf)
        more = max(0, min(each, wanted - number * each))
        kept = kept.index_fill(0, free.argsort(stable=True)[:more], True)
    return kept.nonzero()[:, 0]
