"""SparseVLM: text tokens that look at the picture rate it, and what is dropped is recycled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.cluster import density_peaks
from ..ops.segments import indices_of, rank_in_segment, upload
from ..selection.pruner import Calibrate, Description, Pruner, question
from ..selection.schedule import scaled_layers, solve
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens

# Tokens that the paper's lists leave before these layers of 32, recycled ones included, of 576.
LAYERS = (3, 7, 16)
LISTS = {64: (82, 32, 18), 128: (312, 117, 39), 192: (309, 204, 113)}


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keeps the tokens to which the raters attend most, at three layers, and recycles some of the others.

    Based on "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417,
    ICML 2025), in its first version.

    1. Raters, once, from what enters the decoder: the softmax over the text tokens behind the image of visual times
       text embeddings, mean over the visual tokens, is at least its mean.
    2. After layers 2, 6 and 15 of 32: attention of that layer from the raters, mean over heads and raters. The best
       tokens stay.
    3. Of the others, the best 30 % and one more are clustered, a tenth as many clusters and one more; the mean of
       each stays in the place of its best member.

    The average runs along the paper's lists for 64, 128 and 192 tokens, which mean 82, 145 and 206.

    Differences from the authors' code: as many tokens are kept as make the budget with the recycled ones; where
    that leaves none, fewer clusters are made. Densities are those of `density_peaks`, not of nearest neighbours.
    Tokens keep their positions, as in the paper's second version, and recycled ones have that of their best member.

    Cost: softmax rows of all text behind the image, at three layers, and distances among 30 % of what is dropped.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        recycle: whether step 3 is done; the second version does without.
        calibrate: "size" lets a token count in later layers' attention as often as tokens were merged into it.
    """

    described = Description(
        venue="ICML",
        year=2025,
        arxiv="2410.04417",
        where="3 layers",
        signal="attention of text",
        merges=True,
        rows="rows of text",
    )
    presets = {
        "paper": {tokens: dict(zip(LAYERS, counts, strict=True)) for tokens, counts in LISTS.items()},
    }

    earliest = 1

    retention: float = 1 / 9
    recycle: bool = True
    calibrate: Calibrate = "none"

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layers = scaled_layers(LAYERS, num_layers, first_layer)
        lists = [tuple(count / 576 for count in counts) for counts in LISTS.values()]
        return solve(self.name, self.retention, num_tokens, num_layers, layers, lists)

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        score = tokens.attention(_rating(tokens))
        rank = rank_in_segment(-score, tokens.images, len(budget))
        splits = [self._split(n, count) for n, count in zip(tokens.lengths, budget, strict=True)]
        best, candidates, clusters = (list(values) for values in zip(*splits, strict=True))
        device = tokens.index.device
        stays = rank < upload(best, device)[tokens.images]
        if not any(clusters):
            return Selection(indices_of(stays, sum(budget)))

        last = upload([a + b for a, b in zip(best, candidates, strict=True)], device)[tokens.images]
        rows = indices_of(~stays & (rank < last), sum(candidates))
        cluster = density_peaks(
            tokens.hidden_states[rows],
            tokens.grid[rows],
            [count for count in candidates if count],
            [count for count in clusters if count],
            cutoff=None,
            radius=math.inf,
        )
        group = tokens.images[rows] * max(clusters) + cluster
        groups = len(budget) * max(clusters)
        first = rank_in_segment(rank[rows], group, groups) == 0
        keep = stays.scatter(0, rows, first)
        slot = (keep.cumsum(0) - 1)[rows]
        slot_of_group = torch.zeros(groups, dtype=torch.long, device=device).scatter_add(0, group, slot * first)
        merge = torch.full_like(rank, -1).scatter(0, rows, slot_of_group[group])
        return Selection(indices_of(keep, sum(budget)), merge)

    def selection_flops(self, stage: StageShape) -> int:
        """Rows of all text, `2 N t h` for its kinship to N tokens, and `2 c^2 h` for distances of c candidates."""
        _, candidates, _ = self._split(stage.before, stage.after)
        products = sum(stage.grids) * stage.text + candidates**2
        return stage.row(stage.text) + 2 * products * stage.hidden

    def _split(self, num_tokens: int, budget: int) -> tuple[int, int, int]:
        """How many tokens stay as they are, how many of the others are recycled, and into how many clusters."""
        if budget == num_tokens or not self.recycle:
            return budget, 0, 0

        def recycled(kept: int) -> tuple[int, int]:
            candidates = int(0.3 * (num_tokens - kept)) + 1
            return candidates, candidates // 10 + 1

        if budget == 1:
            return 1, 0, 0
        kept = next((k for k in range(budget - 1, 0, -1) if k + recycled(k)[1] <= budget), 1)
        candidates, clusters = recycled(kept)
        return kept, candidates, min(clusters, budget - kept)


def _rating(tokens: VisualTokens) -> Float[Tensor, " text"]:
    """Equal weights of the raters of each image, and none of other text."""
    text, weights = question(tokens, SparseVLM), []
    pairs = zip(tokens.entered.split(tokens.entered_lengths), text.embeddings.split(text.lengths), strict=True)
    for visual, words in pairs:
        kinship = (visual.float() @ words.float().T).softmax(-1).mean(0)
        # Where all are alike, the mean may be rounded to a value above them.
        raters = (kinship >= kinship.mean().clamp(max=kinship.max())).float()
        weights.append(raters / raters.sum())
    return torch.cat(weights)
