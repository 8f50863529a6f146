"""HAWK: what the first decoder layer would have the text look at, wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import VitcopError
from ..ops.precision import full_precision
from ..ops.segments import pad_segments, unpad_segments, upload
from ..selection.bases import EntrancePruner, ScorePruner
from ..selection.pruner import Description, question
from ..selection.stage_shape import StageShape
from ..selection.tokens import VisualTokens


@dataclass(frozen=True)
class HAWK(ScorePruner, EntrancePruner):
    """Keeps the tokens whose keys in decoder layer 0 suit the queries of the text best, at the entrance of the decoder.

    Based on "HAWK: Head Importance-Aware Visual Token Pruning in Multimodal Models" (arXiv 2604.07812, CVPR 2026).

    1. Queries of the text behind the image and keys of its visual tokens, by the norm and the projections of decoder
       layer 0, without rotary embedding, which would favour what stands near the text.
    2. Their products, mean over the text. In each head by itself, these are divided by their L2 norm over the tokens of
       the image.
    3. The sum over heads, each times its weight. The highest stay.

    The paper weighs each head by how much worse the model does on several benchmarks without it, which is measured once
    for a model. By default all heads weigh the same here, which is the method without what it is named after: measure
    them, and give them as `head_weights`. There are no presets, as the paper's settings are shares of the tokens, 0.4,
    0.2 and 0.1, and so retentions.

    This is from summaries of the paper and from the authors' code; step 2's norm is in the code alone. As there, tokens
    keep their positions by default. Difference from it: the text goes on to the end of the prompt, where theirs ends
    with the user's turn.

    Cost: queries of the text, keys of the N tokens, and N products in each head.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        head_weights: of each query head of decoder layer 0; None weighs all the same. Where they are not as many as the
            heads, selecting raises `VitcopError`.
    """

    described = Description(
        venue="CVPR", year=2026, arxiv="2604.07812", where="entrance", signal="relevance to text, by layer 0"
    )
    default_positions = "keep"

    head_weights: Sequence[float] | None = None

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        text = question(tokens, HAWK)
        # A mean over the text but for its length, which the norm takes away.
        asked = pad_segments(tokens.queries_ahead(text.slots).float(), text.lengths).sum(1)
        keys = pad_segments(tokens.keys_ahead(tokens.slots).float(), tokens.lengths)
        grouped = asked.unflatten(1, (keys.shape[2], -1))
        with full_precision(keys.device):
            products = torch.einsum("inkd,ikgd->inkg", keys, grouped).flatten(2)
        suited = normalize(products, dim=1)
        if self.head_weights is not None:
            suited = suited * self._weights(suited)
        return unpad_segments(suited.sum(-1), tokens.lengths)

    def selection_flops(self, stage: StageShape) -> int:
        """`2 h (t w + n k)` for queries of t and keys of n tokens, and `2 n w` for their products."""
        return stage.ahead(stage.text, stage.before) + 2 * stage.before * stage.ahead_query_width

    def _weights(self, suited: Float[Tensor, "images longest heads"]) -> Float[Tensor, " heads"]:
        assert self.head_weights is not None
        given, heads = len(self.head_weights), suited.shape[-1]
        if given != heads:
            raise VitcopError(
                f"HAWK got {given} head_weights, and decoder layer 0 has {heads} heads; give one for each."
            )
        return upload(self.head_weights, suited.device)
