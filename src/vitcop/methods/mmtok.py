"""MMTok: tokens that together cover the question and the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import BudgetError
from ..ops.greedy import best_cover, keep_greedily
from ..ops.segments import is_real, pad_segments
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description, question
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class MMTok(EntrancePruner):
    """Keeps the tokens that together cover text and picture best, at the entrance of the decoder.

    Based on "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs" (arXiv 2508.18264, ICLR 2026).
    A token covers a text token, or another visual token, by the softmax over all visual tokens of its cosine to it;
    a greedy choice maximises the sum of the best covers, mean over text tokens plus `visual_weight` times the mean
    over visual tokens.

    Differences: all similarities are of projected features and of the embeddings of the text behind the image.
    Temperatures and weight are as we understand the paper, not checked against its code.

    Cost: N x N and N x text cosines, and a few passes over them.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        text_temperature, visual_temperature: of the softmax over cosines.
        visual_weight: of covering the picture, where covering the text has 1.
    """

    described = Description(
        venue="ICLR", year=2026, arxiv="2508.18264", where="entrance", signal="coverage of text and picture"
    )
    presets = {"paper": {192: {0: 192}, 128: {0: 128}, 64: {0: 64}}}

    text_temperature: float = 0.02
    visual_temperature: float = 0.2
    visual_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.text_temperature > 0 and self.visual_temperature > 0 and self.visual_weight >= 0):
            raise BudgetError("MMTok's temperatures must be above 0, and its visual_weight cannot be negative.")

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        text = question(tokens, MMTok)
        words = pad_segments(normalize(text.embeddings.float(), dim=-1), text.lengths)
        spoken = is_real(text.lengths, words.device)

        def pick(features: Tensor, real: Tensor, steps: int, images: list[int]) -> Tensor:
            def cover(targets: Tensor, of_targets: Tensor, temperature: float, weight: float) -> Tensor:
                cosines = (targets @ features.mT).masked_fill(~real[:, None], -torch.inf)
                share = weight * of_targets / of_targets.sum(1, keepdim=True)
                return (cosines / temperature).softmax(-1) * share[..., None]

            covers = (
                cover(words[images], spoken[images], self.text_temperature, 1.0),
                cover(features, real, self.visual_temperature, self.visual_weight),
            )
            return best_cover(torch.cat(covers, 1), real, steps)

        return Selection(keep_greedily(tokens.embeddings, tokens.lengths, budget, pick))

    def selection_flops(self, stage: StageShape) -> int:
        """`2 n (n + t) h` for the cosines of n tokens to each other and to t of the text."""
        return 2 * stage.before * (stage.before + stage.text) * stage.hidden
