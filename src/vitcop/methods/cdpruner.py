"""CDPruner: diverse tokens that have to do with the question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..ops.greedy import AT_ONCE, CANDIDATES, keep_greedily, most_probable
from ..ops.segments import pad_segments
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description, question
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens

ROUNDING = 1e-6
"""Cosines that differ by less are the same."""


@dataclass(frozen=True)
class CDPruner(EntrancePruner):
    """Keeps the most probable set of a determinantal point process, at the entrance of the decoder.

    Based on "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs" (arXiv
    2506.10967, NeurIPS 2025). The kernel is `r_i * S_ij * r_j`, with S the cosines of projected features and r how
    relevant each token is to the question, from 0 to 1 in each image; a greedy choice maximises its determinant.

    Difference from the authors' code: there, relevance comes from CLIP's text tower, which no checkpoint that
    transformers loads here has. It is the cosine of each projected feature and the mean embedding of the text
    behind the image, in the language model's own space; its sign is plus, where CLIP's is taken with minus.

    Cost: N x N cosines, and as many steps as tokens are kept.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    described = Description(
        venue="NeurIPS", year=2025, arxiv="2506.10967", where="entrance", signal="diversity, relevance to text"
    )
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        asked = _mean_of_text(tokens)

        def pick(features: Tensor, real: Tensor, steps: int, images: list[int]) -> Tensor:
            relevance = _stretched((features @ asked[images, :, None])[..., 0], real)
            kernel = relevance[:, :, None] * (features @ features.mT) * relevance[:, None]
            return most_probable(kernel, real, steps)

        return Selection(keep_greedily(tokens.embeddings, tokens.lengths, budget, pick))

    def selection_flops(self, stage: StageShape) -> int:
        """`2 (n^2 + n) h` for the cosines of n tokens, `n k (k - 1)` for the factor of the k that stay, and `2 m^2 c`
        for the m candidates of every 32 further ones, when c are chosen.
        """
        n, k, m = stage.before, stage.after, min(stage.before, CANDIDATES)
        return 2 * (n * n + n) * stage.hidden + n * k * (k - 1) + 2 * m * m * sum(range(0, k, AT_ONCE))


def _mean_of_text(tokens: VisualTokens) -> Float[Tensor, "images hidden"]:
    """Direction of the mean embedding of the text behind each image."""
    text = question(tokens, CDPruner)
    padded = pad_segments(text.embeddings.float(), text.lengths)
    return normalize(padded.sum(1), dim=-1)


def _stretched(relevance: Float[Tensor, "images rows"], real: Tensor) -> Float[Tensor, "images rows"]:
    """From 0 to 1 in each image; 1 where all is equally relevant."""
    low = relevance.masked_fill(~real, torch.inf).amin(-1, keepdim=True)
    high = relevance.masked_fill(~real, -torch.inf).amax(-1, keepdim=True)
    return torch.where(high - low > ROUNDING, (relevance - low) / (high - low), 1.0)
